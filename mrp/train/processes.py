"""The processes of one training: one by itself, or those that `launch.py` or torchrun started (RANK, WORLD_SIZE).

LoRA gradients are small, so they are summed in one flat all-reduce a step: no wrapper around the model, nothing
between forward and backward, which is what a captured CUDA graph needs later.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from mrp.errors import InputError, LostError, MrpError
from mrp.train.launch import STARTED_WITH

SAVING_S = 120  # for the step in work and its checkpoint, when the starter is gone


@dataclass(frozen=True)
class Processes:
    """This process among all of a training."""

    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        """True in the one process that writes files and talks to the user."""
        return self.rank == 0

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Each parameter's gradient becomes the sum over all processes (none counts as zero)."""
        if self.world == 1:
            return
        chosen = list(parameters)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in chosen]
        flat = torch.cat([g.reshape(-1) for g in grads])
        dist.all_reduce(flat)
        at = 0
        for parameter, grad in zip(chosen, grads, strict=True):
            parameter.grad = flat[at : at + grad.numel()].view_as(grad)
            at += grad.numel()

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of `values` over all processes."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """True if `flag` is set in any process."""
        return flag if self.world == 1 else bool(self.sum(torch.tensor([float(flag)])).item() > 0)

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that ends in all processes when it is done in all; an `MrpError` in one of them is raised in all.

        So a full disk or a locked folder, which only the first process meets, leaves no other waiting for it.
        """
        failed: MrpError | None = None
        try:
            yield
        except MrpError as error:
            if self.world == 1:
                raise
            failed = error
        if self.world == 1:
            return
        texts = [""] * self.world
        dist.all_gather_object(texts, "" if failed is None else str(failed))
        if failed is None:
            failed = next((InputError(f"process {rank}: {text}") for rank, text in enumerate(texts) if text), None)
        if failed is not None:
            failed.shared = True
            raise failed


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the other processes for the length of the block."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Processes()
        return
    if STARTED_WITH in os.environ:
        threading.Thread(target=_end_with_starter, daemon=True).start()
    if torch.cuda.is_available():
        _take_gpu()
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
        dist.barrier()  # one that is gone while others still take their leave can bring them down
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error) or "Connection" in str(error):
            fix = "what the other one said tells more"
            raise LostError("another process of this training has ended, so this one cannot go on", fix=fix) from error
        raise
    finally:
        dist.destroy_process_group()


def _take_gpu() -> None:
    """Each process of a machine has a GPU of its own; `InputError` if there are too few."""
    here, found = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if here > found:
        raise InputError(f"{here} processes want a GPU each, and here are {found}", "--gpus", f"--gpus {found}")
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))


def _end_with_starter() -> None:
    """When `mrp train --gpus` is gone, whatever ended it, save and end."""
    os.read(0, 1)  # nothing is ever written there: this returns when the other side is closed
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SAVING_S)
    os._exit(130)
