"""The fast path's second loss, a reply against its twin under another identity, is the plain path's."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
import torch
from test_fast_engine import lora_model, sample

from mrp.config import TrainOptions
from mrp.data.samples import Sample
from mrp.models.load import Hardware
from mrp.render import Rendered
from mrp.train.fast.rows import Fields
from mrp.train.fast.second import second_loss
from mrp.train.lora import adapter_parameters
from mrp.train.passes import FastPasses, Losses, PlainPasses
from mrp.train.steps import Item, Plan, Step, Twin

NAKED = Hardware("cpu", torch.float64, None)


def two_replies(lead: int, seed: int, lengths: tuple[int, int] = (4, 7)) -> Rendered:
    """A sample whose two replies are told by `seed`, after a head of `lead` tokens."""
    replies = sample(sum(lengths) + 3, seed).input_ids
    loss = [False] * lead + [True] * lengths[0] + [False] * 3 + [True] * lengths[1]
    return Rendered(sample(lead, 100 + lead).input_ids + replies, loss)


def item(number: int, rendered: Rendered, twin: Rendered | None = None) -> Item:
    told = Sample(f"s{number}", f"s{number}", "tang", "scene", (), (), (), "")
    return Item(told, rendered, Twin("bajie", twin) if twin else None)


PAIRED = [item(k, two_replies(5 + k, k), two_replies(12 - k, k)) for k in range(4)]
ALONE = item(8, sample(9, 8))
ROWS = [(PAIRED[0], ALONE, PAIRED[1]), (item(9, sample(7, 9)),), (PAIRED[2],), (PAIRED[3],)]
STEP = Step(0, tuple(ROWS), True)
PULL = 0.7


Found = tuple[list[Losses], dict[str, Any]]


def learnt(passes: Any, weights: dict[str, Any], together: int) -> Found:
    passes.begin_step()
    found = [passes.learn(ROWS[at : at + together], STEP, 5) for at in range(0, len(ROWS), together)]
    return found, {name: weight.grad.clone() for name, weight in weights.items()}


def by_autograd(model: Any, together: int) -> Found:
    weights = adapter_parameters(model)
    return learnt(PlainPasses(model, weights, NAKED, "", TrainOptions(contrast=PULL)), weights, together)


def fast_passes(model: Any, together: int, **given: Any) -> FastPasses:
    plan = Plan([STEP], [], [], [ALONE], [], [], 0)
    return FastPasses(model, TrainOptions(contrast=PULL, micro_batch=together, **given), plan, 1)


@pytest.mark.parametrize("together", [1, 2, 4])
@pytest.mark.parametrize("how", [{}, {"checkpointing": True}, {"checkpointing": True, "offload": True}], ids=str)
def test_losses_terms_and_gradients_are_the_plain_paths(
    together: int, how: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mrp.train.fast.engine.SMALL_CHUNK", 16)  # replies lie across chunks
    monkeypatch.setattr("mrp.train.fast.engine.CHUNK", 16)
    monkeypatch.setattr("mrp.train.fast.engine.TILE", 24)
    model = lora_model()
    expected = by_autograd(model, together)
    found = learnt(fast_passes(model, together, **how), adapter_parameters(model), together)
    for mine, other in zip(found[0], expected[0], strict=True):
        torch.testing.assert_close(mine.values.double(), other.values.double(), rtol=1e-6, atol=1e-6)
        assert torch.equal(mine.item, other.item)
        assert (mine.contrast is None) == (other.contrast is None)
        if mine.contrast is not None and other.contrast is not None:
            torch.testing.assert_close(mine.contrast.double(), other.contrast.double(), rtol=1e-5, atol=1e-6)
    assert sum(len(losses.contrast) for losses in found[0] if losses.contrast is not None) == STEP.replies == 8
    for name, grad in expected[1].items():
        assert grad.abs().max() > 0, name
        torch.testing.assert_close(found[1][name], grad, rtol=1e-5, atol=1e-5 * float(grad.abs().max()), msg=name)


def test_without_twins_the_pass_is_the_one_without_a_second_loss() -> None:
    """And with them gradients are others, so the test above would see if they did not count."""
    rows = tuple(tuple(Item(i.sample, i.rendered) for i in row) for row in ROWS)
    step = Step(0, rows, True)
    found = []
    for contrast in (PULL, 0.0):
        model = lora_model()
        options = TrainOptions(contrast=contrast, micro_batch=4)
        fast = FastPasses(model, options, Plan([step], [], [], [], [], [], 0), 1)
        assert fast.engine.shape.replies == 0
        fast.begin_step()
        assert fast.learn(rows, step, 5).contrast is None
        found.append(fast.engine.adapter.grads.clone())
    assert torch.equal(*found)
    model = lora_model()
    with_twins = fast_passes(model, 4)
    learnt(with_twins, adapter_parameters(model), 4)
    assert not torch.allclose(with_twins.engine.adapter.grads, found[0], rtol=1e-2)


def test_weights_are_what_autograd_gives_a_token() -> None:
    """Two replies with twins, one without, one slot unused; extreme differences do not overflow."""
    parts = torch.tensor([0, 0, 3, 1, 1, 1, 4, 4, 5, 5, 5, 3])  # 3: no twin, and an unused slot; 4 and 5: twins
    losses = torch.tensor([1.0, 2, 3, 900, 5, 6, 2, 2, 1, 1, 1, 0], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([0.25] * 6 + [0.0] * 6, dtype=torch.float64)
    unused = torch.zeros(0, dtype=torch.long)
    fields = Fields(*[unused] * 5, weight, parts, unused, unused, torch.tensor([0.5, 0.5, 0], dtype=torch.float64))
    gaps = torch.stack([losses[:2].sum() - losses[6:8].sum(), losses[3:6].sum() - losses[8:11].sum()])
    ((losses * weight).sum() + 0.5 * torch.nn.functional.softplus(gaps).sum()).backward()
    found, terms = second_loss(losses.detach(), fields, 3)
    torch.testing.assert_close(found, losses.grad)
    torch.testing.assert_close(terms[:2], torch.nn.functional.softplus(gaps.detach()))
