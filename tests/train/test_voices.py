"""Voices in training: each learns what it would alone, over a frozen adapter; stopped and resumed the same."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from shapes import SHAPES
from test_processes import LIMIT_S, environment
from tiny_runs import PEOPLE, Heard, adapter_bytes, measured, read_log, read_record, result, stop_at, trained_ids

from mrp.config import Run, TrainOptions, load_run
from mrp.data.build import build_data
from mrp.data.samples import in_order
from mrp.errors import InputError, Stopped
from mrp.evaluate.held_out import Mean, character_losses
from mrp.files import read_json
from mrp.models.load import hardware, load_model
from mrp.models.loss import make_batch, token_losses
from mrp.models.voices import load_voices, voices_in
from mrp.render import ChatTemplate
from mrp.train import loop, stages
from mrp.train.checkpoint import State
from mrp.train.fast.engine import Engine
from mrp.train.fast.rows import shape_of
from mrp.train.loop import train
from mrp.train.lora import adapter_parameters, add_adapter, load_adapter
from mrp.train.processes import Processes
from mrp.train.stages import keep_voices, voice_stage
from mrp.train.steps import Item, Step, plan_training

MakeRun = Callable[..., Run]
VOICES: dict[str, Any] = {"voices": True, "voice_rank": 2, "voice_learning_rate": 5e-3, "epochs": 1}


def voice_weights(run: Run) -> dict[str, dict[str, torch.Tensor]]:
    return {who: load_file(run.voices / who / "adapter_model.safetensors") for who in voices_in(run.voices)}


def result_with_voices(run: Run) -> Any:
    """What must be equal, bit for bit: as `result`, and the voices."""
    files = {who: (run.voices / who / "adapter_model.safetensors").read_bytes() for who in voices_in(run.voices)}
    return result(run), files, [row.get("voices") for row in read_log(run)]


# -- what they learn ----------------------------------------------------------------------------------------------


def test_voices_trained_together_equal_those_trained_alone(make_run: MakeRun) -> None:
    """fp32, no dropout: a group of three, and three groups of one, which wait for nobody."""
    together, alone = (make_run(str(rows), voice_rows=rows, dev=0, max_tokens=192, **VOICES) for rows in (3, 1))
    for run in (together, alone):
        train(run)
    steps = [[row["voices"] for row in read_log(run) if "voices" in row] for run in (together, alone)]
    assert max(map(len, steps[0])) == 3 and min(map(len, steps[0])) < 3  # they have different numbers of rows
    assert all(len(speaking) == 1 for speaking in steps[1])
    one, other = voice_weights(together), voice_weights(alone)
    assert one.keys() == other.keys() == PEOPLE.keys()
    for who, own in one.items():
        moved = max(float(value.abs().max()) for name, value in own.items() if "lora_B" in name)
        apart = max(float((value - other[who][name]).abs().max()) for name, value in own.items())
        assert apart < 1e-4 < 1e-3 < moved, who


def test_the_adapter_below_the_voices_is_that_of_a_run_without(make_run: MakeRun, uninterrupted: MakeRun) -> None:
    voiced, plain = make_run(**VOICES), uninterrupted(epochs=1)
    train(voiced)
    assert adapter_bytes(voiced) == adapter_bytes(plain)
    assert not plain.voices.exists()
    ours, theirs = (read_record(run)["measures"]["held_out_loss"] for run in (voiced, plain))
    for who in PEOPLE:
        assert (ours[who]["before"], ours[who]["adapter"]) == (theirs[who]["before"], theirs[who]["after"])


def test_the_losses_told_are_those_of_base_adapter_and_voice_as_they_lie_there(make_run: MakeRun) -> None:
    run = make_run(dev=0, **VOICES)
    record = train(run)
    plan = plan_training(run, ChatTemplate(SHAPES["chatml"].tokenizer()))
    model = load_adapter(load_model(Path(run.config.base), hardware("fp32")), run.adapter)
    bank = load_voices(model, run.voices)
    found = character_losses(model, plan.held_out, 384, hardware("fp32"), speaking=bank.speaking)
    for who, losses in record["measures"]["held_out_loss"].items():
        assert found[who].loss == pytest.approx(losses["after"], rel=1e-5)
        assert losses["after"] < losses["adapter"] < losses["before"], who


def test_each_voice_sees_its_own_samples_once_an_epoch_in_the_order_asked_for(make_run: MakeRun) -> None:
    run = make_run(voice_epochs=3, **VOICES)
    train(run)
    plan = plan_training(run, ChatTemplate(SHAPES["chatml"].tokenizer()))
    log = [row for row in read_log(run) if "voices" in row]
    assert [row["epoch"] for row in log] == sorted(row["epoch"] for row in log)
    for epoch in range(3):
        seen = [i for row in log if row["epoch"] == epoch + 2 for i in row["samples"]]
        for who in PEOPLE:
            own = [s for s in plan.samples if s.character == who]
            expected = [s.id for s in in_order(own, run, epoch + 1)]
            assert [i for i in seen if f"@{who}" in i] == expected
    assert len(trained_ids(run)) == 4 * len(plan.samples)


def test_a_voice_that_is_worse_on_the_dev_slice_is_not_kept_and_that_is_told(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.character_losses

    def losses(*given: Any, **named: Any) -> dict[str, Mean]:
        """As if the voice of one of them had learnt nonsense."""
        found = real(*given, **named)
        worse = 5 * (named["speaking"] is not None)
        return {who: Mean(mean.loss + worse * (who == "bajie"), mean.tokens) for who, mean in found.items()}

    monkeypatch.setattr(loop, "character_losses", losses)
    run, heard = make_run(**VOICES), Heard()
    record = train(run, report=heard)
    assert voices_in(run.voices) == sorted(record["voices_sha256"]) == ["tang", "wukong"]
    chosen = {who: voice["epoch"] for who, voice in record["measures"]["voices"].items()}
    assert chosen["bajie"] is None and chosen["tang"] and chosen["wukong"]
    losses_of = record["measures"]["held_out_loss"]
    assert losses_of["bajie"]["after"] == losses_of["bajie"]["adapter"]
    assert losses_of["tang"]["after"] < losses_of["tang"]["adapter"]
    assert [line for line in heard.lines if "gets no voice" in line] == [
        "bajie gets no voice: on the dev slice it was no better with one"
    ]


def test_a_voice_keeps_its_best_epoch() -> None:
    state = State({}, voices={who: {"epoch": None, "dev_loss": 2.0} for who in ("a", "b")} | {"c": {"dev_loss": None}})
    assert keep_voices(state, ["a", "b", "c"], 1, {"a": 1.5, "b": 2.5}, {}) == ["a", "c"]
    assert keep_voices(state, ["a", "b", "c"], 2, {"a": 1.6, "b": 1.9}, {}) == ["b", "c"]
    assert {who: voice["epoch"] for who, voice in state.voices.items()} == {"a": 1, "b": 2, "c": 2}


# -- stopping and going on ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_stopped_in_every_stage_it_ends_as_if_it_had_not_been(
    make_run: MakeRun, uninterrupted: MakeRun, dropout: float
) -> None:
    options = VOICES | {"dropout": dropout, "voice_rows": 2}  # two groups
    whole, stopped = uninterrupted(**options), make_run(**options)
    stages = [row.get("voices") for row in read_log(whole)]
    adapter = stages.count(None)
    last_of_first_group = max(k for k, who in enumerate(stages, 1) if who and len(who) == 2)
    done = 0
    for step in (2, adapter, adapter + 1, adapter + 3, last_of_first_group, len(stages)):
        with pytest.raises(Stopped, match=f"after step {step} of {len(stages)}"):
            train(stopped, resume=done > 0, report=stop_at(step - done))
        assert not stopped.adapter.exists() and not stopped.voices.exists()
        done = step
    train(stopped, resume=True)
    assert result_with_voices(stopped) == result_with_voices(whole)


def test_a_crash_while_the_voices_are_written_is_mended_by_a_resume(
    make_run: MakeRun, uninterrupted: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, whole = make_run(**VOICES), uninterrupted(**VOICES)

    def dying(*_: Any) -> None:
        raise SystemError("gone")

    monkeypatch.setattr(stages, "save_voices", dying)
    with pytest.raises(SystemError):
        train(run)
    monkeypatch.undo()
    train(run, resume=True)
    assert result_with_voices(run) == result_with_voices(whole)


def test_a_stop_while_voices_are_measured_ends_at_once(
    make_run: MakeRun, uninterrupted: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, whole = make_run(**VOICES), uninterrupted(**VOICES)
    real, calls = loop.character_losses, 0

    def losses(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += named["speaking"] is not None
        if calls == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*given, **named)

    monkeypatch.setattr(loop, "character_losses", losses)
    with pytest.raises(Stopped):
        train(run)
    monkeypatch.undo()
    train(run, resume=True)
    assert result_with_voices(run) == result_with_voices(whole)


def test_a_finished_training_is_done_again_only_if_a_voice_is_gone_or_an_option_changed(make_run: MakeRun) -> None:
    run = make_run(**VOICES)
    train(run)
    heard = Heard()
    train(run, report=heard)
    assert "done already" in heard.lines[-1]
    before = result_with_voices(run)
    shutil.rmtree(run.voices / "tang")
    train(run)
    assert result_with_voices(run) == before
    train(load_run(run.path, {"train.voice_epochs": "1"}))
    assert len(read_log(run)) < len(before[2])


def test_voices_go_when_a_run_without_takes_their_place(make_run: MakeRun) -> None:
    run = make_run(**VOICES)
    train(run)
    assert voices_in(run.voices) == sorted(PEOPLE)
    train(load_run(run.path, {"train.voices": "off"}))
    assert not run.voices.exists()
    assert all("adapter" not in losses for losses in read_record(run)["measures"]["held_out_loss"].values())


# -- around them --------------------------------------------------------------------------------------------------


def test_blocks_computed_again_change_nothing(make_run: MakeRun, uninterrupted: MakeRun) -> None:
    again, once = make_run(checkpointing=True, **VOICES), uninterrupted(**VOICES)
    train(again)
    for mine, yours in zip(measured(again), measured(once), strict=True):
        assert mine == pytest.approx(yours, rel=1e-4)


def test_two_processes_train_the_voices_of_one(make_run: MakeRun, uninterrupted: MakeRun) -> None:
    """Their rows are dealt out; a voice whose row the other process has learns the same."""
    options = VOICES | {"contrast": 0.5, "learning_rate": 1e-3, "dev": 0}
    one, two = uninterrupted(accumulation=2, **options), make_run(**options)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "mrp", "train", str(two.path), "--json"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    assert read_record(two)["processes"] == 2
    for mine, theirs in zip(measured(one), measured(two), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3)
    ours, theirs_too = voice_weights(one), voice_weights(two)
    assert ours.keys() == theirs_too.keys() == PEOPLE.keys()
    for who, own in ours.items():
        assert max(float((value - theirs_too[who][name]).abs().max()) for name, value in own.items()) < 1e-3, who


def test_over_a_base_in_4_bit_voices_learn(tiny_base: Path, make_run: MakeRun) -> None:
    pytest.importorskip("bitsandbytes", reason="only on a machine with bitsandbytes")
    on = hardware("fp32")
    options = TrainOptions(rank=4, voice_rank=2)
    model = add_adapter(load_model(tiny_base, on, bits=4), options, 0).requires_grad_(False).train()
    plan = plan_training(make_run(voice_rows=2, **VOICES), ChatTemplate(SHAPES["chatml"].tokenizer()))
    stage = voice_stage(model, ["tang", "wukong"], 1, options, 0, on, plan, Processes())
    rows = {row[0].sample.character: row for step in plan.steps if step.stage for row in step.rows}
    step = Step(1, (rows["tang"], rows["wukong"]), True, 1, {"tang": (0, 2), "wukong": (0, 2)})
    losses = []
    for _ in range(2):
        stage.set_rates(step, options)
        stage.passes.begin_step()
        losses.append(stage.passes.learn(step.rows, step, 0).values)
        assert stage.reduce(step, 1.0) > 0
        stage.update.step()
    assert float(losses[1].mean()) < float(losses[0].mean())


def test_a_base_without_linear_layers_is_refused_before_the_adapter_is_trained(
    tiny_base: Path, make_run: MakeRun, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "gpt2", ignore=shutil.ignore_patterns("*.safetensors"))
    vocabulary = read_json(tiny_base / "config.json")["vocab_size"]
    config = transformers.GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=2, n_positions=512)
    transformers.GPT2LMHeadModel(config).save_pretrained(base)  # its layers are convolutions of width 1
    run = make_run(base=base, **VOICES)
    with pytest.raises(InputError, match="no linear layers") as caught:
        train(run)
    assert "train.voices: false" in caught.value.fix
    assert not (run.folder / "checkpoint").exists()
    train(load_run(run.path, {"train.voices": "false"}))


def plan_rows(run: Run) -> list[tuple[Item, ...]]:
    plan = plan_training(run, ChatTemplate(SHAPES["chatml"].tokenizer()))
    return [row for step in plan.steps if step.stage for row in step.rows]


def test_the_fast_path_leaves_a_model_behind_that_voices_can_learn_on(tiny_base: Path, make_run: MakeRun) -> None:
    """It lays weights out anew; the model must be the same through transformers and PEFT."""
    options = TrainOptions(rank=4)
    model = add_adapter(load_model(tiny_base, hardware("fp32")), options, 0)
    torch.manual_seed(5)
    for weight in adapter_parameters(model).values():
        weight.data.normal_(std=0.1)
    batch = make_batch([[item.rendered for item in plan_rows(make_run(**VOICES))[0]]])
    with torch.no_grad():
        before = token_losses(model, batch)
        engine = Engine(model, shape_of([[[(len(batch.input_ids[0]), len(batch.target))]]], 1))
        engine.prepare()
        del engine
        torch.testing.assert_close(token_losses(model, batch), before, atol=1e-6, rtol=0)


def test_general_chat_data_has_no_voice(make_run: MakeRun, tmp_path: Path) -> None:
    rows = '{"messages": [{"role": "user", "content": "One and one?"}, {"role": "assistant", "content": "Two."}]}\n'
    (tmp_path / "general.jsonl").write_text(rows * 1, encoding="utf-8")
    run = make_run(**VOICES)
    mixed = load_run(run.path, {"data.mix": "0.5", "data.mix_files": f"[{tmp_path / 'general.jsonl'}]"})
    build_data(mixed)
    record = train(mixed)
    assert "plain" in record["measures"]["epochs"][0]["train_loss"]
    assert voices_in(mixed.voices) == sorted(PEOPLE)
    assert all("plain" not in row["voices"] for row in read_log(mixed) if "voices" in row)


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"voices": True, "method": "full"}, "full fine-tuning"),
        ({"voices": True, "offload": True, "checkpointing": True}, "without offloading"),
    ],
    ids=str,
)
def test_options_that_exclude_each_other_are_refused(make_run: MakeRun, given: dict[str, Any], what: str) -> None:
    run = make_run(own=1, shared=0)
    with pytest.raises(InputError, match=what) as caught:
        load_run(run.path, {f"train.{key}": str(value).lower() for key, value in given.items()})
    assert caught.value.fix
