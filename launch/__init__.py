"""torchx components.

Start at `components.py`; what they render is `infnet_rec.launcher`'s.
"""
