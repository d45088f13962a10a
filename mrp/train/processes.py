"""The processes of one training: one by itself, or those that torchrun started (environment RANK, WORLD_SIZE).

LoRA gradients are small, so they are summed in one flat all-reduce a step: no wrapper around the model, nothing
between forward and backward, which is what a captured CUDA graph needs later.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from mrp.errors import InputError, MrpError


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
        if failed is not None:
            raise failed
        for rank, text in enumerate(texts):
            if text:
                raise InputError(f"process {rank}: {text}")


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the other processes for the length of the block."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Processes()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
