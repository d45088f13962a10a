"""DeepSpeed checkpoints of ZeRO stages 1 and 2: the float32 masters of all ranks, joined.

    joined = read_zero(Path("iter_500.pth"))       # the folder that `xtuner train --deepspeed deepspeed_zero2` leaves

`mp_rank_00_model_states.pt` holds the weights in 16 bit (`module`) and, group by group, the shapes of the trained ones
in their order (`param_shapes`). The masters of a group are one long row of numbers, padded at its end and cut into
equal parts, one a rank, each in its file:

    | wqkv.lora_A | wqkv.lora_B | wo.lora_A | ... | padding |
    |    rank 0    |    rank 1     |    rank 2     | rank 3  |

The row is padded to a multiple of 2 * ranks (deepspeed/utils/zero_to_fp32.py, whose checks are made here too). As the
weights in 16 bit are the masters rounded, they tell whether all files are of one step of one run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mrp.errors import InputError, MrpError, raise_all
from mrp.xtuner.pickled import COPY, PickledFile, StandIn, StoredPart, open_pickled, tensors_in

MODEL_FILE = "mp_rank_00_model_states.pt"
RANK_FILE = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
OPTIMIZER, MASTERS = "optimizer_state_dict", "single_partition_of_fp32_groups"


@dataclass(frozen=True)
class Joined:
    """The trained weights of a DeepSpeed checkpoint."""

    tensors: dict[str, torch.Tensor]  # float32
    model_state: dict[str, Any]
    facts: dict[str, Any]


@dataclass(frozen=True)
class _Rank:
    """What one rank's file holds."""

    path: Path
    masters: list[torch.Tensor]  # a part of each group
    world: int
    stage: int | None
    told: dict[str, Any]  # what all ranks of one step say alike


def is_zero_folder(folder: Path) -> bool:
    """True if the folder looks like a checkpoint of DeepSpeed, whole or not."""
    return folder.is_dir() and any(folder.glob("*_states.pt"))


def read_zero(folder: Path, check: Callable[[Iterable[str]], None] = lambda _: None) -> Joined:
    """Join the ranks of a checkpoint; `check` is told the names of the trained weights before any number is read.

    Raises `InputError` for missing ranks, ranks of different runs and ZeRO-3.
    """
    paths = _rank_paths(folder)
    with open_pickled(folder / MODEL_FILE) as file:
        state = file.value if isinstance(file.value, dict) else {}
        groups = _groups(state, file.path)
        names = [name for group in groups for name in group]
        check(names)
        module = tensors_in(state.get("module"))
        ranks = [_read_rank(path) for path in paths]
        _check_ranks(ranks, len(groups), folder)
        tensors: dict[str, torch.Tensor] = {}
        for index, group in enumerate(groups):
            tensors |= _cut(group, [rank.masters[index] for rank in ranks], folder)
        for name in names:
            if name in module:
                _check_rounding(name, tensors[name], file.tensor(module[name], name), folder)
    facts = {"ranks": len(ranks), "stage": ranks[0].stage}
    return Joined(tensors, state, {key: value for key, value in facts.items() if value is not None})


# -- files -------------------------------------------------------------------------------------------------------------


def _rank_paths(folder: Path) -> list[Path]:
    """The files of rank 0, 1, 2, ...; `InputError` with every gap."""
    if any(folder.glob("zero_pp_rank_*_model_states.pt")):
        fix = "join it where DeepSpeed is installed, by the zero_to_fp32.py in it, or train with ZeRO-1 or 2"
        raise InputError("the checkpoint is of ZeRO stage 3, which is not read", str(folder), fix)
    found: dict[int, Path] = {}
    faults: list[MrpError] = []
    if not (folder / MODEL_FILE).is_file():
        faults.append(InputError(f"the checkpoint lacks {MODEL_FILE}", str(folder), COPY))
    for path in sorted(folder.glob("*_optim_states.pt")):
        numbers = RANK_FILE.fullmatch(path.name)
        if numbers is None or int(numbers[2]):
            what = f"{path.name} is of a model cut over several GPUs (tensor parallel), which is not read"
            faults.append(InputError(what, str(path), "train with data parallelism alone, as XTuner does by default"))
        elif int(numbers[1]) in found:
            what = f"rank {int(numbers[1])} is there twice: {found[int(numbers[1])].name} too"
            faults.append(InputError(what, str(path), "take away the file that is of another run"))
        else:
            found[int(numbers[1])] = path
    for rank in sorted(set(range(max(found, default=-1) + 1)) - found.keys()):
        faults.append(InputError(f"the file of rank {rank} is missing", str(folder), COPY))
    if not found:
        faults.append(InputError("the checkpoint has no *_optim_states.pt of any rank", str(folder), COPY))
    raise_all(f"{folder.name} is not whole", faults)
    return [found[rank] for rank in sorted(found)]


def _groups(state: dict[str, Any], path: Path) -> list[dict[str, tuple[int, ...]]]:
    """Name to shape of the trained weights, group by group, in the order of the masters."""
    told = state.get("param_shapes")
    groups = [told] if isinstance(told, dict) else told
    shapes = [shape for group in groups or [] if isinstance(group, dict) for shape in group.values()]
    are_shapes = all(isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape) for shape in shapes)
    if not isinstance(groups, list) or not shapes or not are_shapes:
        raise InputError("the file does not tell which weights were trained (param_shapes)", str(path), COPY)
    return groups


