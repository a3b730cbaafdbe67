"""Raw files in the format of KuaiRand-Pure.

Start at `pure.py`, which writes them; `world.py` is what happens in them.
"""
