"""Generators of raw files in public formats.

Start at `run.py`. Imported by its verb and by tests only.
"""

from infnet_rec.synthetic.run import GeneratedReport, generate

__all__ = ["GeneratedReport", "generate"]
