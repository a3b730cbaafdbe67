"""How fast a user's run is on a user's machine, and what bounds it.

Start at `run.py`. May import the trainer and below.
"""
