"""A training in two real processes (gloo) equals the same steps in one, is told once, and ends in both or in none."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny_runs import adapter_bytes, measured, read_log, read_record

from mrp.config import Run
from mrp.errors import InputError, MrpError, SetupError
from mrp.files import folder_lock
from mrp.train import processes
from mrp.train.loop import train
from mrp.train.processes import Processes

MakeRun = Callable[..., Run]
ROOT = Path(__file__).parents[2]
LIMIT_S = 120


def environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    return kept | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"} | more


def test_the_same_steps_in_one_process_and_in_two(make_run: MakeRun) -> None:
    """16 rows a step: one after another, at once, and 8 in each of two processes."""
    shapes = {"one by one": (1, 16), "at once": (16, 1), "two processes": (1, 8)}
    runs = {
        name: make_run(name, micro_batch=rows, accumulation=passes, max_tokens=128, learning_rate=1e-3)
        for name, (rows, passes) in shapes.items()
    }
    two = runs.pop("two processes")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "mrp", "train", str(two.path), "--json"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    assert read_record(two)["processes"] == 2
    said = json.loads(done.stdout)  # one process talks: a second result would be no JSON
    assert said["measures"] == read_record(two)["measures"]
    assert done.stderr.count("epoch 1/2") == 1
    for run in runs.values():
        train(run)
        assert [row["samples"] for row in read_log(run)] == [row["samples"] for row in read_log(two)]
        for mine, theirs in zip(measured(run), measured(two), strict=True):
            assert mine == pytest.approx(theirs, rel=1e-4)
        one, other = (load_file(r.adapter / "adapter_model.safetensors") for r in (run, two))
        assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-4
        for epoch, other_epoch in zip(*(read_record(r)["measures"]["epochs"] for r in (run, two)), strict=True):
            assert epoch["dev_loss"] == pytest.approx(other_epoch["dev_loss"], rel=1e-4)
            assert epoch["train_loss"] == pytest.approx(other_epoch["train_loss"], rel=1e-4)
    assert max(len(row["samples"]) for row in read_log(two)) >= 16


def test_an_error_of_the_first_process_ends_both_and_is_told_once(make_run: MakeRun) -> None:
    """Only the first process takes the folder's lock; the second must not wait for it for ever."""
    run = make_run()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    with folder_lock(run.folder):
        started = [
            subprocess.Popen(
                [sys.executable, "-m", "mrp", "train", str(run.path), "--json"],
                env=environment(RANK=str(rank), LOCAL_RANK=str(rank), **place),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        said = [process.communicate(timeout=LIMIT_S) for process in started]
    assert [process.returncode for process in started] == [2, 0]
    assert "another mrp command is working in this folder" in said[0][1]
    assert json.loads(said[0][0])["error"]["where"] == str(run.folder)
    assert said[1] == ("", "")
    assert not run.record.exists()


# -- the pieces, without a second process -------------------------------------------------------------------------


def test_alone_an_error_goes_on_as_it_is() -> None:
    with pytest.raises(SetupError, match="full"), Processes().together():
        raise SetupError("the disk is full")
    with Processes().together():
        pass


@pytest.mark.parametrize("rank", [0, 1])
def test_the_error_of_another_process_is_raised_here_with_its_number(
    monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    def gather(texts: list[str], mine: str) -> None:
        texts[rank], texts[1 - rank] = mine, "no such base\n  fix:   pull it"

    monkeypatch.setattr(processes.dist, "all_gather_object", gather)
    with pytest.raises(InputError, match=f"process {1 - rank}: no such base"), Processes(rank, 2).together():
        pass
    with pytest.raises(MrpError, match=r"^my own"), Processes(rank, 2).together():
        raise MrpError("my own")


def test_a_lone_process_of_torchrun_needs_no_others(
    make_run: MakeRun, uninterrupted: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1")):
        monkeypatch.setenv(name, value)
    run = make_run(epochs=1)
    train(run)
    assert adapter_bytes(run) == adapter_bytes(uninterrupted(epochs=1))
