"""The measured shape of a public dataset: counts, rates, quantiles and rank correlations, as arrays.

The package data file `kuairand_spec.json.gz` holds statistics derived from KuaiRand (Gao et al., CIKM 2022) and, unlike
the code, is under KuaiRand's own licence, CC BY-SA 4.0. It holds no row of the dataset.
"""

import gzip
import json
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from statistics import NormalDist
from typing import Any

import numpy as np

from infnet_rec.synthetic.draws import Floats, Ints

EXTREME = 4.0


def cholesky(rows: list[list[float]]) -> Floats:
    full = np.zeros((len(rows), len(rows)))
    for i, row in enumerate(rows):
        full[i, : i + 1] = row
    return full


def normal_levels(levels: list[float]) -> Floats:
    """Quantile levels as standard normal scores; the extremes stand where one of 30,000 draws falls."""
    inverse = NormalDist().inv_cdf
    return np.array([-EXTREME if level == 0 else EXTREME if level == 1 else inverse(level) for level in levels])


def from_scores(scores: Floats, at: Floats, values: Any) -> Floats:
    """Standard normal scores -> the quantity with these quantiles; heavy tails are interpolated on a log scale."""
    return np.expm1(np.interp(scores, at, np.log1p(np.asarray(values, dtype=np.float64))))


def normal_score(share: Floats) -> Floats:
    """The standard normal score below which the share (within 0..1, both excluded) lies."""
    grid, scores = _score_table()
    return np.interp(np.arctanh(2.0 * share - 1.0), grid, scores)


@lru_cache(maxsize=1)
def _score_table() -> tuple[Floats, Floats]:
    # The inverse of the normal distribution is slow, and smooth in this scale.
    grid = np.linspace(-9.5, 9.5, 4_001)
    return grid, normal_levels([float(level) for level in 0.5 * (1.0 + np.tanh(grid))])


def cuts(counts: list[int]) -> Floats:
    """Where standard normal scores are cut so that the classes are drawn with these counts."""
    share = np.cumsum(counts)[:-1] / np.sum(counts)
    return normal_levels([float(x) for x in share])


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything known about one dataset; `log` holds tables by tab (scenario 0..14)."""

    users: dict[str, Any]
    videos: dict[str, Any]
    log: dict[str, Any]
    provenance: str
    licence: str


@lru_cache(maxsize=1)
def kuairand_facts() -> Facts:
    """What was published of KuaiRand-Pure."""
    spec = _packed()
    return Facts(spec["users"], spec["videos"], spec["log"], spec["provenance"], spec["licence"])


@lru_cache(maxsize=1)
def large_facts() -> Facts:
    """KuaiRand-27K's and -1K's: Pure's where nothing else is known."""
    pure, own = kuairand_facts(), _packed()["kuairand-27k"]
    return Facts(
        pure.users | own["users"],
        pure.videos | own["videos"],
        pure.log | own["log"],
        f"{own['provenance']} {pure.provenance}",
        pure.licence,
    )


def _packed() -> Any:
    packed = files("infnet_rec.synthetic").joinpath("kuairand_spec.json.gz").read_bytes()
    return json.loads(gzip.decompress(packed))


def table(rows: Any) -> Floats:
    return np.array(rows, dtype=np.float64)


def bucket_of(duration_ms: Ints, edges_ms: list[int]) -> Ints:
    """Bucket of a video's duration: 0 for no duration (pictures), then the half-open ranges (edge, next edge]."""
    return np.searchsorted(np.array(edges_ms), duration_ms, side="left")
