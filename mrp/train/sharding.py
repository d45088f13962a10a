"""How several processes share the work of one update: ddp, zero1, zero2; `sharded_model.py` has fsdp2 (zero3).

    update = ZeroUpdate(weights, processes, lambda own: make_optimizer(own, options), frees_gradients=True)
    update.begin_step(); ...backward...; update.after_pass()     # as often in every process
    norm = update.reduce(clip)                                   # gradients are summed and clipped
    update.step()                                                # every process has the new weights

Each process owns whole parameters, never pieces of one: so any optimizer works (the 8-bit one keeps its blocks), its
state is that of one process, a checkpoint is the same file under every strategy, and an update of zero1 or zero2
computes the very numbers of ddp's. Source: Rajbhandari et al. 2019, "ZeRO" (arXiv 1910.02054).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
import torch.distributed as dist

from mrp.errors import InputError
from mrp.train.processes import Processes

Weights = dict[str, torch.nn.Parameter]
MakeOptimizer = Callable[[Sequence[torch.nn.Parameter]], torch.optim.Optimizer]
# torch 2.13 gave these two new names
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
ROUND_NUMBERS = 4_000_000  # that a process gets in one exchange: bounds what exchanging needs beside the weights


class Update(Protocol):
    """What the loop asks of a strategy. All but `param_groups` must be called in every process."""

    in_step: bool  # each process must pass through the model as often as the others

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...

    def begin_step(self) -> None: ...

    def after_pass(self) -> None: ...

    def empty_pass(self) -> None: ...

    def reduce(self, clip: float) -> float: ...

    def step(self) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, whole: dict[str, Any]) -> None: ...

    def state_bytes(self) -> int: ...


@dataclass(frozen=True)
class Gathered:
    """The state of all parameters, gathered for a checkpoint."""

    whole: dict[str, Any]

    def state_dict(self) -> dict[str, Any]:
        return self.whole


class DdpUpdate:
    """Every process sums all gradients, and makes the same update; one process alone does that too."""

    in_step = False

    def __init__(self, weights: Weights, processes: Processes, make: MakeOptimizer) -> None:
        self.parameters, self.processes = list(weights.values()), processes
        self.optimizer = make(self.parameters)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = self.optimizer.param_groups
        return groups

    def begin_step(self) -> None:
        pass

    def after_pass(self) -> None:
        pass

    def empty_pass(self) -> None:
        """A pass for which this process has no rows."""

    def reduce(self, clip: float) -> float:
        """Sum the gradients over all processes and clip them; returns their norm before that."""
        self.processes.sum_gradients(self.parameters)
        return float(torch.nn.utils.clip_grad_norm_(self.parameters, clip))

    def step(self) -> None:
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = self.optimizer.state_dict()
        return state

    def load_state_dict(self, whole: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(whole)

    def state_bytes(self) -> int:
        """What the optimizer keeps in this process."""
        return bytes_of(self.optimizer.state)


class ZeroUpdate:
    """Each process updates the parameters that it owns, and gives them to the others.

    `frees_gradients` (zero2): gradients are summed as soon as the backward pass has made them, and only those of own
    parameters are kept; else (zero1) after the last pass of a step. Raises `InputError` for more processes than
    parameters.
    """

    in_step = False

    def __init__(self, weights: Weights, processes: Processes, make: MakeOptimizer, frees_gradients: bool) -> None:
        self.processes, self.frees_gradients = processes, frees_gradients
        self.parameters = list(weights.values())
        if len(self.parameters) < processes.world:
            what = f"{processes.world} processes cannot share the update of {len(self.parameters)} weights"
            raise InputError(what, "--strategy", "take --strategy ddp")
        self.rounds = _rounds(weights, processes.world)
        self.own = sorted(index for round_ in self.rounds for index in round_[processes.rank])
        self.optimizer = make([self.parameters[index] for index in self.own])
        self.sums: dict[int, torch.Tensor] = {}  # zero2: of own parameters, over the passes so far
        self.missing: list[int] = []  # zero2: gradients of each round that this pass has not made yet
        self.next = 0  # the round to be summed next; all processes sum in this order
        self.hooks: list[Any] = []
        self._begin_pass()
        if frees_gradients:
            for number, round_ in enumerate(self.rounds):
                for index in (i for part in round_ for i in part):
                    hook = partial(self._made, number)
                    self.hooks.append(self.parameters[index].register_post_accumulate_grad_hook(hook))

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = self.optimizer.param_groups
        return groups

    def begin_step(self) -> None:
        self.sums = {}

    def _begin_pass(self) -> None:
        self.missing, self.next = [sum(map(len, round_)) for round_ in self.rounds], 0

    def _made(self, number: int, parameter: torch.Tensor) -> None:
        """A gradient is there: the rounds that are now whole, and whose turn it is, are summed."""
        del parameter
        self.missing[number] -= 1
        while self.next < len(self.rounds) and self.missing[self.next] == 0:
            self._sum_round()

    def after_pass(self) -> None:
        """zero2: sum what the pass did not (no gradient counts as zero)."""
        if self.frees_gradients:
            while self.next < len(self.rounds):
                self._sum_round()
            self._begin_pass()

    def empty_pass(self) -> None:
        """A pass for which this process has no rows: it takes part in the sums all the same."""
        self.after_pass()

    def _sum_round(self) -> None:
        round_ = self.rounds[self.next]
        self.next += 1
        grads = [[self._gradient(index) for index in part] for part in round_]
        given = self._packed(grads)
        mine = torch.empty_like(given[0])
        _reduce_scatter(mine, given.view(-1))
        for part in round_:
            for index in part:
                self.parameters[index].grad = None
        for index, grad in self._unpacked(mine, round_[self.processes.rank]):
            self.sums[index] = self.sums[index].add_(grad) if index in self.sums else grad.clone()

    def _gradient(self, index: int) -> torch.Tensor:
        parameter = self.parameters[index]
        return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad

    def reduce(self, clip: float) -> float:
        """Gradients of own parameters become the sum over all processes, clipped by the norm of all of them."""
        if not self.frees_gradients:
            self._begin_pass()
            while self.next < len(self.rounds):
                self._sum_round()
        norms = torch.zeros(len(self.parameters), device=self.parameters[0].device)
        for index in self.own:
            self.parameters[index].grad = self.sums.pop(index)
            norms[index] = torch.linalg.vector_norm(self.parameters[index].grad)
        norm = torch.linalg.vector_norm(self.processes.sum(norms))  # each norm is of one process: their sum is exact
        torch.nn.utils.clip_grads_with_norm_([self.parameters[index] for index in self.own], clip, norm)
        return float(norm)

    def step(self) -> None:
        """Update own parameters and exchange them."""
        self.optimizer.step()
        with torch.no_grad():
            self._exchange()

    def _exchange(self) -> None:
        rank = self.processes.rank
        for round_ in self.rounds:
            values = [[self.parameters[index].detach() for index in part] for part in round_]
            given = self._packed([part if number == rank else [] for number, part in enumerate(values)], round_)
            whole = torch.empty_like(given)
            _all_gather(whole.view(-1), given[rank].contiguous())
            for part, row in zip(round_, whole, strict=True):
                for index, value in self._unpacked(row, part):
                    self.parameters[index].copy_(value)

    def _packed(self, parts: list[list[torch.Tensor]], round_: list[list[int]] | None = None) -> torch.Tensor:
        """(world, numbers): the tensors of each process in a row, filled up to the longest row."""
        sizes = [[self.parameters[i].numel() for i in part] for part in round_] if round_ else None
        width = max(sum(part) for part in sizes or [[t.numel() for t in part] for part in parts])
        kinds = {p.dtype for p in self.parameters}
        kind = kinds.pop() if len(kinds) == 1 else torch.float32
        rows = torch.zeros(len(parts), width, dtype=kind, device=self.parameters[0].device)
        for row, part in zip(rows, parts, strict=True):
            at = 0
            for tensor in part:
                row[at : at + tensor.numel()] = tensor.reshape(-1)
                at += tensor.numel()
        return rows

    def _unpacked(self, row: torch.Tensor, part: list[int]) -> list[tuple[int, torch.Tensor]]:
        found, at = [], 0
        for index in part:
            like = self.parameters[index]
            found.append((index, row[at : at + like.numel()].view_as(like).to(like.dtype)))
            at += like.numel()
        return found

    def state_dict(self) -> dict[str, Any]:
        """In the first process the state of all parameters, as one optimizer over all of them has it; {} elsewhere."""
        state = self.optimizer.state_dict()
        numbered = {self.own[i]: _on_host(values) for i, values in state["state"].items()}
        parts: list[Any] | None = [None] * self.processes.world if self.processes.is_first else None
        dist.gather_object(numbered, parts, dst=0)
        if parts is None:
            return {}
        whole = {index: values for part in parts for index, values in part.items()}
        groups = [group | {"params": list(range(len(self.parameters)))} for group in state["param_groups"]]
        return {"state": dict(sorted(whole.items())), "param_groups": groups}

    def load_state_dict(self, whole: dict[str, Any]) -> None:
        """Take this process's part of the state of all parameters."""
        mine = {i: whole["state"][index] for i, index in enumerate(self.own) if index in whole["state"]}
        groups = [group | {"params": list(range(len(self.own)))} for group in whole["param_groups"]]
        self.optimizer.load_state_dict({"state": mine, "param_groups": groups})

    def state_bytes(self) -> int:
        """What the optimizer keeps in this process."""
        return bytes_of(self.optimizer.state)


