"""Law 5: the order asked for is the order trained, with packing on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
from tiny_runs import adapter_bytes, measured, read_log, read_record, train_samples, trained_ids

from mrp.config import Run
from mrp.data.samples import in_order
from mrp.errors import InputError
from mrp.train.loop import train

MakeRun = Callable[..., Run]


@pytest.mark.parametrize(
    ("order", "replay"),
    [("sequential", 0.0), ("shuffled", 0.0), ("round-robin", 0.0), ("blocked", 0.0), ("blocked", 0.4)],
)
def test_the_order_asked_for_is_the_order_trained(make_run: MakeRun, order: str, replay: float) -> None:
    run = make_run(order=order, replay=replay)
    record = train(run)
    dev = set(record["data"]["dev_scenes"])
    asked = [s for s in train_samples(run) if s.scene not in dev]
    assert trained_ids(run, 1) == [s.id for s in asked]
    assert trained_ids(run, 2) == [s.id for s in in_order(asked, run, 1)]
    assert (trained_ids(run, 1) == trained_ids(run, 2)) == (order == "sequential")
    assert (len(set(trained_ids(run, 1))) < len(trained_ids(run, 1))) == bool(replay)
    trained = trained_ids(run)
    digest = hashlib.sha256("".join(f"{i}\n" for i in trained).encode()).hexdigest()
    assert record["order"] == {
        "asked": order,
        "file": "steps.jsonl",
        "samples_trained": len(trained),
        "sha256": digest,
    }
    packed = [row for row in read_log(run) if len(row["samples"]) > 1]
    assert packed and all(row["tokens"] <= run.config.train.max_tokens for row in packed)


def test_the_shuffled_order_depends_on_the_seed_alone(make_run: MakeRun) -> None:
    runs = [make_run(name, seed=seed, epochs=1) for name, seed in (("a", 3), ("b", 3), ("c", 4))]
    for run in runs:
        train(run)
    assert trained_ids(runs[0]) == trained_ids(runs[1])
    assert adapter_bytes(runs[0]) == adapter_bytes(runs[1])
    assert trained_ids(runs[0]) != trained_ids(runs[2])


@pytest.mark.parametrize(("built", "asked"), [("shuffled", "sequential"), ("sequential", "shuffled")])
def test_data_built_in_the_other_order_gives_the_same_training(make_run: MakeRun, built: str, asked: str) -> None:
    other, same = make_run("other", order=built), make_run("same", order=asked)
    found, wanted = train(other, order=asked), train(same)
    assert trained_ids(other) == trained_ids(same)
    assert found["order"] == wanted["order"]
    assert measured(other) == measured(same)
    assert adapter_bytes(other) == adapter_bytes(same)
    assert found["options"] == wanted["options"]
    assert (found["origins"]["data.order"], wanted["origins"]["data.order"]) == ("flag", "file")


def test_records_of_both_orders_differ_in_the_order_alone(make_run: MakeRun) -> None:
    run = make_run(epochs=1)
    records = {order: train(run, order=order) for order in ("sequential", "shuffled")}
    assert read_record(run) == records["shuffled"]
    options = [records[order]["options"] for order in records]
    assert [o["data"].pop("order") for o in options] == ["sequential", "shuffled"]
    assert options[0] == options[1]
    assert records["sequential"]["data"] == records["shuffled"]["data"]
    assert records["sequential"]["order"] != records["shuffled"]["order"]


def test_an_unknown_order_is_refused(make_run: MakeRun) -> None:
    with pytest.raises(InputError) as caught:
        train(make_run(), order="sequentiel")
    assert "'sequentiel'" in caught.value.what and "did you mean 'sequential'?" in caught.value.fix
