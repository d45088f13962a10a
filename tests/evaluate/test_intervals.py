"""Intervals: hand-computed figures, coverage on simulated data, units and not turns, and the edges."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("scipy")

from mrp.evaluate.intervals import Estimate, difference, equal_shares, estimate


def test_the_figure_is_a_weighted_mean() -> None:
    found = estimate([1.0, 3.0], ["a", "b"], 0, weights=[3, 1])
    assert found is not None and found.value == 1.5 and (found.n, found.units) == (2, 2)
    assert estimate([], [], 0) is None


def test_equal_shares_make_it_a_mean_over_groups() -> None:
    groups = ["a", "a", "a", "b"]
    found = estimate([1, 1, 1, 0], ["1", "2", "3", "4"], 0, equal_shares(groups))
    assert found is not None and found.value == 0.5


def test_one_unit_has_no_interval() -> None:
    found = estimate([1.0, 2.0, 3.0], ["s"] * 3, 0)
    assert found == Estimate(2.0, None, None, 3, 1)


def test_a_rate_that_is_zero_everywhere_is_not_certain() -> None:
    none = estimate([0] * 10, range(10), 0, is_rate=True)
    every = estimate([1] * 10, range(10), 0, is_rate=True)
    assert none is not None and (none.low, none.high) == (0.0, pytest.approx(1 - 0.025**0.1, abs=1e-6))
    assert every is not None and (every.low, every.high) == (pytest.approx(0.025**0.1, abs=1e-6), 1.0)


def test_equal_seeds_give_equal_intervals_and_other_seeds_others() -> None:
    values, units = list(np.random.default_rng(0).normal(size=40)), list(range(40))
    assert estimate(values, units, 3) == estimate(values, units, 3) != estimate(values, units, 4)


@pytest.mark.parametrize(("units", "turns"), [(8, 1), (20, 5)])
def test_intervals_cover_on_simulated_scenes(units: int, turns: int) -> None:
    """Replies of one scene resemble each other: 95 % of the intervals over scenes hold the truth (here 0.7)."""
    generator = np.random.default_rng(units)
    held = narrow = 0
    rounds = 200
    for seed in range(rounds):
        scene = generator.normal(0.7, 1.0, (units, 1))
        values = (scene + generator.normal(0, 0.5, (units, turns))).ravel()
        names = np.repeat(np.arange(units), turns)
        found = estimate(values.tolist(), names.tolist(), seed)
        by_turn = estimate(values.tolist(), list(range(len(values))), seed)
        assert found is not None and found.low is not None and found.high is not None
        assert by_turn is not None and by_turn.low is not None and by_turn.high is not None
        held += found.low <= 0.7 <= found.high
        narrow += by_turn.low <= 0.7 <= by_turn.high
    assert 0.9 <= held / rounds <= 0.99
    if turns > 1:  # what an interval over turns would pretend
        assert narrow / rounds < 0.85


def test_intervals_of_rates_cover() -> None:
    generator = np.random.default_rng(5)
    held = 0
    for seed in range(200):
        values = (generator.random(40) < 0.3).astype(float)
        found = estimate(values.tolist(), range(40), seed, is_rate=True)
        assert found is not None and found.low is not None and found.high is not None
        assert 0 <= found.low <= found.high <= 1
        held += found.low <= 0.3 <= found.high
    assert 0.9 <= held / 200 <= 0.99


def test_a_paired_difference_is_narrower_than_two_figures_apart() -> None:
    generator = np.random.default_rng(1)
    hard = generator.normal(0, 3, 50)  # some replies are harder for both
    one, other = (hard + generator.normal(shift, 0.1, 50) for shift in (4.0, 4.2))
    paired = estimate(difference(one.tolist(), other.tolist()), range(50), 0)
    alone = estimate(one.tolist(), range(50), 0)
    assert paired and alone and paired.high is not None and paired.low is not None
    assert alone.high is not None and alone.low is not None
    assert paired.high < 0 and (paired.high - paired.low) < (alone.high - alone.low) / 5