def _rounds(weights: Weights, world: int) -> list[list[list[int]]]:
    """Numbers of parameters by round and owner, the last layers first, since a backward pass makes those first.

    The largest of a round goes to whoever owns least so far.
    """
    names = list(weights)
    order = sorted(range(len(names)), key=lambda i: _by_depth(names[i]), reverse=True)
    sizes = [p.numel() for p in weights.values()]
    rounds: list[list[list[int]]] = []
    owned, chosen = [0] * world, []
    for place, index in enumerate(order):
        chosen.append(index)
        last = place == len(order) - 1
        if not last and sum(sizes[i] for i in chosen) < world * ROUND_NUMBERS:
            continue
        parts: list[list[int]] = [[] for _ in range(world)]
        for i in sorted(chosen, key=lambda i: (-sizes[i], i)):
            owner = min(range(world), key=owned.__getitem__)
            parts[owner].append(i)
            owned[owner] += sizes[i]
        rounds.append(parts)
        chosen = []
    return rounds


def _by_depth(name: str) -> list[tuple[int, str]]:
    """Sorts layer 10 after layer 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _on_host(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value.cpu() if isinstance(value, torch.Tensor) else value for key, value in values.items()}


def bytes_of(state: dict[Any, dict[str, Any]]) -> int:
    """Bytes of the tensors in an optimizer's `state`, in this process."""
    tensors = [value for values in state.values() for value in values.values() if isinstance(value, torch.Tensor)]
    return sum(t.to_local().nbytes if hasattr(t, "to_local") else t.nbytes for t in tensors)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` itself, or all of it if each process has a part: then every process must call this."""
    found: torch.Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return found


def part_of(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`value`, cut as `like` is if each process has a part of that."""
    if not hasattr(like, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor

    sharded: Any = like
    return distribute_tensor(value.to(sharded.device), sharded.device_mesh, sharded.placements, src_data_rank=None)
