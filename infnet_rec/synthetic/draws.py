"""Random numbers that are a function of where they are used, not of when they are drawn.

Every number is a hash of (seed, kind of thing, which one, name of the draw). So a user's rows are the same whether they
are made first, last, alone or in another process.
"""

from functools import lru_cache
from hashlib import blake2b
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer[Any]]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mixed(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64, in place: every bit of the key reaches every bit of the result."""
    keys ^= keys >> np.uint64(30)
    keys *= np.uint64(0xBF58476D1CE4E5B9)
    keys ^= keys >> np.uint64(27)
    keys *= np.uint64(0x94D049BB133111EB)
    keys ^= keys >> np.uint64(31)
    return keys


@lru_cache(maxsize=4096)
def _hashed(name: str) -> np.uint64:
    return np.uint64(int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little"))


class Draws:
    """One stream of random numbers for each of many things (users, videos, rows)."""

    def __init__(self, keys: NDArray[np.uint64]) -> None:
        self.keys = keys

    @classmethod
    def at(cls, seed: int, kind: str, *counters: Ints) -> Self:
        """The streams of the things numbered by `counters`, arrays of one shape."""
        keys = np.full(counters[0].shape, _hashed(f"{seed}/{kind}"))
        for counter in counters:
            keys = _mixed(keys + (counter.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
        return cls(keys)

    def take(self, index: Ints) -> "Draws":
        return Draws(self.keys[index])

    def bits(self, name: str, lane: int = 0) -> NDArray[np.uint64]:
        """64 random bits each; `lane` numbers the draws that share a name."""
        return _mixed(self.keys ^ _hashed(f"{name}/{lane}"))

    def uniform(self, name: str, lane: int = 0) -> Floats:
        """Numbers in [0, 1)."""
        return (self.bits(name, lane) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def normal(self, name: str, lane: int = 0) -> Floats:
        """Standard normal numbers, within 6.8: both uniforms of Box and Muller come from one hash."""
        bits = self.bits(name, lane)
        radius = ((bits >> np.uint64(32)).astype(np.float64) + 0.5) * 2.0**-32
        angle = (bits & np.uint64(0xFFFFFFFF)).astype(np.float64) * (2.0 * np.pi * 2.0**-32)
        return np.sqrt(-2.0 * np.log(radius)) * np.cos(angle)

    def normals(self, name: str, width: int) -> Floats:
        """`width` normal numbers for each thing, as a matrix with one row a thing."""
        return np.stack([self.normal(name, lane) for lane in range(width)], axis=-1)

    def below(self, chance: Floats | float, name: str, lane: int = 0) -> Flags:
        """True with the given chance."""
        return self.uniform(name, lane) < chance


def correlated(normals: Floats, cholesky: Floats) -> Floats:
    """Gives independent normals (one row a thing) the correlation of a lower Cholesky factor.

    Not a matrix product of BLAS, whose last bit may depend on its number of threads.
    """
    return np.einsum("nk,jk->nj", normals, cholesky, optimize=False)


def picked(uniform: Floats, weights: Ints | Floats) -> Ints:
    """For each uniform number, an index drawn in proportion to `weights`."""
    edges = np.cumsum(weights, dtype=np.float64)
    return np.minimum(np.searchsorted(edges, uniform * edges[-1], side="right"), len(edges) - 1)
