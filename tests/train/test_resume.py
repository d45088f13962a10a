"""Law 7: a training that was stopped anywhere, by anything, and resumed equals the uninterrupted one, bit for bit."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import save_base
from tiny_runs import Heard, edit_samples, read_log, result, stop_at, train_samples

from mrp.config import Run, load_run
from mrp.errors import InputError, Stopped
from mrp.train import checkpoint, loop
from mrp.train.checkpoint import read_state
from mrp.train.loop import RUNNING_LOG, train

MakeRun = Callable[..., Run]


def first_epoch(run: Run) -> int:
    """How many steps the first of a finished training's epochs had."""
    return [row["epoch"] for row in read_log(run)].count(1)


# -- stopped by a signal ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_stopped_at_many_steps_it_ends_as_if_it_had_not_been(
    make_run: MakeRun, uninterrupted: MakeRun, dropout: float
) -> None:
    whole, stopped = uninterrupted(dropout=dropout), make_run(dropout=dropout)
    epoch = first_epoch(whole)
    last = len(read_log(whole))
    assert 3 < epoch < last - 1
    done = 0
    for step in (1, 3, epoch, epoch + 1, last):  # the ends of both epochs among them
        with pytest.raises(Stopped) as caught:
            train(stopped, resume=done > 0, report=stop_at(step - done))
        assert f"after step {step} of {last}" in caught.value.what
        assert caught.value.fix == f"mrp train {stopped.path} --resume"
        assert not stopped.record.exists() and not stopped.adapter.exists()
        done = step
    train(stopped, resume=True)
    assert result(stopped) == result(whole)
    assert not checkpoint.checkpoint_folder(stopped.folder).exists()
    assert not (stopped.folder / RUNNING_LOG).exists()


def test_dropout_of_the_base_itself_is_drawn_again_after_a_stop(
    make_run: MakeRun, uninterrupted: MakeRun, tmp_path: Path
) -> None:
    base = save_base(tmp_path / "dropping", attention_dropout=0.3)
    whole, stopped = uninterrupted(base=base, epochs=1), make_run(base=base, epochs=1)
    with pytest.raises(Stopped):
        train(stopped, report=stop_at(2))
    train(stopped, resume=True)
    assert result(stopped) == result(whole)


def test_a_stop_while_the_base_is_measured_ends_at_once(make_run: MakeRun, uninterrupted: MakeRun) -> None:
    run = make_run(epochs=1, max_tokens=128)
    passes = 0

    def at(label: str, count: int) -> None:
        nonlocal passes
        if label == "measuring the base":
            passes += 1
            if count == 1:
                os.kill(os.getpid(), signal.SIGINT)
        assert label != "training"

    with pytest.raises(Stopped, match="after step 0"):
        train(run, report=Heard(at))
    assert passes == 1
    train(run, resume=True)
    assert result(run) == result(uninterrupted(epochs=1, max_tokens=128))


