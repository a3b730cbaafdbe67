"""A run on disk: everything that is needed to go on as if it had never stopped.

`shelf.py` knows what a folder of checkpoints looks like and what is whole; `save.py` writes one from all ranks,
`restore.py` reads one on whatever ranks there are now, `progress.py` is what the loop itself must remember.
"""
