"""What samples of a time say: percentiles, how well their mean is known, and the ratio of two."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Neighbouring steps are alike: they share a busy moment of the machine. Blocks of them are drawn together.
BLOCK = 5
DRAWS = 2_000


def percentile(samples: Sequence[float], share: float) -> float:
    """The value that this share of the samples does not exceed, between neighbours in a line."""
    return float(np.quantile(np.asarray(samples), share))


def bootstrap_means(samples: Sequence[float], *, seed: int) -> Array:
    """Means of samples drawn again, in blocks of neighbours."""
    values = np.asarray(samples, np.float64)
    block = min(BLOCK, len(values))
    num_blocks = math.ceil(len(values) / block)
    starts = np.random.default_rng(seed).integers(0, len(values), (DRAWS, num_blocks))
    # Blocks go on at the beginning, so that every sample is drawn as often as another.
    taken = (starts[:, :, None] + np.arange(block)) % len(values)
    return values[taken.reshape(DRAWS, -1)[:, : len(values)]].mean(axis=1)


def half_width(samples: Sequence[float]) -> float:
    """Half of the interval in which the mean lies with 95 % confidence."""
    low, high = np.quantile(bootstrap_means(samples, seed=0), [0.025, 0.975])
    return float(high - low) / 2


def summary(samples_s: Sequence[float]) -> dict[str, float | int]:
    """Of seconds, in milliseconds."""
    return {
        "num_samples": len(samples_s),
        "mean_ms": 1e3 * float(np.mean(samples_s)),
        "mean_ms_half_width": 1e3 * half_width(samples_s),
        "p50_ms": 1e3 * percentile(samples_s, 0.5),
        "p95_ms": 1e3 * percentile(samples_s, 0.95),
    }


def ratio(before: Sequence[float], after: Sequence[float]) -> dict[str, float]:
    """How many times faster the second is by the mean, and between what with 95 % confidence."""
    drawn = bootstrap_means(before, seed=1) / bootstrap_means(after, seed=2)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"ratio": float(np.mean(before) / np.mean(after)), "low": float(low), "high": float(high)}
