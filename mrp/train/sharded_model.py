"""fsdp2 (zero3): each process keeps a part of every weight, and gathers a block's weights while it computes with them.

    shard_model(model, "cuda")                        # PyTorch's fully_shard, block by block
    update = ShardedUpdate(model, weights, make)

For what does not fit otherwise: full fine-tuning, and bases larger than one GPU. Gradients are summed, not averaged:
the loss is divided by the labelled tokens of the whole step already.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from mrp.models.load import Hardware
from mrp.models.loss import make_batch, token_losses
from mrp.render import Rendered
from mrp.train.sharding import MakeOptimizer, Weights, bytes_of, part_of, whole


def shard_model(model: Any, device: str) -> None:
    """Shard `model` (on the CPU) over all processes, on `device`."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh(device, (dist.get_world_size(),))
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    blocks = set(getattr(inner, "_no_split_modules", None) or [])
    for module in inner.modules():
        if type(module).__name__ in blocks:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


class ShardedUpdate:
    """The update of a sharded model: gradients arrive summed, each process updates its parts."""

    in_step = True  # a pass gathers weights from all processes

    def __init__(self, model: Any, weights: Weights, make: MakeOptimizer, on: Hardware) -> None:
        self.model, self.parameters, self.on = model, list(weights.values()), on
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
        """Take part in a pass without rows: gradients of zero."""
        batch = make_batch([[Rendered([0, 0], [False, True])]]).to(self.on.device)
        with self.on.autocast_context():
            losses = token_losses(self.model, batch)
        (losses.sum() * 0.0).backward()

    def reduce(self, clip: float) -> float:
        """Clip the gradients by the norm of all of them; returns it."""
        return float(whole(torch.nn.utils.clip_grad_norm_(self.parameters, clip)))

    def step(self) -> None:
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """The state of all parameters, whole, on the CPU; {} but in the first process."""
        state = self.optimizer.state_dict()
        first = dist.get_rank() == 0
        found: dict[int, dict[str, Any]] = {}
        for index, values in state["state"].items():
            taken = {k: whole(v).cpu() if isinstance(v, torch.Tensor) else v for k, v in values.items()}
            if first:
                found[index] = taken
        return {"state": found, "param_groups": state["param_groups"]} if first else {}

    def load_state_dict(self, given: dict[str, Any]) -> None:
        """Take this process's parts of a whole state."""
        cut = {
            index: {k: v if k == "step" else part_of(v, self.parameters[index]) for k, v in values.items()}
            for index, values in given["state"].items()
        }
        self.optimizer.load_state_dict({"state": cut, "param_groups": given["param_groups"]})

    def state_bytes(self) -> int:
        """What the optimizer keeps in this process."""
        return bytes_of(self.optimizer.state)
