"""One verb a file: configuration to objects to call."""
