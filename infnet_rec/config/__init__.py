"""A run as one complete, checked file.

Start at `run.py`; each section has a file of its own, and `load.py` reads one with its overrides. Imports the ground
floor only, and no torch.
"""
