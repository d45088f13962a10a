"""Curves of held-out loss: measured at even distances, once each, without a trace in what is learnt."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_runs import adapter_bytes, read_record, stop_at

from mrp.config import Run
from mrp.errors import Stopped
from mrp.train.curve import curve_steps
from mrp.train.loop import train


def steps_of(*counts: int) -> Any:
    return [SimpleNamespace(epoch=epoch) for epoch, count in enumerate(counts) for _ in range(count)]


@pytest.mark.parametrize("points", range(1, 9))
@pytest.mark.parametrize("counts", [(8, 8), (3,), (1, 1, 1), (7, 12), (2, 100)])
def test_points_lie_evenly_in_each_epoch_and_never_at_its_end(counts: tuple[int, ...], points: int) -> None:
    found = curve_steps(steps_of(*counts), points)
    first = 0
    for count in counts:
        inner = sorted(step - first for step in found if first < step <= first + count)
        assert len(inner) == min(points, count) - 1 and count not in inner
        assert all(abs(at - count * (k + 1) / points) <= 1 for k, at in enumerate(inner) if points <= count)
        first += count
    assert len(found) == sum(min(points, count) - 1 for count in counts)


def test_a_curve_changes_nothing_and_a_stopped_one_is_the_whole_one(
    make_run: Callable[..., Run],
) -> None:
    options: dict[str, Any] = {"epochs": 2, "max_tokens": 64, "learning_rate": 1e-3}
    plain, whole, stopped = (make_run(name, **options) for name in ("plain", "whole", "stopped"))
    train(plain)
    train(whole, curve=3)
    assert adapter_bytes(whole) == adapter_bytes(plain)
    curve = read_record(whole)["measures"]["curve"]
    assert [point["epoch"] for point in curve] == [1, 1, 2, 2]
    assert all(set(point["held_out_loss"]) == set(curve[0]["held_out_loss"]) for point in curve)
    assert read_record(plain)["measures"]["curve"] == []
    with pytest.raises(Stopped):
        train(stopped, curve=3, report=stop_at(curve[1]["step"]))
    train(stopped, curve=3, resume=True)
    assert read_record(stopped)["measures"]["curve"] == curve and adapter_bytes(stopped) == adapter_bytes(plain)
