"""Raw files in the format of Tenrec QB-Video.

Start at `generate.py`, which writes them.
"""
