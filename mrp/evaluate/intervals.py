"""A figure with its 95 % interval: a bootstrap over scenes or questions, not over tokens or turns of one scene.

    estimate([1, 0, 1], ["s1", "s1", "s2"], seed=0)               # Estimate(0.667, low, high, n=3, units=2)
    estimate(nats, scenes, seed=0, weights=tokens)                # sum(nats) / sum(tokens): a mean loss a token
    estimate(difference(tuned, base), scenes, seed=0)             # paired: both sides of each reply stay together

Units are drawn with replacement and the figure, a ratio of sums, is made anew of each draw. Percentiles of few units
are too narrow, so they are widened as Hesterberg 2015 ("What Teachers Should Know About the Bootstrap", arXiv
1411.5279, section 3.2) does; where a rate is 0 or 1 in every unit the draws say nothing, and the exact binomial bound
over the units stands instead. Used by every module of `evaluate/`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np

from mrp.errors import need_extra

DRAWS = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure and its interval, made of `n` values in so many `units`; with one unit there is no interval."""

    value: float
    low: float | None
    high: float | None
    n: int
    units: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def estimate(
    values: Sequence[float],
    units: Sequence[Hashable],
    seed: int,
    weights: Sequence[float] | None = None,
    is_rate: bool = False,
) -> Estimate | None:
    """sum(weights * values) / sum(weights) with its interval; None for no values.

    Without weights a mean. `is_rate`: values lie between 0 and 1, and so do the bounds. The same values in the same
    units give the same interval, whatever else is computed.
    """
    if not len(values):
        return None
    x = np.asarray(values, np.float64)
    w = np.ones_like(x) if weights is None else np.asarray(weights, np.float64)
    _, index = np.unique([repr(unit) for unit in units], return_inverse=True)
    count = int(index.max()) + 1
    sums = np.zeros((count, 2))  # of each unit: weighted values, weights
    np.add.at(sums, index, np.stack([w * x, w], 1))
    value = float(sums[:, 0].sum() / sums[:, 1].sum())
    low, high = _bounds(sums, x, value, seed, is_rate)
    return Estimate(_rounded(value), low, high, len(x), count)


def difference(one: Sequence[float], other: Sequence[float]) -> list[float]:
    """one - other, value by value: of the same replies, so an estimate of it is paired."""
    return [a - b for a, b in zip(one, other, strict=True)]


def equal_shares(groups: Sequence[Hashable]) -> list[float]:
    """Weights with which each group counts the same, however many values it has: a mean over characters."""
    counts: dict[Hashable, int] = {}
    for group in groups:
        counts[group] = counts.get(group, 0) + 1
    return [1 / counts[group] for group in groups]


def _bounds(
    sums: np.ndarray[Any, Any], x: np.ndarray[Any, Any], value: float, seed: int, is_rate: bool
) -> tuple[float | None, float | None]:
    count = len(sums)
    if count < 2:
        return None, None
    if is_rate and bool(np.all(x == x[0])) and x[0] in (0, 1):
        # Clopper and Pearson 1934 over the units, for none (or all) of them
        far = (0.5 - LEVEL / 2) ** (1 / count)
        return (0.0, _rounded(1 - far)) if x[0] == 0 else (_rounded(far), 1.0)
    digest = hashlib.sha256(f"{seed} {count}".encode() + sums.tobytes()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "big")))
    draws = np.empty(DRAWS)
    block = max(1, 2**22 // count)  # draws looked at in one go: memory stays small with many units
    for at in range(0, DRAWS, block):
        chosen = generator.integers(0, count, (min(block, DRAWS - at), count))
        drawn = sums[chosen].sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):  # a draw whose units weigh nothing
            draws[at : at + len(chosen)] = drawn[:, 0] / drawn[:, 1]
    outside = _tail(count)
    low, high = np.nanquantile(draws, [outside, 1 - outside])
    return _rounded(min(float(low), value)), _rounded(max(float(high), value))


@lru_cache
def _tail(count: int) -> float:
    """The share of draws outside on each side, for so many units: smaller than 2.5 % the fewer they are."""
    try:
        from scipy.stats import t  # type: ignore[import-untyped]
    except ImportError:
        raise need_extra("eval", "scipy") from None

    wide = math.sqrt(count / (count - 1)) * float(t.ppf(0.5 + LEVEL / 2, count - 1))
    return NormalDist().cdf(-wide)


def _rounded(value: float) -> float:
    """Six decimals: what other machines agree on."""
    return round(value, 6) + 0.0  # no -0.0
