"""A run as one complete, checked file: `run.py` has its sections, `load.py` reads it.

One file a section; its models are what the parts of the package take. `model.py` holds which models there are, and
`plugins.py` reads those from outside. Imports no torch.
"""
