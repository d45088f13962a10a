"""Voices through the fast kernels learn what they learn through transformers, hooks and autograd."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
import torch
from test_fast_engine import lora_model, sample
from test_voices import VOICES, result_with_voices, voice_weights
from tiny_runs import measured, read_log, read_record, stop_at

from mrp.config import Run, TrainOptions
from mrp.data.samples import Sample
from mrp.errors import Stopped
from mrp.evaluate.held_out import character_losses
from mrp.models.load import Hardware
from mrp.models.loss import make_batch, token_losses
from mrp.models.voices import VoiceBank, new_voices
from mrp.render import Rendered
from mrp.train.contrast import contrast
from mrp.train.fast_voices import FastVoicePasses
from mrp.train.loop import train
from mrp.train.passes import with_twins
from mrp.train.processes import Processes
from mrp.train.stages import VoicePasses, voice_stage
from mrp.train.steps import Item, Plan, Step, Twin

MakeRun = Callable[..., Run]
NAKED = Hardware("cpu", torch.float64, None)
IDS = ["tang", "wukong", "bajie"]


def row(who: str, *lengths: int) -> tuple[Item, ...]:
    return tuple(
        Item(Sample(f"{who}{n}", who, who, (), (), (), ""), sample(n, 10 * IDS.index(who) + n)) for n in lengths
    )


def step(*rows: tuple[Item, ...]) -> Step:
    return Step(1, rows, True, 1, {each[0].sample.character: (0, 2) for each in rows})


ALL = step(row("tang", 9, 14), row("wukong", 20), row("bajie", 5, 6, 7))
SOME = step(row("tang", 11), row("bajie", 12, 3))  # wukong waits
HELD_OUT = [item for who in IDS for item in row(who, 8, 13)]
PLAN = Plan([ALL, SOME], [], [], [], HELD_OUT, [], 0)


def voiced(model: Any, size: float = 0.1) -> VoiceBank:
    """Voices that already say something, over a frozen adapter."""
    model.requires_grad_(False)
    bank = new_voices(model, IDS, 3, 16, seed=0)
    for number, voice in enumerate(bank.voices.values()):
        voice.double()
        generator = torch.Generator().manual_seed(number)
        for layer in voice.a:
            voice.b[layer].data = size * torch.randn(voice.b[layer].shape, generator=generator, dtype=torch.float64)
    return bank


def learnt(passes: Any, bank: VoiceBank, of: Step) -> tuple[Any, dict[str, Any]]:
    passes.begin_step()
    losses = passes.learn(of.rows, of, 5)
    return losses, {name: None if w.grad is None else w.grad.clone() for name, w in bank.parameters().items()}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("of", [ALL, SOME], ids=["all speak", "one waits"])
@pytest.mark.parametrize("changes", [{}, {"family": "Qwen2"}, {"tie_word_embeddings": True, "head_dim": 16}], ids=str)
def test_losses_and_gradients_are_autograds(changes: dict[str, Any], of: Step, checkpointing: bool) -> None:
    model = lora_model(**changes)
    bank = voiced(model)
    options = TrainOptions(checkpointing=checkpointing)
    expected, grads = learnt(VoicePasses(model, bank, NAKED, "", TrainOptions(checkpointing=False)), bank, of)
    fast = FastVoicePasses(model, bank, options, PLAN, 1)
    found, ours = learnt(fast, bank, of)
    torch.testing.assert_close(found.values.double(), expected.values.double(), rtol=1e-6, atol=1e-6)
    assert torch.equal(found.item, expected.item)
    for name, grad in grads.items():
        if grad is None:
            assert float(ours[name].abs().max()) == 0, name  # the stage takes it away
            continue
        assert grad.abs().max() > 0, name
        torch.testing.assert_close(ours[name], grad, rtol=1e-5, atol=1e-5 * float(grad.abs().max()), msg=name)
    again, same = learnt(fast, bank, of)
    assert torch.equal(again.values, found.values) and all(torch.equal(same[name], ours[name]) for name in ours)
    with torch.no_grad(), bank.speaking([None]):  # laid out anew, the model is what it was
        batch = fast_batch(of)
        torch.testing.assert_close(
            token_losses(model, batch), token_losses(lora_model(**changes), batch), atol=1e-6, rtol=0
        )


def fast_batch(of: Step) -> Any:
    return make_batch([[item.rendered for item in each] for each in of.rows])


def with_twins_of(own: tuple[Item, ...], other: str, head: int) -> tuple[Item, ...]:
    """A row whose samples have twins under `other`, with another head; the last sample has none."""
    found = []
    for each in own[:-1]:
        start = each.rendered.loss.index(True)
        learnt = each.rendered.input_ids[start:]
        twin = Rendered(sample(head, head).input_ids + learnt, [False] * head + each.rendered.loss[start:])
        found.append(dataclasses.replace(each, twin=Twin(other, twin)))
    return (*found, own[-1])


def plain_with_twins(model: Any, bank: VoiceBank, of: Step, pull: float) -> tuple[Any, Any, dict[str, Any]]:
    """Own losses, terms and gradients by autograd: a twin's row is spoken by the other's voice."""
    twins = [[item.twin for item in each if item.twin] for each in of.rows]
    speakers = [each[0].sample.character for each in of.rows] + [each[0].identity for each in twins if each]
    items = [item for each in of.rows for item in each]
    batch = make_batch(with_twins(of.rows))
    own = sum(item.rendered.labelled for item in items)
    for weight in bank.parameters().values():
        weight.grad = None
    bank.is_training = True
    with bank.speaking(speakers):
        losses = token_losses(model, batch)
    bank.is_training = False
    loss = (losses[:own] / torch.bincount(batch.row)[batch.row[:own]]).sum()
    terms = contrast(losses[:own], items, losses[own:])
    at = 0
    for each in twins:
        count = sum(twin.rendered.replies for twin in each)
        loss = loss + pull * terms[at : at + count].mean() if count else loss
        at += count
    loss.backward()
    grads = {name: torch.zeros_like(w) if w.grad is None else w.grad for name, w in bank.parameters().items()}
    return losses[:own].detach(), terms.detach(), {name: grad.clone() for name, grad in grads.items()}


def test_rows_with_twins_teach_both_voices_what_autograd_would() -> None:
    """Wukong has no row of his own here and speaks two rows of twins; bajie's row has none."""
    model = lora_model()
    bank = voiced(model)
    of = step(with_twins_of(row("tang", 9, 14, 8), "wukong", 6), row("bajie", 5, 7))
    more = step(with_twins_of(row("tang", 10, 6), "bajie", 9), with_twins_of(row("wukong", 12, 8), "tang", 4))
    plan = Plan([of, more], [], [], [], HELD_OUT, [], 0)
    options = TrainOptions(voice_rows=2, max_tokens=32)
    fast = FastVoicePasses(model, bank, options, plan, 1, contrast=0.7)
    assert fast.engine.shape.rows == 4
    for each in (of, more):
        losses, terms, grads = plain_with_twins(model, bank, each, 0.7)
        found, ours = learnt(fast, bank, each)
        assert found.contrast is not None and len(terms) == each.replies
        torch.testing.assert_close(found.values.double(), losses.double(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found.contrast.double(), terms.double(), rtol=1e-5, atol=1e-6)
        for name, grad in grads.items():
            atol = 1e-5 * float(grad.abs().max())
            torch.testing.assert_close(ours[name], grad, rtol=1e-5, atol=atol, msg=name)
        assert all(float(ours[name].abs().max()) > 0 for name in ours if name.startswith("wukong") or each is more)


def test_gradients_under_dropout_are_the_slope_of_the_losses() -> None:
    """Weighed losses of a pass along a random direction of the voices' weights; the same seed drops the same."""
    bank = voiced(model := lora_model(0.3))
    fast = FastVoicePasses(model, bank, TrainOptions(dropout=0.3), PLAN, 1)
    weights = bank.parameters()
    generator = torch.Generator().manual_seed(3)
    direction = {name: torch.randn(w.shape, generator=generator, dtype=torch.float64) for name, w in weights.items()}
    losses, grads = learnt(fast, bank, ALL)
    counts = torch.tensor([sum(item.rendered.labelled for item in each) for each in ALL.rows])
    weighing = torch.repeat_interleave(1 / counts.double(), counts)

    def at(distance: float) -> float:
        kept = {name: w.detach().clone() for name, w in weights.items()}
        with torch.no_grad():
            for name, w in weights.items():
                w.add_(direction[name], alpha=distance)
            found = float((learnt(fast, bank, ALL)[0].values * weighing).sum())
            for name, w in weights.items():
                w.copy_(kept[name])
        return found

    slope = sum(float((grads[name] * d).sum()) for name, d in direction.items())
    assert slope == pytest.approx((at(1e-7) - at(-1e-7)) / 2e-7, rel=1e-5)
    assert not torch.equal(fast.learn(ALL.rows, ALL, 6).values, losses.values)


def test_a_voice_that_waits_is_left_as_it_is() -> None:
    model = lora_model()
    options = TrainOptions(voice_rank=3)
    stage = voice_stage(model, IDS, 1, options, 0, NAKED, PLAN, Processes())
    assert stage.bank
    for voice in stage.bank.voices.values():
        voice.double()
    stage.passes = FastVoicePasses(model, stage.bank, options, PLAN, 1)
    for number, of in enumerate((ALL, SOME, ALL)):
        before = {name: weight.detach().clone() for name, weight in stage.weights.items()}
        stage.set_rates(of, options)
        stage.passes.begin_step()
        stage.passes.learn(of.rows, of, number)
        assert stage.reduce(of, 1.0) > 0
        stage.update.step()
        moved = {
            name.partition("/")[0] for name, weight in stage.weights.items() if not torch.equal(weight, before[name])
        }
        assert moved == set(of.places)
    state: Any = stage.update.state_dict()["state"]  # by number, in the order of the weights
    done = {name.partition("/")[0]: int(state[number]["step"]) for number, name in enumerate(stage.weights)}
    assert done == {"tang": 3, "wukong": 2, "bajie": 3}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_each_row_is_measured_with_the_voice_of_its_character(dropout: float) -> None:
    model = lora_model(dropout)
    bank = voiced(model)
    given: Any = [HELD_OUT, 32, NAKED]
    expected = character_losses(model, *given, speaking=bank.speaking)
    silent = character_losses(model, *given)
    fast = FastVoicePasses(model, bank, TrainOptions(dropout=dropout, max_tokens=32), PLAN, 1)
    found = character_losses(fast.measured, *given, speaking=bank.speaking)
    for who in IDS:
        assert found[who].loss == pytest.approx(expected[who].loss, rel=1e-6)
        assert abs(found[who].loss - silent[who].loss) > 0.01


# -- in training --------------------------------------------------------------------------------------------------


@pytest.fixture
def fast_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("only on a machine without a GPU: flash attention wants bf16")

    def chosen(model: Any, bank: Any, options: Any, _: Any, plan: Any, world: int, __: Any, contrast: float) -> Any:
        if options.kernels == "plain":
            return None, "the run asks for them"
        return FastVoicePasses(model, bank, options, plan, world, contrast), ""

    monkeypatch.setattr("mrp.train.stages.fast_voice_passes", chosen)


@pytest.mark.usefixtures("fast_on_cpu")
def test_voices_trained_fast_are_those_trained_plainly(make_run: MakeRun, uninterrupted: MakeRun) -> None:
    options = VOICES | {"voice_rows": 2, "dev": 0}
    run, plain = make_run(**options), uninterrupted(kernels="plain", **options)
    record = train(run)
    assert (record["voice_kernels"], read_record(plain)["voice_kernels"]) == ("fast", "plain")
    assert [r["samples"] for r in read_log(run)] == [r["samples"] for r in read_log(plain)]
    for found, expected in zip(measured(run), measured(plain), strict=True):
        assert found == pytest.approx(expected, rel=2e-3)
    theirs = voice_weights(plain)
    for who, own in voice_weights(run).items():
        assert max(float((value - theirs[who][name]).abs().max()) for name, value in own.items()) < 1e-3


@pytest.mark.usefixtures("fast_on_cpu")
def test_stopped_and_resumed_fast_voices_end_the_same(make_run: MakeRun) -> None:
    options = VOICES | {"dropout": 0.2, "voice_rows": 2}
    whole, stopped = make_run("whole", **options), make_run("stopped", **options)
    train(whole)
    stages = [each.get("voices") for each in read_log(whole)]
    done = 0
    for at in (stages.count(None), stages.count(None) + 2):
        with pytest.raises(Stopped):
            train(stopped, resume=done > 0, report=stop_at(at - done))
        done = at
    train(stopped, resume=True)
    assert result_with_voices(stopped) == result_with_voices(whole)
