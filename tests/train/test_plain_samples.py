"""General chat data in a training: trained and measured under its own name, and it does not choose the epoch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_runs import Heard, read_record, trained_ids

from mrp.cast import OTHER, PLAIN
from mrp.config import Run
from mrp.data.samples import Sample
from mrp.dialogue import Turn
from mrp.errors import InputError
from mrp.models.load import load_tokenizer
from mrp.render import ChatTemplate
from mrp.train.loop import train
from mrp.train.steps import plan_training

MakeRun = Callable[..., Run]
FORGOTTEN = "You are a helpful little assistant."  # what the template of the tiny base says where nothing is given


def plain_samples(count: int, name: str) -> list[Sample]:
    return [
        Sample(
            f"{name}-{n}@{PLAIN}",
            PLAIN,
            f"{name}-{n}",
            (OTHER, PLAIN),
            (Turn(OTHER, f"What is {n} + {n}?"), Turn(PLAIN, f"It is {n + n}.")),
            (False, True),
            f"{name}.jsonl:{n + 1}",
        )
        for n in range(count)
    ]


def append(path: Path, samples: list[Sample]) -> None:
    with path.open("a", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(sample.as_json()) + "\n" for sample in samples)


@pytest.fixture
def mixed_run(make_run: MakeRun) -> Run:
    run = make_run(dev=0.2, epochs=2)
    append(run.data / "train.jsonl", plain_samples(10, "general"))
    append(run.data / "held-out.jsonl", plain_samples(3, "unseen"))
    return run


def test_plain_replies_are_trained_and_measured_under_their_own_name(mixed_run: Run) -> None:
    heard = Heard()
    train(mixed_run, report=heard)
    record = read_record(mixed_run)["measures"]
    everybody = {"tang", "wukong", "bajie", PLAIN}
    assert record["held_out_loss"].keys() == everybody
    for epoch in (1, 2):
        assert {f"general-{n}@{PLAIN}" for n in range(10)} <= set(trained_ids(mixed_run, epoch))
    for epoch in record["epochs"]:
        assert epoch["train_loss"].keys() == epoch["held_out_loss"].keys() == everybody
    before_and_after = record["held_out_loss"][PLAIN]
    assert before_and_after["after"] < before_and_after["before"]  # it was trained on sums like those
    assert any(f"{PLAIN} " in line for line in heard.lines if "held-out" in line)


def test_plain_replies_choose_no_epoch(mixed_run: Run) -> None:
    plan = plan_training(mixed_run, ChatTemplate(load_tokenizer(Path(mixed_run.config.base))))
    assert plan.dev_samples and all(s.character != PLAIN for s in plan.dev_samples)
    assert sum(s.character == PLAIN for s in plan.samples) == 10


def test_plain_replies_are_learnt_as_the_base_is_asked(mixed_run: Run) -> None:
    template = ChatTemplate(load_tokenizer(Path(mixed_run.config.base)))
    plan = plan_training(mixed_run, template)
    for item in (i for step in plan.steps for row in step.rows for i in row):
        shown = "".join(text for text, _ in template.texts(item.rendered))
        assert (FORGOTTEN in shown) == (item.sample.character == PLAIN)


def test_somebody_else_out_of_the_cast_is_still_refused(mixed_run: Run) -> None:
    stranger = plain_samples(1, "stranger")[0].as_json() | {"character": "nobody"}
    with (mixed_run.data / "train.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(stranger) + "\n")
    with pytest.raises(InputError, match="samples of nobody, not in the cast"):
        train(mixed_run)
