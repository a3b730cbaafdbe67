"""A run as one complete, checked file."""
