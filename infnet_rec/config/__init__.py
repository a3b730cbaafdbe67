"""A run as one complete, checked file.

Start at `run.py`, which has its sections, then `load.py`, which reads one. A section has a file of its own; its models
are what the parts of the package take. `model.py` holds which models there are, and `plugins.py` reads those from
outside. Imports no torch.
"""
