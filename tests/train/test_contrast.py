"""The contrast: the same reply under another identity, through the same renderer, packed as if it were alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import yaml
from shapes import SHAPES
from tiny_runs import PEOPLE, measured, read_log, read_record, result, stop_at

from mrp.config import Run, TrainOptions, load_run
from mrp.data.build import build_data
from mrp.errors import InputError, Stopped
from mrp.models.load import hardware, load_model
from mrp.models.loss import make_batch, token_losses
from mrp.render import ChatTemplate
from mrp.train.contrast import Twins, contrast
from mrp.train.loop import train
from mrp.train.lora import adapter_parameters, add_adapter
from mrp.train.passes import PlainPasses
from mrp.train.steps import Item, Plan, Step, plan_training

MakeRun = Callable[..., Run]


def template() -> ChatTemplate:
    return ChatTemplate(SHAPES["chatml"].tokenizer())


def planned(run: Run) -> Plan:
    return plan_training(run, template())


def items_of(plan: Plan) -> list[Item]:
    return [item for step in plan.steps for item in step.items]


# -- twins --------------------------------------------------------------------------------------------------------


def test_a_twin_is_the_sample_with_another_persona_and_nothing_else(make_run: MakeRun) -> None:
    run = make_run(contrast=0.5, epochs=1)
    shape = template()
    for item in items_of(planned(run)):
        assert item.twin and item.twin.identity != item.sample.character
        own = "".join(text for text, _ in shape.texts(item.rendered))
        other = "".join(text for text, _ in shape.texts(item.twin.rendered))
        assert PEOPLE[item.sample.character][1] in own
        assert other == own.replace(PEOPLE[item.sample.character][1], PEOPLE[item.twin.identity][1])
        learnt = [
            [token for token, labelled in zip(each.input_ids, each.loss, strict=True) if labelled]
            for each in (item.rendered, item.twin.rendered)
        ]
        assert learnt[0] == learnt[1]


def test_the_other_is_drawn_by_seed_epoch_and_sample_alone(make_run: MakeRun) -> None:
    run = make_run(contrast=0.5)
    sample = planned(run).samples[0]
    drawn = [Twins(run, template()).other(sample, epoch) for epoch in range(40)]
    assert drawn == [Twins(run, template()).other(sample, epoch) for epoch in range(40)]
    assert set(drawn) == set(PEOPLE) - {sample.character}
    seeded = load_run(run.path, {"seed": "1"})
    assert drawn != [Twins(seeded, template()).other(sample, epoch) for epoch in range(40)]


def test_twins_are_counted_and_fit_into_rows_of_their_own(make_run: MakeRun) -> None:
    run, plain = make_run(contrast=0.5, epochs=1), make_run("plain", epochs=1)
    with_twins, without = planned(run), planned(plain)
    assert [item.sample.id for item in items_of(with_twins)] == [item.sample.id for item in items_of(without)]
    for step in with_twins.steps:
        for row in step.rows:
            for side in ([i.rendered for i in row], [i.twin.rendered for i in row if i.twin]):
                assert sum(len(each.input_ids) for each in side) <= run.config.train.max_tokens
    tokens = [sum(step.tokens for step in plan.steps) for plan in (with_twins, without)]
    assert 1.9 * tokens[1] < tokens[0] < 2.1 * tokens[1]
    record = train(run)
    assert record["measures"]["tokens"] == tokens[0]
    count = len(items_of(with_twins))
    assert record["data"]["contrast"] == {"with_twin": count, "samples": count}


def test_a_sample_that_is_cut_elsewhere_under_another_persona_has_no_twin(make_run: MakeRun) -> None:
    lines = [{"speaker": who, "text": f"line {k} " + "word " * 9} for k in range(8) for who in ("other", "tang")]
    run = make_run(contrast=0.5, epochs=1, max_tokens=160, more=[{"turns": lines}], dev=0)
    text = run.cast_path.read_text(encoding="utf-8")
    run.cast_path.write_text(text.replace("proud and quick.", "proud and quick. " + "Ha! " * 12), encoding="utf-8")
    run = load_run(run.path)
    items = items_of(planned(run))
    alone = [item for item in items if item.twin is None]
    assert 0 < len(alone) < len(items)
    record = train(run)
    assert record["data"]["contrast"] == {"with_twin": len(items) - len(alone), "samples": len(items)}
    assert [name is None for row in read_log(run) for name in row["against"]] == [i.twin is None for i in items]


def test_a_cast_of_one_has_nobody_to_contrast_with(make_run: MakeRun) -> None:
    run = make_run(contrast=0.5, shared=0)
    cast = yaml.safe_load(run.cast_path.read_text(encoding="utf-8"))
    cast["characters"] = cast["characters"][:1]
    run.cast_path.write_text(yaml.safe_dump(cast), encoding="utf-8")
    alone = load_run(run.path)
    build_data(alone)
    with pytest.raises(InputError, match="two characters"):
        train(alone)


# -- the term -----------------------------------------------------------------------------------------------------


def test_the_term_is_the_logistic_loss_of_telling_the_two_identities_apart(make_run: MakeRun) -> None:
    items = [item for item in items_of(planned(make_run(contrast=0.5, epochs=1))) if item.rendered.replies == 2][:2]
    assert len(items) == 2
    torch.manual_seed(0)
    counts = [item.rendered.labelled for item in items]
    own, other = torch.rand(sum(counts)), torch.rand(sum(counts))
    expected, at = [], 0
    for item in items:
        lengths, before = [], False
        for labelled in item.rendered.loss:
            if labelled and not before:
                lengths.append(0)
            if labelled:
                lengths[-1] += 1
            before = labelled
        for length in lengths:
            gain = (other[at : at + length] - own[at : at + length]).sum()
            expected.append(F.softplus(-gain))
            at += length
    torch.testing.assert_close(contrast(own, items, other), torch.stack(expected))
    without = [Item(items[0].sample, items[0].rendered), items[1]]
    found = contrast(own, without, other[counts[0] :])
    torch.testing.assert_close(found, torch.stack(expected[2:]))


def test_packed_and_alone_the_two_losses_have_the_same_gradient(make_run: MakeRun) -> None:
    run = make_run(contrast=0.5, epochs=1)
    items = tuple(items_of(planned(run))[:6])
    model = add_adapter(load_model(run.path.parent / run.config.base, hardware("fp32")), TrainOptions(rank=4), 0)
    weights = adapter_parameters(model)
    torch.manual_seed(5)
    for weight in weights.values():
        weight.data.normal_(std=0.1)
    passes = PlainPasses(model, weights, hardware("fp32"), "", run.config.train)
    found = []
    for rows in ([items[:3], items[3:]], [(item,) for item in items]):
        passes.begin_step()
        step = Step(0, tuple(rows), True)
        terms = []
        for row in rows:
            losses = passes.learn([row], step, 0)
            assert losses.contrast is not None
            terms.append(losses.contrast)
        found.append((torch.cat(terms), {name: weight.grad.clone() for name, weight in weights.items()}))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-4, rtol=1e-4)
    for name, grad in found[0][1].items():
        torch.testing.assert_close(grad, found[1][1][name], atol=1e-5, rtol=1e-3)
    with torch.no_grad():  # the value itself, from the unpacked losses
        first = items[0]
        own, other = (
            token_losses(model, make_batch([[each]]))
            for each in (first.rendered, first.twin.rendered)  # type: ignore[union-attr]
        )
    torch.testing.assert_close(found[0][0][: first.rendered.replies], contrast(own, [first], other), atol=1e-4, rtol=0)


# -- in training --------------------------------------------------------------------------------------------------


def test_with_a_contrast_replies_depend_more_on_who_is_told(make_run: MakeRun) -> None:
    """Against a weight so small that it only measures: the same pairs in the same order."""
    options: dict[str, Any] = {"epochs": 6, "learning_rate": 1e-2, "dev": 0}
    terms = []
    for name, weight in (("with", 1.0), ("without", 1e-9)):
        run = make_run(name, contrast=weight, **options)
        train(run)
        log = read_log(run)
        assert all(set(row["against"]) <= set(PEOPLE) for row in log)
        terms.append([row["contrast"] for row in log if row["epoch"] >= 5])
    assert len(terms[0]) == len(terms[1]) > 4
    assert sum(terms[0]) < 0.7 * sum(terms[1])


def test_a_contrast_of_zero_is_the_training_without(make_run: MakeRun, uninterrupted: MakeRun) -> None:
    run = make_run(contrast=0, epochs=1)
    train(run)
    assert measured(run) == measured(uninterrupted(epochs=1))
    assert "contrast" not in read_log(run)[0] and "against" not in read_log(run)[0]


def test_stopped_and_resumed_the_negatives_are_the_same(make_run: MakeRun, uninterrupted: MakeRun) -> None:
    whole, stopped = uninterrupted(contrast=0.5), make_run(contrast=0.5)
    done = 0
    for step in (2, len(read_log(whole)) - 1):
        with pytest.raises(Stopped):
            train(stopped, resume=done > 0, report=stop_at(step - done))
        done = step
    train(stopped, resume=True)
    assert result(stopped) == result(whole)
    assert [row["against"] for row in read_log(stopped)] == [row["against"] for row in read_log(whole)]
    assert read_record(stopped)["kernels"] == "plain"
