"""The contrast inside the voices: another's persona and voice for the same lines, packed as alone, resumed the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from shapes import SHAPES
from tiny_runs import PEOPLE, Heard, read_log, result, stop_at

from mrp.config import Run, load_run
from mrp.errors import InputError, Stopped
from mrp.models.load import hardware, load_model
from mrp.models.loss import make_batch, token_losses
from mrp.models.voices import voices_in
from mrp.render import ChatTemplate
from mrp.train.checkpoint import State
from mrp.train.contrast import contrast
from mrp.train.loop import train
from mrp.train.lora import add_adapter
from mrp.train.processes import Processes
from mrp.train.stages import Stage, keep_voices, voice_stage
from mrp.train.steps import Plan, Step, learning_rate, plan_training

MakeRun = Callable[..., Run]
VOICES: dict[str, Any] = {"voices": True, "voice_rank": 2, "voice_learning_rate": 5e-3, "epochs": 1, "max_tokens": 192}
AGAINST = VOICES | {"voice_contrast": 0.5}


def planned(run: Run) -> Plan:
    return plan_training(run, ChatTemplate(SHAPES["chatml"].tokenizer()))


def voiced(plan: Plan) -> list[Step]:
    return [step for step in plan.steps if step.stage]


def stage_with_numbers(run: Run) -> Stage:
    """A stage whose voices say something already, all with the same draws in the same order."""
    on, options = hardware("fp32"), run.config.train
    model = add_adapter(load_model(run.path.parent / run.config.base, on), options, 0).requires_grad_(False).train()
    stage = voice_stage(model, sorted(PEOPLE), 1, options, 0, on, planned(run), Processes())
    torch.manual_seed(5)
    for weight in stage.weights.values():
        weight.data.normal_(std=0.1)
    return stage


def gradients(stage: Stage, passes: list[tuple[Step, list[int]]]) -> dict[str, torch.Tensor]:
    stage.passes.begin_step()
    for step, rows in passes:
        stage.passes.learn([step.rows[k] for k in rows], step, 0)
    return {name: w.grad.clone() for name, w in stage.weights.items() if w.grad is not None}


# -- the plan -----------------------------------------------------------------------------------------------------


def test_a_row_has_twins_under_one_other_identity_and_the_rows_are_those_without(make_run: MakeRun) -> None:
    against, plain = voiced(planned(make_run(**AGAINST))), voiced(planned(make_run("plain", **VOICES)))
    assert [step.sample_ids for step in against] == [step.sample_ids for step in plain]
    assert [step.places for step in against] == [step.places for step in plain]
    others = set()
    for step in against:
        for row in step.rows:
            (other,) = {item.twin.identity for item in row if item.twin}
            assert all(item.twin for item in row) and other != row[0].sample.character
            others.add((row[0].sample.character, other))
    assert len(others) > len(PEOPLE)  # not always the same one


def test_all_voices_are_one_group_however_few_rows_a_pass_has(make_run: MakeRun) -> None:
    few, many = (planned(make_run(str(rows), voice_rows=rows, **AGAINST)) for rows in (1, 3))
    assert [(s.stage, s.sample_ids) for s in voiced(few)] == [(s.stage, s.sample_ids) for s in voiced(many)]
    assert {step.stage for step in voiced(few)} == {1}


# -- the loss -----------------------------------------------------------------------------------------------------


def test_the_gradient_is_that_of_the_loss_as_written_down_sample_by_sample(make_run: MakeRun) -> None:
    """Law 6: packed rows side by side against each sample alone, under each voice alone."""
    run = make_run(**AGAINST)
    step = max(voiced(planned(run)), key=lambda s: (len(s.rows), min(map(len, s.rows)), len(s.items)))
    assert len(step.rows) == 3 and len(step.items) > 3
    stage = stage_with_numbers(run)
    assert stage.bank is not None
    packed = gradients(stage, [(step, [0, 1, 2])])
    stage.passes.begin_step()
    stage.bank.is_training = True
    for row in step.rows:
        own_sum, terms = torch.zeros(()), []
        for item in row:
            assert item.twin is not None
            with stage.bank.speaking([item.sample.character]):
                own = token_losses(stage.passes.measured, make_batch([[item.rendered]]))
            with stage.bank.speaking([item.twin.identity]):
                other = token_losses(stage.passes.measured, make_batch([[item.twin.rendered]]))
            own_sum = own_sum + own.sum()
            terms.append(contrast(own, [item], other))
        labelled = sum(item.rendered.labelled for item in row)
        (own_sum / labelled + 0.5 * torch.cat(terms).mean()).backward()
    stage.bank.is_training = False
    for name, weight in stage.weights.items():
        assert weight.grad is not None
        torch.testing.assert_close(packed[name], weight.grad, atol=1e-5, rtol=1e-3)


def test_fewer_rows_in_a_pass_have_the_same_gradient(make_run: MakeRun) -> None:
    run = make_run(**AGAINST)
    step = next(s for s in voiced(planned(run)) if len(s.rows) == 3)
    stage = stage_with_numbers(run)
    at_once, apart = gradients(stage, [(step, [0, 1, 2])]), gradients(stage, [(step, [0]), (step, [1, 2])])
    assert at_once.keys() == apart.keys()
    for name, grad in at_once.items():
        torch.testing.assert_close(grad, apart[name], atol=1e-5, rtol=1e-3)


def test_the_other_voice_learns_too_but_not_while_it_waits(make_run: MakeRun) -> None:
    run = make_run(**AGAINST)
    step = next(s for s in voiced(planned(run)) if len(s.rows) == 3)
    stage = stage_with_numbers(run)
    row = next(k for k, r in enumerate(step.rows) if r[0].sample.character == "tang")
    assert step.rows[row][0].twin is not None
    other = step.rows[row][0].twin.identity
    learnt = {name.partition("/")[0] for name in gradients(stage, [(step, [row])])}
    assert learnt == {"tang", other}
    alone = Step(step.epoch, (step.rows[row],), False, 1, {"tang": step.places["tang"]})
    gradients(stage, [(alone, [0])])
    stage.reduce(alone, 1e9)
    assert stage.bank is not None
    taught = {name.partition("/")[0] for name, w in stage.bank.parameters().items() if w.grad is not None}
    assert taught == {"tang"}


# -- in training --------------------------------------------------------------------------------------------------


def test_with_it_replies_depend_more_on_whose_voice_speaks(make_run: MakeRun) -> None:
    """Against a weight so small that it only measures: the same pairs in the same order."""
    terms = []
    for name, weight in (("with", 1.0), ("without", 1e-9)):
        run = make_run(name, dev=0, voice_epochs=4, **(VOICES | {"voice_contrast": weight}))
        train(run)
        log = [row for row in read_log(run) if "voices" in row]
        assert all(set(row["against"]) <= set(PEOPLE) for row in log)
        terms.append([row["contrast"] for row in log if row["epoch"] == 5])
    assert len(terms[0]) == len(terms[1]) > 1
    assert sum(terms[0]) < 0.9 * sum(terms[1])


def test_stopped_and_resumed_it_ends_as_if_it_had_not_been(make_run: MakeRun, uninterrupted: MakeRun) -> None:
    whole, stopped = uninterrupted(**AGAINST), make_run(**AGAINST)
    adapter = sum("voices" not in row for row in read_log(whole))
    done = 0
    for step in (adapter, adapter + 2, len(read_log(whole)) - 1):
        with pytest.raises(Stopped):
            train(stopped, resume=done > 0, report=stop_at(step - done))
        done = step
    train(stopped, resume=True)
    assert result(stopped) == result(whole)
    assert [row.get("against") for row in read_log(stopped)] == [row.get("against") for row in read_log(whole)]
    for who in voices_in(whole.voices):
        files = [(run.voices / who / "adapter_model.safetensors").read_bytes() for run in (stopped, whole)]
        assert files[0] == files[1]


def test_the_adapter_below_is_that_of_a_run_without(make_run: MakeRun, uninterrupted: MakeRun) -> None:
    run = make_run(**AGAINST)
    train(run, report=Heard())
    assert result(run)[0] == result(uninterrupted(epochs=1, max_tokens=192))[0]


# -- around it ----------------------------------------------------------------------------------------------------


def test_without_voices_it_is_refused(make_run: MakeRun) -> None:
    run = make_run(own=1, shared=0)
    with pytest.raises(InputError, match="none are trained") as caught:
        load_run(run.path, {"train.voice_contrast": "0.5"})
    assert caught.value.fix


def test_a_later_pass_within_the_tolerance_is_kept_and_losses_do_not_creep_away() -> None:
    state = State({}, voices={"a": {"epoch": None, "dev_loss": 2.0}})
    kept = [keep_voices(state, ["a"], k, {"a": loss}, {}, 0.1) for k, loss in enumerate((2.05, 1.9, 1.95, 2.01), 1)]
    assert kept == [["a"], ["a"], ["a"], []]  # the last is more than 0.1 above 1.9, though not above 1.95
    assert (state.voices["a"]["epoch"], state.voices["a"]["dev_loss"]) == (3, 1.95)


def test_a_rate_that_does_not_decay_stays_at_its_peak(make_run: MakeRun) -> None:
    options = make_run(decay="none", own=1, shared=0).config.train
    assert [learning_rate(k, 100, 1e-3, options) for k in (3, 50, 99)] == [1e-3] * 3
    assert learning_rate(0, 100, 1e-3, options) < 1e-3
