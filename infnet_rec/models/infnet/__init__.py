"""INFNet: proxies, cross attention, gates.

Start at `model.py`, then `attention.py`.
"""
