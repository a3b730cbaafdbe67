"""A run as one complete, checked file.

Start at `run.py`; each section has a file of its own, whose models are what the parts of the package take, and `load.py`
reads one with its overrides. `model.py` holds which models there are, and `plugins.py` reads those from outside. Imports
the ground floor only, and no torch.
"""
