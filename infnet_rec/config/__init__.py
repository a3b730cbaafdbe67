"""A run as one complete, checked file.

Start at `run.py`. Each section has a file of its own, whose models are what the parts of the package take; `load.py`
reads a file with its overrides. `model.py` holds which models there are, `plugins.py` reads those from outside. Imports
the ground floor only, and no torch.
"""
