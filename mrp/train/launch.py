"""`mrp train --gpus N`: start the processes of one training, let the first one talk, and end them together.

    if must_start(gpus=2, nodes=None):
        result = start(["train", "mrp.yaml", "--json"], gpus=2, nodes=1, strategy="zero2")

The processes find each other as those of torchrun do (RANK, WORLD_SIZE, MASTER_ADDR, ...). Ours, since torchrun ends
with code 1 whatever happened and lets every process talk. Nothing outlives the command: a process whose starter is
gone saves and ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any

import typer

from mrp.errors import LOST, InputError, nearest

STRATEGIES = ("auto", "ddp", "zero1", "zero2", "zero3", "fsdp2")
STARTED_WITH = "MRP_STARTED_WITH"  # in a started process's environment: the flags with which to start it again
PORT = 29500  # where the processes of several machines meet, if MASTER_PORT does not say
GRACE_S = 10.0  # for the others to end by themselves, when one has failed


def must_start(gpus: int | None, nodes: int | None) -> bool:
    """True if this command has to start processes. Under torchrun they run already, as many as the flags say.

    Raises `InputError` where the flags and torchrun disagree.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return (gpus or 1) > 1 or (nodes or 1) > 1
    world, here = int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    asked = {"--gpus": (gpus, here), "--nodes": (nodes, world // here)}
    wrong = [f"{flag} {wanted}" for flag, (wanted, found) in asked.items() if wanted not in (None, found)]
    if wrong:
        what = f"{' '.join(wrong)}, but torchrun started {here} processes on each of {world // here} machines"
        raise InputError(what, " ".join(wrong), "leave --gpus and --nodes away: torchrun has decided")
    return False


@dataclass(frozen=True)
class Place:
    """This machine among those of a training, and where they meet."""

    node: int
    address: str
    port: int


def find_place(nodes: int, command: str, environment: Mapping[str, str] = os.environ) -> Place:
    """From MASTER_ADDR, MASTER_PORT and NODE_RANK, or from SLURM; `InputError` with the commands that would do."""
    if nodes == 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return Place(0, "127.0.0.1", free.getsockname()[1])
    in_slurm = "SLURM_NODEID" in environment
    node = environment.get("NODE_RANK", environment.get("SLURM_NODEID", ""))
    address = environment.get("MASTER_ADDR") or (_first_of_slurm(environment) if in_slurm else "")
    port = environment.get("MASTER_PORT", str(PORT))
    if not (node.isdigit() and int(node) < nodes and address and port.isdigit()):
        lines = [f"MASTER_ADDR=<address of the first> NODE_RANK={n} {command}" for n in range(nodes)]
        fix = "start one command on each machine, all with the run in a folder that they share:\n" + "\n".join(
            f"           {line}" for line in lines
        )
        raise InputError(f"this machine does not know its place among {nodes}", "MASTER_ADDR, NODE_RANK", fix)
    return Place(int(node), address, int(port))


def _first_of_slurm(environment: Mapping[str, str]) -> str:
    """The first machine of a SLURM job; empty if SLURM does not say."""
    names = environment.get("SLURM_JOB_NODELIST", "")
    try:
        done = subprocess.run(["scontrol", "show", "hostnames", names], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "" if set(names) & set("[],") else names
    return (done.stdout.splitlines() or [""])[0]


def start_training(
    run: Path,
    order: str | None,
    resume: bool,
    restart: bool,
    gpus: int,
    nodes: int,
    strategy: str,
    settings: Sequence[str],
    flags: Sequence[str],
) -> dict[str, Any]:
    """`mrp train` with these flags in several processes."""
    check_strategy(strategy)
    arguments = ["train", str(run), *flags]
    arguments += ["--order", order] if order else []
    arguments += ["--resume"] if resume else []
    arguments += ["--restart"] if restart else []
    arguments += [part for setting in settings for part in ("--set", setting)]
    return start(arguments, gpus, nodes, strategy)


def check_strategy(name: str) -> None:
    """`InputError` for an unknown strategy."""
    if name not in STRATEGIES:
        raise InputError(f"unknown strategy {name!r}", "--strategy", nearest(name, STRATEGIES))


def start(arguments: Sequence[str], gpus: int, nodes: int, strategy: str) -> dict[str, Any]:
    """Run `mrp ARGUMENTS` in `gpus` processes here, and return the result of the first (with --json).

    Raises `typer.Exit` with the exit code of whoever failed, after its text is told.
    """
    again = f"--gpus {gpus}" + (f" --nodes {nodes}" if nodes > 1 else "") + f" --strategy {strategy}"
    place = find_place(nodes, f"mrp {shlex.join(arguments)} {again}")
    arguments = [*arguments, "--strategy", strategy]
    with tempfile.TemporaryDirectory(prefix="mrp-") as folder:
        group = _Group(Path(folder), talks=place.node == 0, as_json="--json" in arguments)
        try:
            for local in range(gpus):
                group.start(arguments, _environment(local, gpus, nodes, place, again))
            with group.signals_handed_on():
                group.wait()
        finally:
            group.kill()
        return group.result()


def _environment(local: int, gpus: int, nodes: int, place: Place, again: str) -> dict[str, str]:
    threads = max(1, (os.cpu_count() or 1) // gpus)
    numbers = {"RANK": place.node * gpus + local, "LOCAL_RANK": local, "WORLD_SIZE": nodes * gpus}
    numbers |= {"LOCAL_WORLD_SIZE": gpus, "MASTER_PORT": place.port}
    given = {name: str(number) for name, number in numbers.items()}
    given |= {"MASTER_ADDR": place.address, STARTED_WITH: again}
    return {"OMP_NUM_THREADS": str(threads)} | dict(os.environ) | given


class _Group:
    """The processes of this machine, in the order of their ranks."""

    def __init__(self, folder: Path, talks: bool, as_json: bool) -> None:
        self.folder, self.talks, self.as_json = folder, talks, as_json
        self.processes: list[subprocess.Popen[bytes]] = []
        self.ended: list[int] = []  # those that ended by themselves with an error, in that order
        self.asked = 0  # how often somebody asked to stop

    def start(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start the next one: the first writes where we do (its result is kept), the others into files."""
        number = len(self.processes)
        first = number == 0 and self.talks
        with self._file(number, "out") as out, self._file(number, "err") as err:
            process = subprocess.Popen(
                [sys.executable, "-m", "mrp", *arguments],
                env=dict(environment),
                stdin=subprocess.PIPE,  # closes when we are gone
                stdout=None if first and not self.as_json else out,
                stderr=None if first else err,
                start_new_session=True,  # Ctrl-C comes to us alone, and is handed on once
            )
        self.processes.append(process)

    def _file(self, number: int, stream: str) -> IO[bytes]:
        return (self.folder / f"{number}.{stream}").open("wb")

    def _text(self, number: int, stream: str) -> str:
        return (self.folder / f"{number}.{stream}").read_text(encoding="utf-8", errors="replace")

    @contextlib.contextmanager
    def signals_handed_on(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM ask every process to stop."""

        def hand_on(number: int, frame: FrameType | None) -> None:
            del frame
            self.asked += 1
            for process in self.processes:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(number)

        try:
            before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread: whoever runs us there handles signals
            yield
            return
        try:
            yield
        finally:
            for number, old in before.items():
                signal.signal(number, signal.SIG_DFL if old is None else old)

    def wait(self) -> None:
        """Until all have ended; when one fails, or at the second Ctrl-C, the others get a little time."""
        deadline = None
        while any(process.poll() is None for process in self.processes):
            for number, process in enumerate(self.processes):
                if process.poll() not in (None, 0, LOST) and number not in self.ended:
                    self.ended.append(number)
            failed = any(process.poll() not in (None, 0) for process in self.processes)
            if deadline is None and (failed or self.asked > 1):
                deadline = time.monotonic() + GRACE_S
            if deadline is not None and time.monotonic() > deadline:
                return
            time.sleep(0.05)
        for number, process in enumerate(self.processes):
            if process.returncode not in (0, LOST) and number not in self.ended:
                self.ended.append(number)

    def kill(self) -> None:
        """End what still runs."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdin:
                process.stdin.close()

    def result(self) -> dict[str, Any]:
        """The result of the first process; `typer.Exit` with an error's code, told once, by the first if it knows."""
        codes = [process.returncode for process in self.processes]
        if not any(codes):
            said = self._text(0, "out") if self.as_json and self.talks else ""
            found: dict[str, Any] = json.loads(said.splitlines()[-1]) if said else {}
            return found
        spoke = [number for number in self.ended if codes[number] > 0]
        if self.asked and codes[0] != 0:
            number, code = 0, 130
        elif spoke:
            number = 0 if 0 in spoke else spoke[0]
            code = codes[number]
        else:
            number, code = self.ended[0] if self.ended else 0, 1
        first_told = number == 0 and self.talks
        if not first_told:
            sys.stderr.write(self._text(number, "err"))
        told = self._text(number, "out").splitlines() if self.as_json else []
        if codes[number] < 0 and not self.asked:
            killed = signal.Signals(-codes[number]).name
            what = f"process {number} of the training was ended by {killed}"
            what += " (too little memory, perhaps)" if killed == "SIGKILL" else ""
            sys.stderr.write(f"error: {what}\n  fix:   `--resume` goes on from the last checkpoint\n")
            told = [json.dumps({"error": {"what": what, "where": "", "fix": "--resume"}})]
        elif codes[number] == LOST:
            what = "a process of this training on another machine has ended"
            sys.stderr.write(f"error: {what}\n  fix:   see what it said there\n")
            told = [json.dumps({"error": {"what": what, "where": "", "fix": "see what it said there"}})]
        elif not told:
            told = [json.dumps({"error": {"what": "interrupted", "where": "", "fix": ""}})]
        if self.as_json:
            print(told[-1])
        raise typer.Exit(code)
