"""Raw files in the formats of KuaiRand-27K and -1K, in constant memory.

Start at `generate.py`, which writes them; `world.py` is what happens in them.
"""
