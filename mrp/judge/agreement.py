"""Does the judge say what the offline measures say? Rank correlations, so that no scale matters.

    correlation([4.1, 2.0, ...], [0.9, 0.2, ...], scenes, seed=0)     # {"spearman", "kendall", "low", "high", "n"}

The interval is of Spearman's rho, a bootstrap over scenes as everywhere else (`evaluate/intervals.py`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from mrp.errors import need_extra
from mrp.judge.asking import Ruling
from mrp.judge.marks import Marked, mean_of
from mrp.judge.pairwise import OUTCOMES, Pair, outcome
from mrp.judge.said import Said

FEWEST = 5  # of fewer values a rank correlation says nothing
DRAWS = 500


def agreement(
    said: Said,
    pairs: Sequence[Pair],
    pair_rulings: Sequence[Sequence[Ruling]],
    asked: Sequence[Marked],
    mark_rulings: Sequence[Ruling],
    sides: tuple[str, str],
    seed: int,
) -> dict[str, Any]:
    """Rank correlations of the judge with the classifier of voices and with the own-identity gap; None where there is
    too little to compare.

    `marks and voice`: mean mark of a reply, and the probability that it sounds like its character. `pairs and voice`:
    who won, and the difference of these probabilities. `marks and gap`: by character, the first side alone.
    """
    one, other = sides
    marked = [
        (mean_of(ruling.verdict), m.place.sounds[m.side], m.place.unit)
        for m, ruling in zip(asked, mark_rulings, strict=True)
        if ruling.verdict is not None and m.side in m.place.sounds
    ]
    won = [
        (OUTCOMES[result], pair.place.sounds[one] - pair.place.sounds[other], pair.place.unit)
        for pair, own in zip(pairs, pair_rulings, strict=True)
        if (result := outcome(own)) is not None and {one, other} <= set(pair.place.sounds)
    ]
    by_person: dict[str, list[float]] = {}
    for m, ruling in zip(asked, mark_rulings, strict=True):
        if ruling.verdict is not None and m.side == one:
            by_person.setdefault(m.place.character, []).append(mean_of(ruling.verdict))
    people = [(sum(own) / len(own), said.gaps[who], who) for who, own in by_person.items() if who in said.gaps]
    found = {"marks and voice": marked, "pairs and voice": won, "marks and gap": people}
    return {name: _of(rows, seed) for name, rows in found.items()}


def _of(rows: Sequence[tuple[float, float, str]], seed: int) -> dict[str, Any] | None:
    return correlation([a for a, _, _ in rows], [b for _, b, _ in rows], [unit for _, _, unit in rows], seed)


def correlation(x: Sequence[float], y: Sequence[float], units: Sequence[Hashable], seed: int) -> dict[str, Any] | None:
    """Spearman's rho with its 95 % interval, and Kendall's tau-b; None for too few values, or all of one side equal."""
    try:
        from scipy.stats import kendalltau  # type: ignore[import-untyped]
    except ImportError:
        raise need_extra("eval", "scipy") from None

    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(a) < FEWEST or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    names, index = np.unique([repr(unit) for unit in units], return_inverse=True)
    rows = [np.flatnonzero(index == k) for k in range(len(names))]
    generator = np.random.Generator(np.random.PCG64(seed))
    draws = []
    for _ in range(DRAWS if len(rows) > 1 else 0):
        chosen = np.concatenate([rows[k] for k in generator.integers(0, len(rows), len(rows))])
        drawn = _spearman(a[chosen], b[chosen])
        if drawn is not None:
            draws.append(drawn)
    low, high = (float(v) for v in np.quantile(draws, [0.025, 0.975])) if draws else (None, None)
    return {
        "spearman": _rounded(_spearman(a, b)),
        "low": _rounded(low),
        "high": _rounded(high),
        "kendall": _rounded(float(kendalltau(a, b).statistic)),
        "n": len(a),
        "units": len(rows),
    }


def _spearman(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float | None:
    """The correlation of the ranks (ties share theirs); None where all of one side are equal."""
    from scipy.stats import rankdata

    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6) + 0.0
