"""Raw files in a dataset's public format, at any scale, from a seed: `generate`."""

from infnet_rec.data.generate.run import GeneratedReport, generate

__all__ = ["GeneratedReport", "generate"]
