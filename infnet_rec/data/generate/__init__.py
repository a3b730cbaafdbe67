"""Raw files in a dataset's public format, at any scale, from a seed: `generate`.

Start in `families.py`, which says what a dataset's module has to offer, and in `run.py`, which calls it. KuaiRand-Pure
is made by `pure.py`, the larger KuaiRand-1K and -27K by `large.py`; what they share has no prefix.
"""

from infnet_rec.data.generate.run import GeneratedReport, generate

__all__ = ["GeneratedReport", "generate"]
