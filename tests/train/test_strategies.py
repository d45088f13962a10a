"""Each strategy in two real processes (gloo) trains what one process with double accumulation trains."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import adapter_bytes, measured, read_log, read_record, write_run

from mrp.config import Run, TrainOptions
from mrp.errors import InputError
from mrp.models.load import Hardware
from mrp.train.loop import train
from mrp.train.processes import Processes
from mrp.train.sharding import _rounds
from mrp.train.strategy import choose_strategy

MakeRun = Callable[..., Run]
ROOT = Path(__file__).parents[2]
LIMIT_S = 120
STRATEGIES = ("ddp", "zero1", "zero2", "fsdp2")
SHAPE = {"max_tokens": 128, "micro_batch": 2, "learning_rate": 1e-3, "epochs": 1}

# Trains every run given as FILE=STRATEGY=PORT; one start of Python and torch for all of them. One in a folder
# "...-stopped" is asked to stop in its third step, in the second process only, and goes on.
WORKER = """
import os, sys
from pathlib import Path
from mrp.config import load_run
from mrp.errors import Stopped
from mrp.train import loop
step = loop.Training._step
def stopping(self, number, planned):
    if number == 2 and stops:
        self.stop.asked = self.processes.rank == 1
    return step(self, number, planned)
loop.Training._step = stopping
for given in sys.argv[1:]:
    path, strategy, port, again = given.split("=")
    run, stops = load_run(Path(path)), path.endswith("-stopped/mrp.yaml")
    os.environ["MASTER_PORT"] = port
    try:
        loop.train(run, strategy=strategy)
        assert not stops
    except Stopped:
        os.environ["MASTER_PORT"], stops = again, False
        loop.train(run, strategy=strategy, resume=True)
"""


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at: each joining of processes gets one of its own."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def in_two_processes(runs: list[Run]) -> None:
    place = {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    ports = free_ports(2 * len(runs))
    given = [
        f"{run.path}={run.path.parent.name.removesuffix('-stopped')}={one}={other}"
        for run, one, other in zip(runs, ports[::2], ports[1::2], strict=True)
    ]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, *given],
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RANK": str(rank)} | place,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=LIMIT_S)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "".join(said)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> dict[str, Run]:
    """A run of each strategy in two processes, one of each that was stopped after two steps, and "one" process."""
    home = tmp_path_factory.mktemp("strategies")
    names = [*STRATEGIES, *(f"{s}-stopped" for s in STRATEGIES)]
    runs = {name: write_run(home / name, tiny_base, accumulation=2, **SHAPE) for name in names}
    in_two_processes(list(runs.values()))
    runs["one"] = write_run(home / "one", tiny_base, accumulation=4, **SHAPE)
    train(runs["one"])
    return runs


def greatest_difference(one: Run, other: Run) -> float:
    mine, theirs = (load_file(run.adapter / "adapter_model.safetensors") for run in (one, other))
    assert mine.keys() == theirs.keys()
    return max(float((mine[name] - theirs[name]).abs().max()) for name in mine)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_train_what_one_trains(trained: dict[str, Run], strategy: str) -> None:
    one, two = trained["one"], trained[strategy]
    assert [row["samples"] for row in read_log(one)] == [row["samples"] for row in read_log(two)]
    assert len(read_log(one)) > 3
    assert len(read_log(one)[-1]["samples"]) < len(read_log(one)[0]["samples"])  # a step that does not fill all passes
    for mine, theirs in zip(measured(one), measured(two), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)
    assert greatest_difference(one, two) < 1e-4
    for epoch, other in zip(*(read_record(run)["measures"]["epochs"] for run in (one, two)), strict=True):
        assert epoch["dev_loss"] == pytest.approx(other["dev_loss"], rel=1e-4)
    assert (read_record(two)["processes"], read_record(two)["strategy"]) == (2, strategy)
    assert {p.name for p in two.adapter.iterdir()} == {p.name for p in one.adapter.iterdir()}


def test_zero1_computes_the_very_numbers_of_ddp(trained: dict[str, Run]) -> None:
    assert adapter_bytes(trained["zero1"]) == adapter_bytes(trained["ddp"])
    assert measured(trained["zero1"]) == measured(trained["ddp"])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_stopped_and_resumed_equals_uninterrupted(trained: dict[str, Run], strategy: str) -> None:
    whole, stopped = trained[strategy], trained[f"{strategy}-stopped"]
    assert adapter_bytes(stopped) == adapter_bytes(whole)
    assert measured(stopped) == measured(whole)


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "fsdp2"])
def test_a_process_keeps_half_of_the_optimizers_state(trained: dict[str, Run], strategy: str) -> None:
    whole, part = (read_record(trained[name])["optimizer_bytes"] for name in ("ddp", strategy))
    numbers = sum(t.numel() for t in load_file(trained["ddp"].adapter / "adapter_model.safetensors").values())
    assert whole >= 8 * numbers
    assert 0.45 * whole < part < 0.55 * whole


# -- the pieces, in this process ----------------------------------------------------------------------------------


def test_every_weight_has_one_owner_and_all_own_alike() -> None:
    sizes = [(n, f"layers.{n}.{part}") for n in range(12) for part in ("a", "b", "c")]
    weights = {name: torch.nn.Parameter(torch.zeros(10 + n)) for n, name in sizes}
    rounds = _rounds(weights, 3)
    owned = [[i for round_ in rounds for i in round_[rank]] for rank in range(3)]
    assert sorted(i for part in owned for i in part) == list(range(36))
    numbers = [sum(list(weights.values())[i].numel() for i in part) for part in owned]
    assert max(numbers) - min(numbers) <= 22


CPU, NO_BASE = Hardware("cpu", torch.float32, None), Path("nowhere")


def test_auto_says_what_it_chose_and_why() -> None:
    name, why = choose_strategy("auto", TrainOptions(), 2, CPU, NO_BASE)
    assert name == "ddp" and "LoRA" in why
    assert choose_strategy("auto", TrainOptions(method="full"), 2, CPU, NO_BASE)[0] == "zero1"
    on_gpu = Hardware("cuda", torch.float32, None)
    assert choose_strategy("auto", TrainOptions(method="full"), 2, on_gpu, NO_BASE)[0] == "fsdp2"
    assert choose_strategy("zero2", TrainOptions(), 1, CPU, NO_BASE)[0] == "single"


def test_what_a_sharded_model_cannot_go_with_is_told_at_once() -> None:
    options = TrainOptions(bits=4, optimizer="adamw-8bit", checkpointing=True, offload=True)
    with pytest.raises(InputError) as caught:
        choose_strategy("fsdp2", options, 2, CPU, NO_BASE)
    for where in ("train.bits", "train.optimizer", "train.offload"):
        assert where in str(caught.value)
    assert choose_strategy("zero2", options, 2, CPU, NO_BASE)[0] == "zero2"
    with pytest.raises(InputError, match="did you mean 'zero2'"):
        choose_strategy("zero-2", TrainOptions(), 2, CPU, NO_BASE)


def test_one_process_needs_no_strategy(make_run: MakeRun) -> None:
    run = make_run(epochs=1, own=2, shared=1)
    train(run, strategy="zero2")
    assert read_record(run)["strategy"] == "single"
    assert Processes().world == 1