def test_a_stop_while_an_epoch_is_measured_ends_at_once(
    make_run: MakeRun, uninterrupted: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, whole = make_run(), uninterrupted()
    calls = 0
    real = loop.character_losses

    def losses(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:  # the first is the base's
            os.kill(os.getpid(), signal.SIGINT)
        return real(*given, **named)

    monkeypatch.setattr(loop, "character_losses", losses)
    epoch = first_epoch(whole)
    with pytest.raises(Stopped, match=f"after step {epoch} "):
        train(run)
    assert calls == 2
    monkeypatch.undo()
    train(run, resume=True)
    assert result(run) == result(whole)


def test_a_second_ctrl_c_stops_at_once_and_the_last_checkpoint_is_kept(
    make_run: MakeRun, uninterrupted: MakeRun
) -> None:
    run, whole = make_run(), uninterrupted()
    epoch = first_epoch(whole)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        train(run, report=stop_at(epoch + 2, signal.SIGINT, times=2))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    state = read_state(run.folder)
    assert state and state.step == epoch
    train(run, resume=True)
    assert result(run) == result(whole)


def test_ctrl_c_while_the_result_is_written_does_not_go_unheard(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(epochs=1)
    real = loop.save_adapter

    def save(*given: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        real(*given)

    monkeypatch.setattr(loop, "save_adapter", save)
    with pytest.raises(Stopped, match="done already"):
        train(run)
    monkeypatch.undo()
    heard = Heard()
    train(run, report=heard)
    assert "done already" in heard.lines[-1]


# -- stopped by a crash -------------------------------------------------------------------------------------------


def crash_in(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process dies in the middle of `step`: nothing more is done or written."""
    real = loop.Training._step

    def dying(self: loop.Training, number: int, planned: Any) -> float:
        if number == step - 1:
            raise SystemError("gone")
        return real(self, number, planned)

    monkeypatch.setattr(loop.Training, "_step", dying)


def test_steps_after_the_last_checkpoint_are_done_again_and_logged_once(
    make_run: MakeRun, uninterrupted: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, whole = make_run(), uninterrupted()
    epoch = first_epoch(whole)
    crash_in(epoch + 4, monkeypatch)
    with pytest.raises(SystemError):
        train(run)
    assert len((run.folder / RUNNING_LOG).read_text(encoding="utf-8").splitlines()) == epoch + 3
    monkeypatch.undo()
    heard = Heard()
    train(run, resume=True, report=heard)
    assert f"training: goes on after step {epoch} of {len(read_log(whole))}" in heard.lines
    assert result(run) == result(whole)


def test_a_crash_before_the_first_checkpoint_starts_at_the_beginning(
    make_run: MakeRun, uninterrupted: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, whole = make_run(epochs=1), uninterrupted(epochs=1)
    crash_in(3, monkeypatch)
    with pytest.raises(SystemError):
        train(run)
    monkeypatch.undo()
    heard = Heard()
    train(run, resume=True, report=heard)
    assert heard.lines[0] == "training: no checkpoint here, so it starts at the beginning"
    assert result(run) == result(whole)


def test_a_crash_between_the_two_renames_of_a_checkpoint_loses_nothing(
    make_run: MakeRun, uninterrupted: MakeRun
) -> None:
    run, whole = make_run(), uninterrupted()
    with pytest.raises(Stopped):
        train(run, report=stop_at(2))
    folder = checkpoint.checkpoint_folder(run.folder)
    folder.rename(run.folder / ".mrp-old-checkpoint")
    (run.folder / ".mrp-checkpoint-abc").mkdir()
    heard = Heard()
    train(run, resume=True, report=heard)
    assert "goes on after step 2" in heard.lines[0]
    assert result(run) == result(whole)
    assert not list(run.folder.glob(".mrp-*checkpoint*"))


def test_a_crash_while_the_result_is_written_is_mended_by_a_resume(
    make_run: MakeRun, uninterrupted: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, whole = make_run(epochs=1), uninterrupted(epochs=1)

    def dying(*_: Any) -> None:
        raise SystemError("gone")

    for name in ("save_adapter", "write_json"):
        monkeypatch.setattr(loop, name, dying)
        with pytest.raises(SystemError):
            train(run, resume=True)
        monkeypatch.undo()
    monkeypatch.setattr(loop.Training, "_step", dying)  # every step is done
    train(run, resume=True)
    assert result(run) == result(whole)


# -- asked to go on where it cannot -------------------------------------------------------------------------------


@pytest.fixture
def stopped(make_run: MakeRun) -> Run:
    run = make_run()
    with pytest.raises(Stopped):
        train(run, report=stop_at(2))
    return run


def test_without_a_word_a_stopped_training_is_not_lost(stopped: Run) -> None:
    with pytest.raises(InputError, match="was stopped after step 2") as caught:
        train(stopped)
    assert f"`mrp train {stopped.path} --resume`" in caught.value.fix and "--restart" in caught.value.fix
    state = read_state(stopped.folder)
    assert state and state.step == 2


def test_restart_begins_anew(stopped: Run, uninterrupted: MakeRun) -> None:
    heard = Heard()
    train(stopped, restart=True, report=heard)
    assert not any("goes on" in line for line in heard.lines)
    assert result(stopped) == result(uninterrupted())


def test_resume_and_restart_together_are_refused(stopped: Run) -> None:
    with pytest.raises(InputError, match="exclude each other"):
        train(stopped, resume=True, restart=True)


@pytest.mark.parametrize(("key", "value"), [("train.learning_rate", "0.001"), ("train.epochs", "3")])
def test_a_changed_option_is_named_and_refused(stopped: Run, key: str, value: str) -> None:
    with pytest.raises(InputError, match="something has changed") as caught:
        train(load_run(stopped.path, {key: value}), resume=True)
    assert f"options.{key} was " in caught.value.what and f"is {value}" in caught.value.what
    assert "--restart" in caught.value.fix


def test_a_changed_persona_and_changed_data_are_refused(stopped: Run) -> None:
    text = stopped.cast_path.read_text(encoding="utf-8")
    stopped.cast_path.write_text(text.replace("calm and polite", "loud and rude"), encoding="utf-8")
    with pytest.raises(InputError, match=r"identities\.tang"):
        train(load_run(stopped.path), resume=True)
    stopped.cast_path.write_text(text, encoding="utf-8")
    edit_samples(stopped.data / "train.jsonl", lambda row: row["turns"][-1].update(text="Ha!"))
    with pytest.raises(InputError, match=r"data\.train\.jsonl"):
        train(stopped, resume=True)


def test_another_number_of_processes_is_refused(stopped: Run) -> None:
    path = checkpoint.checkpoint_folder(stopped.folder) / "state.json"
    text = path.read_text(encoding="utf-8").replace('"processes": 1', '"processes": 2')
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="processes was 2, is 1"):
        train(stopped, resume=True)


def test_options_that_change_nothing_may_change(stopped: Run, uninterrupted: MakeRun) -> None:
    train(load_run(stopped.path, {"train.checkpoint_minutes": "1", "question": "Why?"}), resume=True)
    assert result(stopped) == result(uninterrupted())


def test_a_lost_log_is_told(stopped: Run) -> None:
    (stopped.folder / RUNNING_LOG).unlink()
    with pytest.raises(InputError, match="the log of the 2 steps done so far is lost") as caught:
        train(stopped, resume=True)
    assert "--restart" in caught.value.fix


def test_a_checkpoint_of_another_version_is_told(stopped: Run) -> None:
    path = checkpoint.checkpoint_folder(stopped.folder) / "state.json"
    path.write_text('{"inputs": {}, "moon": 1}', encoding="utf-8")
    with pytest.raises(InputError, match="another version"):
        train(stopped, resume=True)


def test_the_command_told_after_flags_really_resumes(make_run: MakeRun) -> None:
    run = make_run("a folder")
    flagged = load_run(run.path, {"train.epochs": "1"})
    with pytest.raises(Stopped) as caught:
        train(flagged, order="sequential", report=stop_at(2))
    assert caught.value.fix == f"mrp train '{run.folder}' --resume"
    record = train(load_run(run.folder), resume=True)
    assert record["measures"]["epochs"][-1]["epoch"] == 1
    assert record["order"]["asked"] == "sequential"
    with pytest.raises(Stopped) as caught:  # and once more, where the run is the folder itself
        train(load_run(run.folder, {"train.epochs": "3"}), report=stop_at(1))
    record = train(load_run(run.folder), resume=True)
    assert record["options"]["train"]["epochs"] == 3
    assert len(train_samples(run)) > record["data"]["samples"]
