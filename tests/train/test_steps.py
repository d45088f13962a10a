"""The plan of a training: what is in which step, what is left out, and the learning rate."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from shapes import SHAPES
from tiny_runs import edit_samples, train_samples

from mrp.config import Run, TrainOptions, load_run
from mrp.data.samples import read_samples
from mrp.errors import InputError
from mrp.render import ChatTemplate
from mrp.train.steps import Plan, learning_rate, plan_training

MakeRun = Callable[..., Run]


def planned(run: Run, world: int = 1) -> Plan:
    return plan_training(run, ChatTemplate(SHAPES["chatml"].tokenizer()), world)


# -- what is trained ----------------------------------------------------------------------------------------------


def test_each_epoch_trains_every_sample_once_and_rows_stay_within_their_length(make_run: MakeRun) -> None:
    run = make_run(epochs=3, accumulation=2)
    plan = planned(run)
    for epoch in range(3):
        steps = [step for step in plan.steps if step.epoch == epoch]
        assert sorted(i for step in steps for i in step.sample_ids) == sorted(s.id for s in plan.samples)
        assert [step.ends_epoch for step in steps] == [False] * (len(steps) - 1) + [True]
        assert all(len(step.rows) == 2 for step in steps[:-1])
        rows = [row for step in steps for row in step.rows]
        assert all(sum(len(item.rendered.input_ids) for item in row) <= run.config.train.max_tokens for row in rows)
        assert max(len(row) for row in rows) > 1


@pytest.mark.parametrize(("micro_batch", "accumulation", "world"), [(1, 8, 1), (8, 1, 1), (1, 4, 2), (2, 2, 2)])
def test_a_step_holds_the_same_rows_however_they_are_spread(
    make_run: MakeRun, micro_batch: int, accumulation: int, world: int
) -> None:
    plan = planned(make_run(micro_batch=micro_batch, accumulation=accumulation), world)
    assert [step.rows for step in plan.steps] == [step.rows for step in planned(make_run("two", micro_batch=8)).steps]


def test_the_dev_slice_shares_no_scene_with_training_or_held_out_data(make_run: MakeRun) -> None:
    run = make_run(dev=0.2)
    plan = planned(run)
    dev, trained = {s.scene for s in plan.dev_samples}, {s.scene for s in plan.samples}
    held = {item.sample.scene for item in plan.held_out}
    assert dev and held and not (dev & trained or dev & held or trained & held)
    assert dev | trained == {s.scene for s in train_samples(run)}
    assert held == {s.scene for s in read_samples(run.data / "held-out.jsonl")}
    assert {s.character for s in plan.dev_samples} == {"tang", "wukong", "bajie"}


def test_without_a_dev_slice_everything_is_trained(make_run: MakeRun) -> None:
    run = make_run(dev=0)
    plan = planned(run)
    assert not plan.dev_samples and plan.samples == train_samples(run)


# -- what is left out, and what stops -----------------------------------------------------------------------------


def long_scene(words: int) -> dict[str, Any]:
    turns = [("other", "Tell me all."), ("wukong", "the road is long " * words), ("other", "And?"), ("wukong", "Ha!")]
    return {"id": "long", "turns": [{"speaker": who, "text": text} for who, text in turns]}


def test_replies_longer_than_a_row_are_counted_whatever_they_are_for(make_run: MakeRun) -> None:
    run = make_run(more=[long_scene(200)], max_tokens=128)
    held = run.data / "held-out.jsonl"
    edit_samples(held, lambda row: row["turns"][-1].update(text="so it goes " * 200))
    plan = planned(run)
    found = {(entry["set"], entry["sample"]): entry["replies"] for entry in plan.left_out}
    assert found.pop(("train", "long@wukong")) == 1
    assert set(found) == {("held-out", s.id) for s in read_samples(held)}
    assert all(str(entry["source"]).rpartition(":")[2].isdigit() for entry in plan.left_out)
    trained = [i for step in plan.steps for i in step.sample_ids]
    assert trained.count("long@wukong") == 2  # its other reply, once an epoch


def test_pieces_of_long_samples_are_counted(make_run: MakeRun) -> None:
    lines = [("other", "Tell me more."), ("wukong", "the road is long " * 5)] * 8
    scene = {"id": "long", "turns": [{"speaker": who, "text": text} for who, text in lines]}
    plan = planned(make_run(more=[scene], max_tokens=256, dev=0))
    pieces = [item for row in plan.steps for r in row.rows for item in r if item.sample.id == "long@wukong"]
    assert len(pieces) // 2 == 1 + plan.pieces_cut > 1  # two epochs
    assert not plan.left_out


def test_nothing_fits(make_run: MakeRun) -> None:
    with pytest.raises(InputError) as caught:
        planned(make_run(max_tokens=32))
    assert "no sample fits" in caught.value.what and "train.max_tokens" in caught.value.fix


@pytest.mark.parametrize("file", ["train.jsonl", "held-out.jsonl"])
def test_a_sample_without_loss_stops_with_its_place(make_run: MakeRun, file: str) -> None:
    run = make_run()
    first = read_samples(run.data / file)[0]

    def mask(row: dict[str, Any]) -> None:
        if row["id"] == first.id:
            for turn in row["turns"]:
                turn["loss"] = False

    edit_samples(run.data / file, mask)
    with pytest.raises(InputError, match="nothing to learn") as caught:
        planned(run)
    assert caught.value.where == first.source


def test_a_sample_whose_only_learnt_line_is_part_of_a_masked_turn_was_trained_nowhere(make_run: MakeRun) -> None:
    scene = {"id": "two", "turns": [{"speaker": "wukong", "text": text} for text in ("Ha!", "Who is there?")]}
    run = make_run(more=[scene])

    def mask(row: dict[str, Any]) -> None:
        if row["scene"] == "two":
            row["turns"][0]["loss"] = False

    edit_samples(run.data / "train.jsonl", mask)
    with pytest.raises(InputError, match="nothing to learn in sample 'two@wukong'") as caught:
        planned(run)
    assert caught.value.where.startswith("together.jsonl:")


@pytest.mark.parametrize("flag", [{"seed": "1"}, {"data.held_out": "0.3"}])
def test_data_built_with_other_options_is_refused(make_run: MakeRun, flag: dict[str, str]) -> None:
    run = make_run()
    with pytest.raises(InputError, match="the data was built with other options") as caught:
        planned(load_run(run.path, flag))
    (key,) = flag
    assert key.rpartition(".")[2] in caught.value.what and caught.value.fix == f"mrp data build {run.path}"


def test_a_character_taken_out_of_the_cast_since_the_build_is_named(make_run: MakeRun) -> None:
    run = make_run()
    text = run.cast_path.read_text(encoding="utf-8").replace("id: bajie", "id: pigsy")
    run.cast_path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="samples of bajie, not in the cast"):
        planned(load_run(run.path))


# -- learning rate ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10, 97, 1000])
@pytest.mark.parametrize("warmup", [0.0, 0.03, 0.5, 0.99])
def test_the_rate_rises_for_two_steps_or_more_then_falls_to_zero(steps: int, warmup: float) -> None:
    rates = [learning_rate(step, steps, 0.1, TrainOptions(warmup=warmup)) for step in range(steps)]
    peak = rates.index(max(rates))
    assert all(0 < rate <= 0.1 for rate in rates)
    assert rates[0] >= 0.1 / max(3, warmup * steps + 1.5)  # not near zero, however few steps there are
    assert all(later > earlier for earlier, later in pairwise(rates[: peak + 1]))
    assert all(later < earlier for earlier, later in pairwise(rates[peak:]))
    if steps >= 2:
        assert rates[peak] == 0.1
    if steps >= 3:
        assert peak >= 2 and abs(peak - warmup * steps) <= 2


def test_the_rate_of_a_known_schedule() -> None:
    options = TrainOptions(warmup=0)
    rates = [learning_rate(step, 6, 0.1, options) for step in range(6)]
    assert rates == pytest.approx([0.1 / 3, 0.2 / 3, 0.1, 0.1 * 0.853553, 0.05, 0.1 * 0.146447], rel=1e-5)
    assert learning_rate(999, 1000, 0.1, options) < 1e-6
