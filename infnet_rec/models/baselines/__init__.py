"""The models that INFNet is compared with: `Tokens` in, logits_BT out, one file a family.

Start at `fm.py`, the smallest; pieces that several share are in `fields.py`, `histories.py` and `packed.py`.
"""