def _read_rank(path: Path) -> _Rank:
    with open_pickled(path) as file:
        value = file.value if isinstance(file.value, dict) else {}
        state = value.get(OPTIMIZER)
        parts = state.get(MASTERS) if isinstance(state, dict) else None
        if not isinstance(state, dict) or not isinstance(parts, list):
            what = f"the file holds no masters of ZeRO stage 1 or 2 ({MASTERS})"
            raise InputError(what, str(path), "name a checkpoint that was trained with ZeRO-1 or ZeRO-2")
        if not all(isinstance(part, StoredPart) for part in parts):
            raise InputError(f"{MASTERS} holds something other than tensors", str(path), COPY)
        masters = [file.tensor(part, MASTERS).flatten().float() for part in parts]
        counts = state.get("partition_count")
        world = max(counts) if isinstance(counts, list) and counts else counts
        if type(world) is not int:
            raise InputError("the file does not tell how many ranks there were (partition_count)", str(path), COPY)
        optimizer = state.get("base_optimizer_state")
        told = {
            "DeepSpeed's version": value.get("ds_version"),
            "the number of ranks": world,
            "the number of groups": len(masters),
            "the learning rate": _rates(optimizer),
            "the optimizer's step": [_number(file, step) for step in _steps(optimizer)][:1],
        }
        return _Rank(path, masters, world, _stage(state, value), told)


def _stage(state: dict[str, Any], value: dict[str, Any]) -> int | None:
    stage = state.get("zero_stage")
    if isinstance(stage, StandIn):  # an enum, made of its number
        stage = stage.args[0] if stage.args else None
    if stage is None and isinstance(config := value.get("ds_config"), dict):
        stage = (config.get("zero_optimization") or {}).get("stage")
    return stage if type(stage) is int else None


def _rates(optimizer: Any) -> list[Any]:
    groups = optimizer.get("param_groups") if isinstance(optimizer, dict) else None
    return [group.get("lr") for group in groups or [] if isinstance(group, dict)]


def _steps(optimizer: Any) -> list[Any]:
    state = optimizer.get("state") if isinstance(optimizer, dict) else None
    return [item["step"] for item in (state or {}).values() if isinstance(item, dict) and "step" in item]


def _number(file: PickledFile, value: Any) -> Any:
    return float(file.tensor(value, "step").flatten()[0]) if isinstance(value, StoredPart) else value


# -- joining -----------------------------------------------------------------------------------------------------------


def _check_ranks(ranks: list[_Rank], groups: int, folder: Path) -> None:
    """`InputError` with every sign that files are missing, or not of one step of one run."""
    faults: list[MrpError] = []
    first = ranks[0]
    if first.stage not in (None, 1, 2):
        what = f"the checkpoint is of ZeRO stage {first.stage}, and 1 and 2 are read"
        faults.append(InputError(what, str(first.path), "train with ZeRO-1 or ZeRO-2"))
    if first.world != len(ranks):
        what = f"the training had {first.world} ranks, and the files of {len(ranks)} are there"
        faults.append(InputError(what, str(folder), COPY))
    if len(first.masters) != groups:
        what = f"it holds {len(first.masters)} groups of weights, and {MODEL_FILE} tells of {groups}"
        faults.append(InputError(f"{what}: they are of different runs", str(first.path), COPY))
    for rank in ranks[1:]:
        for key, value in rank.told.items():
            if value != first.told[key]:
                what = f"{key} is {value} here and {first.told[key]} in {first.path.name}: they are of different runs"
                faults.append(InputError(what, str(rank.path), COPY))
        lengths, own = [len(m) for m in first.masters], [len(m) for m in rank.masters]
        if lengths != own and rank is not ranks[-1]:  # the last one may have lost its padding
            what = f"it holds {own} numbers, and {first.path.name} holds {lengths}: they are of different runs"
            faults.append(InputError(what, str(rank.path), COPY))
    raise_all(f"{folder.name} cannot be joined", faults)


def _cut(shapes: dict[str, tuple[int, ...]], parts: list[torch.Tensor], folder: Path) -> dict[str, torch.Tensor]:
    """The weights of one group out of its row of numbers."""
    row = torch.cat(parts)
    wanted = sum(math.prod(shape) for shape in shapes.values())
    multiple = 2 * len(parts)
    if len(row) < wanted or math.ceil(wanted / multiple) != math.ceil(len(row) / multiple):
        what = f"the ranks hold {len(row):,} numbers, and the trained weights have {wanted:,}"
        raise InputError(what, str(folder), f"{COPY}: {MODEL_FILE} and the files of the ranks are not of one run")
    found: dict[str, torch.Tensor] = {}
    at = 0
    for name, shape in shapes.items():
        count = math.prod(shape)
        found[name] = row[at : at + count].view(shape).clone()
        at += count
    return found


def _check_rounding(name: str, master: torch.Tensor, rounded: torch.Tensor, folder: Path) -> None:
    """The weight in 16 bit must be the master rounded (by one step of its format at most)."""
    if not rounded.dtype.is_floating_point or rounded.shape != master.shape:
        raise InputError(f"{name} has another shape in {MODEL_FILE} than in its masters", str(folder), COPY)
    form = torch.finfo(rounded.dtype)
    exact, other = master, rounded.float()
    allowed = 2 * form.eps * torch.maximum(exact.abs(), other.abs()) + form.smallest_normal
    is_off = ~((exact - other).abs() <= allowed) & ~(exact.isnan() & other.isnan())
    if bool(is_off.any()):
        what = f"the masters of {name} are not the weights in {MODEL_FILE}: some files are of another run or step"
        raise InputError(what, str(folder), COPY)
