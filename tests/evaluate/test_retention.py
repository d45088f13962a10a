"""What was forgotten: zero for the base itself, KL as computed by hand, an adapter switched off and on."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("scipy")

import torch

from mrp.config import TrainOptions
from mrp.data.own_replies import Reply as Own
from mrp.data.own_replies import _scene
from mrp.evaluate.identity import Judge
from mrp.evaluate.kept import Kept
from mrp.evaluate.retention import compare_on_replies, render_replies, retention_figures
from mrp.models.load import hardware, load_model, load_tokenizer
from mrp.models.loss import make_batch, token_losses
from mrp.render import ChatTemplate
from mrp.train.lora import adapter_parameters, add_adapter

SCENES = [_scene(Own(f"key{k}", prompt, reply, False), k) for k, (prompt, reply) in enumerate(
    [("What is 2 + 2?", "It is 4."), ("Name a colour.", "Blue is a colour.")], 1)]  # fmt: skip


def test_the_base_forgot_nothing_and_a_moved_model_did(tiny_base: Path, tmp_path: Path) -> None:
    on = hardware("fp32")
    template = ChatTemplate(load_tokenizer(tiny_base))
    replies = render_replies(template, SCENES, 512)
    base = Judge(load_model(tiny_base, on), on, "base", 512)
    model = add_adapter(load_model(tiny_base, on), TrainOptions(rank=2, alpha=2), 0)
    tuned = Judge(model.eval(), on, "tuned", 512)
    with Kept(tmp_path / "a.jsonl") as kept:
        same = retention_figures(compare_on_replies(base, tuned, "base", replies, kept), seed=0)
    assert same and same["forgot"]["value"] == pytest.approx(0, abs=1e-5) and same["kl"]["value"] < 1e-5
    with torch.no_grad():
        for parameter in adapter_parameters(add_trainable(model)).values():
            parameter.add_(0.05)
    model.requires_grad_(False)
    with Kept(tmp_path / "b.jsonl") as kept:
        moved = compare_on_replies(base, tuned, "base", replies, kept)
    with Kept(tmp_path / "c.jsonl") as kept:
        switched = compare_on_replies(None, tuned, "base", replies, kept)
    for row, other, one in zip(moved, switched, replies, strict=True):
        assert row == pytest.approx(other, rel=1e-3)
        batch = make_batch([[one]])
        with torch.no_grad():
            losses = [float(token_losses(judge.model, batch).sum()) for judge in (base, tuned)]
        assert row[:2] == pytest.approx(losses, rel=1e-4)
        assert row[2] == pytest.approx(kl_by_hand(base, tuned, one), rel=1e-3) and row[2] > 0.01
        assert row[3] == one.labelled


def add_trainable(model: object) -> object:
    for name, parameter in model.named_parameters():  # type: ignore[attr-defined]
        parameter.requires_grad_("lora_" in name)
    return model


def kl_by_hand(base: Judge, tuned: Judge, one: object) -> float:
    ids = torch.tensor([one.input_ids])  # type: ignore[attr-defined]
    total = 0.0
    with torch.no_grad():
        p, q = (torch.softmax(j.model(input_ids=ids).logits[0].double(), -1) for j in (base, tuned))
    for k, learnt in enumerate(one.loss):  # type: ignore[attr-defined]
        if learnt:
            total += float((p[k - 1] * (p[k - 1] / q[k - 1]).log()).sum())
    return total


def test_figures_weigh_tokens() -> None:
    found = retention_figures([(2.0, 4.0, 1.0, 1), (6.0, 6.0, 3.0, 3)], seed=0)
    assert found and found["base"]["value"] == 2 and found["tuned"]["value"] == 2.5
    assert found["forgot"]["value"] == 0.5 and found["kl"]["value"] == 1 and found["replies"] == 2
    assert retention_figures([], seed=0) is None


def test_the_lines_are_what_the_figures_are_made_of() -> None:
    found = retention_figures([(4.0, 5.0, 0.5, 2), (6.0, 10.0, 0.5, 4)], 0)
    assert found is not None and found["lines"] == [[4.0, 5.0, 2], [6.0, 10.0, 4]]
    assert found["forgot"]["value"] == pytest.approx(5 / 6)
