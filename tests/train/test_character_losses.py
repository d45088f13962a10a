"""The held-out loss of each character is the plain cross-entropy of its replies, however samples are packed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from shapes import SHAPES

from mrp.config import Run
from mrp.evaluate.held_out import Mean, character_losses, overall
from mrp.models.load import hardware, load_model
from mrp.render import ChatTemplate
from mrp.train.steps import Item, plan_training


@pytest.fixture
def items(make_run: Callable[..., Run]) -> list[Item]:
    plan = plan_training(make_run(), ChatTemplate(SHAPES["chatml"].tokenizer()))
    return [*plan.dev, *plan.held_out]


@pytest.fixture
def model(tiny_base: Any) -> Any:
    return load_model(tiny_base, hardware("fp32"))


def test_they_equal_the_cross_entropy_of_each_sample_alone(model: Any, items: list[Item]) -> None:
    sums: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for item in items:
        ids = torch.tensor([item.rendered.input_ids])
        with torch.no_grad():
            logits = model(ids.to(model.device)).logits[0, :-1].cpu()
        losses = F.cross_entropy(logits, ids[0, 1:], reduction="none")
        learnt = torch.tensor(item.rendered.loss[1:])
        sums[item.sample.character] += float(losses[learnt].sum())
        counts[item.sample.character] += int(learnt.sum())
    found = character_losses(model, items, 256, hardware("fp32"))
    assert list(found) == sorted(sums) and len(found) == 3
    for name, mean in found.items():
        assert mean.tokens == counts[name]
        assert mean.loss == pytest.approx(sums[name] / counts[name], rel=1e-5)


def test_packing_changes_nothing_but_the_last_digits(model: Any, items: list[Item]) -> None:
    longest = max(len(item.rendered.input_ids) for item in items)
    packed, alone = (character_losses(model, items, length, hardware("fp32")) for length in (1024, longest))
    for name in packed:
        assert packed[name].tokens == alone[name].tokens
        assert packed[name].loss == pytest.approx(alone[name].loss, rel=1e-5)


def test_every_token_is_told_and_the_model_stays_as_it_was(model: Any, items: list[Item]) -> None:
    model.train()
    told: list[int] = []
    character_losses(model, items, 256, hardware("fp32"), tick=told.append)
    assert len(told) > 1 and sum(told) >= sum(len(item.rendered.input_ids) for item in items)
    assert model.training


def test_it_ends_early_when_asked(model: Any, items: list[Item]) -> None:
    told: list[int] = []
    character_losses(model, items, 256, hardware("fp32"), tick=told.append, stop=lambda: len(told) == 2)
    assert len(told) == 2


def test_overall_counts_each_character_the_same() -> None:
    assert overall({"a": Mean(1.0, 1000), "b": Mean(2.0, 1)}) == 1.5
