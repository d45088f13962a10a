"""Where a training stands, on disk: adapter weights, optimizer, the best adapter so far, and the measures.

One folder `checkpoint/` in the run folder, replaced whole, so a killed process leaves either the old or the new one.
Nothing in it is a pickle of code: safetensors, a `weights_only` optimizer file and JSON.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from mrp.files import read_json, replacing_folder, write_json


@dataclass
class State:
    """What a resumed training must know."""

    fingerprint: str
    step: int = 0  # steps done
    epochs_measured: int = 0  # epochs after which dev and held-out were measured
    best_epoch: int | None = None  # from 1
    best_dev_loss: float | None = None
    before: dict[str, float] = field(default_factory=dict)  # held-out loss of each character without the adapter
    epochs: list[dict[str, Any]] = field(default_factory=list)  # the measures after each epoch
    epoch_losses: dict[str, list[float]] = field(default_factory=dict)  # of the running epoch: sum, tokens
    seconds: float = 0.0
    tokens: int = 0
    labelled: int = 0


def checkpoint_folder(run_folder: Path) -> Path:
    return run_folder / "checkpoint"


def save(
    run_folder: Path,
    state: State,
    weights: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    best: dict[str, torch.Tensor] | None,
) -> None:
    """Write the checkpoint."""
    with replacing_folder(checkpoint_folder(run_folder)) as folder:
        save_file({n: p.detach().cpu().contiguous() for n, p in weights.items()}, str(folder / "weights.safetensors"))
        torch.save(optimizer.state_dict(), folder / "optimizer.pt")
        if best is not None:
            save_file(best, str(folder / "best.safetensors"))
        write_json(folder / "state.json", asdict(state))


def read_state(run_folder: Path) -> State | None:
    """The state of a training that was stopped, or None."""
    path = checkpoint_folder(run_folder) / "state.json"
    return State(**read_json(path)) if path.is_file() else None


def load(
    run_folder: Path, weights: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor] | None:
    """Put the checkpoint's numbers into `weights` and `optimizer`; returns the best adapter so far."""
    folder = checkpoint_folder(run_folder)
    kept = load_file(str(folder / "weights.safetensors"))
    put(weights, kept)
    optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True, map_location="cpu"))
    best = folder / "best.safetensors"
    return load_file(str(best)) if best.is_file() else None


def put(weights: dict[str, torch.nn.Parameter], values: dict[str, torch.Tensor]) -> None:
    """Copy `values` into the parameters of the same names."""
    with torch.no_grad():
        for name, parameter in weights.items():
            parameter.copy_(values[name])


def copy_of(weights: dict[str, torch.nn.Parameter]) -> dict[str, torch.Tensor]:
    return {name: p.detach().cpu().clone() for name, p in weights.items()}


def remove(run_folder: Path) -> None:
    shutil.rmtree(checkpoint_folder(run_folder), ignore_errors=True)
