"""`mrp train` from outside: real processes that are stopped and killed, what is printed, and exit codes."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tiny_runs import read_log, result, stop_at
from typer.testing import CliRunner

from mrp.cli import app
from mrp.config import Run
from mrp.errors import SetupError, Stopped
from mrp.train.checkpoint import read_state
from mrp.train.loop import train

MakeRun = Callable[..., Run]
ROOT = Path(__file__).parents[2]
LIMIT_S = 120

# `mrp ARGUMENTS`, but before the step with the number given first it says so and waits until it is asked to stop.
WAITING = """
import sys, time
from mrp.cli import app
from mrp.train import loop
step = loop.Training._step
def waiting(self, number, planned):
    if number == int(sys.argv[1]):
        print("waiting", flush=True)
        while not self.stop.asked:
            time.sleep(0.01)
    return step(self, number, planned)
loop.Training._step = waiting
app(sys.argv[2:])
"""


@contextmanager
def started(step: int, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """`mrp ARGUMENTS` in a process of its own, waiting in the middle of `step` (from 0)."""
    command = [sys.executable, "-c", WAITING, str(step), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )
    try:
        assert process.stdout
        while (line := process.stdout.readline()) and line != "waiting\n":
            pass
        assert line, process.communicate()[1]
        yield process
    finally:
        process.kill()
        process.communicate()


def mrp(*arguments: object) -> tuple[int, str]:
    """Exit code and output of a command in this process."""
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    return done.exit_code, done.output


def first_epoch(run: Run) -> int:
    return [row["epoch"] for row in read_log(run)].count(1)


def test_sigterm_saves_and_prints_the_command_that_goes_on(make_run: MakeRun, uninterrupted: MakeRun) -> None:
    run, whole = make_run(), uninterrupted()
    step = first_epoch(whole) + 2
    with started(step, "train", run.path) as process:
        before = {p: p.stat().st_mtime_ns for p in run.folder.rglob("*")}
        with pytest.raises(SetupError, match="another mrp command is working in this folder") as caught:
            train(run, restart=True)
        assert caught.value.exit_code == 2
        assert {p: p.stat().st_mtime_ns for p in run.folder.rglob("*")} == before
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert "stopping" in said and "Traceback" not in said
    assert f"stopped after step {step + 1} of {len(read_log(whole))}; everything is saved" in said
    found = re.search(r"fix: +(mrp train .* --resume)", said)
    assert found
    code, told = mrp("train", run.path)
    assert code == 2 and f"was stopped after step {step + 1}" in told
    code, told = mrp(*shlex.split(found[1])[1:], "--json")
    assert code == 0
    assert json.loads(told.splitlines()[-1])["order"]["asked"] == "shuffled"
    assert result(run) == result(whole)


def test_sigkill_loses_only_the_steps_since_the_last_checkpoint(make_run: MakeRun, uninterrupted: MakeRun) -> None:
    run, whole = make_run(checkpoint_minutes=1e-9), uninterrupted()  # after every step
    step = first_epoch(whole) - 2
    with started(step, "train", run.path) as process:
        process.kill()
        process.communicate(timeout=LIMIT_S)
    state = read_state(run.folder)
    assert state and state.step == step
    assert mrp("train", run.path)[0] == 2
    code, told = mrp("train", run.path, "--resume")
    assert code == 0 and f"goes on after step {step} of" in told
    assert result(run) == result(whole)


def test_exit_codes_and_messages(make_run: MakeRun) -> None:
    run = make_run(epochs=1)
    code, told = mrp("train", run.path, "--order", "sorted")
    assert code == 2 and "error: unknown order 'sorted'" in told and "--order" in told
    with pytest.raises(Stopped):
        train(run, report=stop_at(2))
    assert mrp("train", run.path, "--resume", "--restart")[0] == 2
    code, told = mrp("train", run.path, "--resume", "--set", "train.rank=2")
    assert code == 2 and "options.train.rank was 4, is 2" in told
    code, told = mrp("train", run.path, "--restart", "-q", "--json")
    assert code == 0 and json.loads(told)["measures"]["chosen_epoch"] == 1
    code, told = mrp("train", run.folder)
    assert code == 0 and "training: done already" in told


def test_a_fault_of_another_process_says_which_it_is(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(epochs=1)
    monkeypatch.setenv("RANK", "1")
    code, text = mrp("train", run.path, "--order", "sorted")
    assert code == 2 and text.startswith("error: process 1: unknown order")
