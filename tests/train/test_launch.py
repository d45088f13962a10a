"""`mrp train --gpus N` starts its processes, lets one talk, ends them together, and knows its place among machines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_runs import adapter_bytes, read_log, read_record

from mrp.config import Run
from mrp.errors import InputError
from mrp.files import folder_lock
from mrp.train.checkpoint import read_state
from mrp.train.launch import find_place, must_start

MakeRun = Callable[..., Run]
ROOT = Path(__file__).parents[2]
LIMIT_S = 120
SMALL = {"own": 3, "shared": 1, "epochs": 1, "max_tokens": 128}


def command(*arguments: object, **more: str) -> subprocess.Popen[str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    return subprocess.Popen(
        [sys.executable, "-m", "mrp", "train", *map(str, arguments)],
        env=kept | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"} | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def children_of(process: subprocess.Popen[str]) -> list[int]:
    """The processes that a running command has started (Linux)."""
    text = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(number) for number in text.read_text(encoding="ascii").split()] if text.is_file() else []


def is_running(number: int) -> bool:
    state = Path(f"/proc/{number}/stat")
    return state.is_file() and state.read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"


def wait_for(happened: Callable[[], object]) -> None:
    until = time.monotonic() + LIMIT_S
    while not happened():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.05)


def test_stopped_in_both_it_goes_on_to_the_same_end(make_run: MakeRun) -> None:
    """Ctrl-C at the command that started them: code 130, one voice, nothing left running; `--resume` ends as always."""
    flags = ("--gpus", 2, "--strategy", "zero2", "--json")
    whole, stopped = (make_run(name, **SMALL | {"epochs": 40}) for name in ("whole", "stopped"))
    first = command(whole.path, *flags)
    process = command(stopped.path, *flags)
    log = stopped.folder / "steps.part.jsonl"
    wait_for(lambda: process.poll() is not None or (log.is_file() and log.stat().st_size))
    started = children_of(process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130, err
    assert len(started) == 2 and not any(map(is_running, started))
    assert err.count("everything is saved") == 1
    assert "--resume --gpus 2 --strategy zero2" in json.loads(out)["error"]["fix"]
    state = read_state(stopped.folder)
    assert state and 0 < state.step < 40 and state.processes == 2
    again = command(stopped.path, *flags, "--resume")
    for done in (first, again):
        out, err = done.communicate(timeout=LIMIT_S)
        assert done.returncode == 0, err
        assert json.loads(out)["measures"]["steps"] == len(read_log(stopped if done is again else whole))
    assert adapter_bytes(stopped) == adapter_bytes(whole)
    assert (read_record(stopped)["processes"], read_record(stopped)["strategy"]) == (2, "zero2")


def test_an_error_in_one_ends_both_and_is_told_once(make_run: MakeRun) -> None:
    run = make_run(**SMALL)
    with folder_lock(run.folder):  # which the first process alone wants
        process = command(run.path, "--gpus", 2, "--json")
        out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 2
    assert err.count("another mrp command is working in this folder") == 1
    assert json.loads(out)["error"]["where"] == str(run.folder)


def test_when_one_is_killed_the_other_ends_and_it_is_named(make_run: MakeRun) -> None:
    run = make_run(**SMALL | {"epochs": 200})
    process = command(run.path, "--gpus", 2, "--json")
    log = run.folder / "steps.part.jsonl"
    wait_for(lambda: process.poll() is not None or (log.is_file() and log.stat().st_size))
    started = children_of(process)
    if len(started) != 2:
        process.kill()
        pytest.skip("only on Linux a process's children can be listed")
    os.kill(started[1], signal.SIGKILL)
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1
    assert "process 1 of the training was ended by SIGKILL" in err and "Traceback" not in err
    assert "process 1" in json.loads(out)["error"]["what"]
    assert not any(map(is_running, started))


def test_when_the_command_itself_is_killed_nothing_outlives_it(make_run: MakeRun) -> None:
    run = make_run(**SMALL | {"epochs": 200})
    process = command(run.path, "--gpus", 2)
    log = run.folder / "steps.part.jsonl"
    wait_for(lambda: process.poll() is not None or (log.is_file() and log.stat().st_size))
    started = children_of(process)
    if len(started) != 2:
        process.kill()
        pytest.skip("only on Linux a process's children can be listed")
    process.kill()
    process.communicate(timeout=LIMIT_S)
    wait_for(lambda: not any(map(is_running, started)))
    state = read_state(run.folder)
    assert state and state.step > 0  # they saved


# -- the place among machines -------------------------------------------------------------------------------------


def test_one_process_is_not_started_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert not must_start(None, None) and not must_start(1, 1)
    assert must_start(2, None) and must_start(1, 2)


def test_under_torchrun_the_flags_must_agree_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert not must_start(2, 2) and not must_start(None, None)
    with pytest.raises(InputError, match="--gpus 4, but torchrun started 2 processes on each of 2 machines"):
        must_start(4, 2)


def test_a_machine_learns_its_place_from_the_environment() -> None:
    given = {"MASTER_ADDR": "10.0.0.1", "NODE_RANK": "1"}
    assert find_place(2, "mrp train r", given).node == 1
    assert find_place(2, "mrp train r", given | {"MASTER_PORT": "4000"}).port == 4000
    slurm = {"SLURM_NODEID": "1", "SLURM_JOB_NODELIST": "first", "MASTER_ADDR": "first"}
    assert (find_place(2, "", slurm).node, find_place(2, "", slurm).address) == (1, "first")


@pytest.mark.parametrize(
    "given", [{}, {"NODE_RANK": "0"}, {"MASTER_ADDR": "a"}, {"MASTER_ADDR": "a", "NODE_RANK": "2"}]
)
def test_without_a_place_the_commands_for_each_machine_are_printed(given: dict[str, str]) -> None:
    with pytest.raises(InputError) as caught:
        find_place(2, "mrp train mrp.yaml --gpus 8 --nodes 2", given)
    for node in range(2):
        line = f"MASTER_ADDR=<address of the first> NODE_RANK={node} mrp train mrp.yaml --gpus 8 --nodes 2"
        assert line in caught.value.fix
