"""Where a training stands, on disk: adapter weights, optimizer, the best adapter so far, and the measures.

One folder `checkpoint/` in the run folder, replaced whole, so a killed process leaves either the old or the new one.
Nothing in it is a pickle of code: safetensors, a `weights_only` optimizer file and JSON.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mrp.errors import InputError
from mrp.files import read_json, replacing_folder, settle_folder, write_json
from mrp.train.sharding import Gathered, Update, part_of, whole


@dataclass
class State:
    """What a resumed training must know."""

    inputs: dict[str, Any]  # what the adapter depends on (`record.training_inputs`)
    processes: int = 1
    step: int = 0  # steps done
    epochs_measured: int = 0  # epochs after which dev and held-out were measured
    best_epoch: int | None = None  # from 1
    best_dev_loss: float | None = None
    stage: int = 0  # whose weights are saved: 0 the adapter's, then the groups of voices
    voices: dict[str, dict[str, Any]] = field(default_factory=dict)  # of each: the epoch kept so far and its dev loss
    before: dict[str, float] = field(default_factory=dict)  # held-out loss of each character without the adapter
    epochs: list[dict[str, Any]] = field(default_factory=list)  # the measures after each epoch
    curve: list[dict[str, Any]] = field(default_factory=list)  # held-out loss between the ends of epochs
    epoch_losses: dict[str, list[float]] = field(default_factory=dict)  # of the running epoch: sum, tokens
    kernels: dict[str, str] = field(default_factory=dict)  # how the adapter was trained: name and why
    seconds: float = 0.0
    tokens: int = 0
    labelled: int = 0


def checkpoint_folder(run_folder: Path) -> Path:
    return run_folder / "checkpoint"


def save(
    run_folder: Path,
    state: State,
    weights: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer | Update | Gathered,
    best: dict[str, torch.Tensor],
) -> None:
    """Write the checkpoint. Raises `SetupError` if the disk is full; the one before is then still there."""
    with replacing_folder(checkpoint_folder(run_folder)) as folder, disk_errors():
        save_file(copy_of(weights), str(folder / "weights.safetensors"))
        with (folder / "optimizer.pt").open("wb") as file:
            torch.save(optimizer.state_dict(), file)
        if best:
            save_file(best, str(folder / "best.safetensors"))
        write_json(folder / "state.json", asdict(state))


def read_state(run_folder: Path) -> State | None:
    """The state of a training that was stopped, or None."""
    path = checkpoint_folder(run_folder) / "state.json"
    if not path.is_file():
        return None
    try:
        return State(**read_json(path))
    except TypeError as error:
        fix = "begin anew with `mrp train RUN --restart`"
        raise InputError("this checkpoint is from another version of mrp", str(path), fix) from error


def load(run_folder: Path, weights: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer | Update) -> None:
    """Put the checkpoint's numbers into `weights` and `optimizer`."""
    folder = checkpoint_folder(run_folder)
    kept = load_file(str(folder / "weights.safetensors"))
    put(weights, kept)
    optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True, map_location="cpu"))


def load_best(run_folder: Path) -> dict[str, torch.Tensor]:
    """The best adapter so far, and the best voices; empty before the first epoch was measured."""
    best = checkpoint_folder(run_folder) / "best.safetensors"
    return load_file(str(best)) if best.is_file() else {}


def put(weights: dict[str, torch.nn.Parameter], values: dict[str, torch.Tensor]) -> None:
    """Copy `values` into the parameters of the same names (of sharded ones each process takes its part)."""
    with torch.no_grad():
        for name, parameter in weights.items():
            parameter.copy_(part_of(values[name], parameter))


def copy_of(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Whole copies on the CPU; of sharded weights all processes must ask for them."""
    return {name: whole(p.detach()).cpu().contiguous().clone() for name, p in weights.items()}


def settle(run_folder: Path) -> None:
    """After a kill in the middle of writing: the checkpoint before is in its place, half-written ones are gone."""
    settle_folder(checkpoint_folder(run_folder))


def remove(run_folder: Path) -> None:
    folder = checkpoint_folder(run_folder)
    (folder / "state.json").unlink(missing_ok=True)  # first, so that a half-removed one is none
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def disk_errors() -> Iterator[None]:
    """What safetensors and torch raise when the disk fails, as the `OSError` behind it (`files` makes it readable)."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        if isinstance(error.__context__, OSError):  # torch, writing into a file that Python opened
            raise error.__context__ from error
        found = re.search(r"\(os error (\d+)\)", str(error))  # safetensors
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1]))) from error
