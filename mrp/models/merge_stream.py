"""The check of a merge that is too large to load: a sample of its weights, and passes that read a layer at a time.

    logits, without = streamed_logits(base, plan, probes)       # of base + adapters, and of the base alone
    errors, wrong = sampled_weights(base, plan, after)

A model's modules are built without numbers; each linear layer reads its own rows from the files while it computes, in
blocks, so embedding and head too take little memory. The adapters stand beside the weights as (x @ A^T) @ B^T, and not
as the sum that the merge wrote. PEFT is asked for the scale of each layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from mrp.models.adapter_file import skeleton
from mrp.models.merge_numbers import Blocks
from mrp.models.merge_plan import Change, MergePlan
from mrp.models.page_cache import read_ahead
from mrp.models.shards import StoredTensor, read_matrix, read_rows, read_weights, row_blocks

TOKENS = 16  # of each probe
PLACE_BYTES = 64 * 2**10


def can_stream(base: Path, plan: MergePlan) -> bool:
    """True if every parameter of the model stands in the files by its own name, and its vocabulary stays."""
    names = {t.name for t in plan.tensors}
    model = skeleton(base)
    own = {name for name, _ in model.named_parameters()}  # a tied head counts once, as the embedding
    return own <= names and not plan.vocabulary


# -- weights -------------------------------------------------------------------------------------------------------


def sampled_weights(base: Path, plan: MergePlan, after: dict[str, StoredTensor]) -> tuple[dict[str, float], str]:
    """The largest error in sampled rows of each changed weight, as a share of what one rounding may do; and what is
    wrong, or ""."""
    if wrong := _wrong_scale(base, plan):
        return {}, wrong
    errors: dict[str, float] = {}
    for tensor in plan.tensors:
        new = after[tensor.name]
        if tensor.name not in plan.changes:
            if not _same_places(tensor, new):
                return errors, f"{tensor.name} is not the base's, and the adapter does not change it"
            continue
        errors[tensor.name] = _row_error(plan.changes[tensor.name], new)
        if not errors[tensor.name] <= 1:
            return errors, f"{tensor.name} is not the base's weight with the adapter's part, rounded once"
    return errors, ""


def _row_error(change: Change, new: StoredTensor) -> float:
    """Of a row in each block that a merge writes, so that no block can be missing or stand elsewhere."""
    form = torch.finfo(new.torch_dtype)
    rows = [(first + end) // 2 for first, end in row_blocks(new)]
    exact, added = _exact_rows(change, rows)
    slack = added.abs().max(1, keepdim=True).values * 2**-14 + form.smallest_normal * form.eps + 1e-37
    error = (_rows_of(new, rows) - exact).abs()
    return float((error / (exact.abs() * (form.eps / 2) + slack)).max())  # torch's max hands on nan


def _exact_rows(change: Change, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, columns) in float32, and what was added to the source: from the adapters' own matrices and scales, not by
    what the merge multiplies with (merge_numbers.Blocks)."""
    stored = _rows_of(change.source, rows)
    exact = stored.clone()
    for weight, pair in change.addends:
        a, b = pair.factors()
        delta = a[:, rows].T @ b.T if pair.is_embedding else b[rows] @ a
        exact += weight * pair.scale * delta
        if pair.magnitude:
            exact *= read_matrix(pair.magnitude)[rows] / torch.linalg.vector_norm(exact, dim=1, keepdim=True)
    return exact, exact - stored


def _rows_of(tensor: StoredTensor, rows: list[int]) -> torch.Tensor:
    return torch.cat([read_rows(tensor, row, row + 1) for row in rows]).float()


def _same_places(one: StoredTensor, other: StoredTensor) -> bool:
    """True if both agree in form, and in the first, the middle and the last bytes."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    length = min(PLACE_BYTES, one.nbytes)
    with one.path.open("rb") as left, other.path.open("rb") as right:
        for at in {0, (one.nbytes - length) // 2, one.nbytes - length}:
            left.seek(one.start + at)
            right.seek(other.start + at)
            if left.read(length) != right.read(length):
                return False
    return True


def _wrong_scale(base: Path, plan: MergePlan) -> str:
    """What PEFT would multiply otherwise than the merge did, or ""."""
    import peft
    from peft.tuners.lora import LoraLayer

    for adapter, _ in plan.adapters:
        model = skeleton(base)
        config = peft.PeftConfig.from_pretrained(str(adapter.folder))
        peft.inject_adapter_in_model(config, model, low_cpu_mem_usage=True)
        scales = {n: m.scaling["default"] for n, m in model.named_modules() if isinstance(m, LoraLayer)}
        own = {layer: pair.scale for layer, pair in adapter.pairs.items()}
        for layer in sorted(scales.keys() | own.keys()):
            one, other = scales.get(layer), own.get(layer)
            if one is None or other is None or abs(one - other) > 1e-9 * abs(one):
                return f"PEFT scales {layer} by {one}, and the merge by {other}"
    return ""


# -- passes --------------------------------------------------------------------------------------------------------


def streamed_logits(
    folder: Path, plan: MergePlan, probes: Sequence[Sequence[int]]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """(T, V) float32 logits of each probe: with the plan's changes, and (from the same reading) without what they add.

    Where the plan changes nothing, both are the model's own.
    """
    batch = padded(probes)  # (B, T)
    both = torch.cat([batch, batch]) if plan.changes else batch
    half = len(batch)
    model = streaming(
        folder,
        plan,
        lambda _, change, bias, __: _Linear(change, bias[1].source if bias else None, half),
        lambda _, change: _Embedding(change, half),
        _filled,
    )
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        logits = model(input_ids=both, use_cache=False).logits.float()
    with_, without = logits[: len(batch)], logits[-len(batch) :]
    return ([x[k, : len(ids)] for k, ids in enumerate(probes)] for x in (with_, without))  # type: ignore[return-value]


def padded(probes: Sequence[Sequence[int]]) -> torch.Tensor:
    """(B, T) token ids; the padding stands at the end, where no earlier token sees it."""
    width = max(len(ids) for ids in probes)
    return torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in probes])


Named = tuple[str, Change]  # a stored tensor's name, and what becomes of it


def streaming(
    folder: Path,
    plan: MergePlan,
    linear: Callable[[str, Change, Named | None, bool], Any],
    embedding: Callable[[str, Change], Any],
    other: Callable[[Any, dict[str, Named]], Any],
) -> Any:
    """The model without numbers, whose modules get their forward functions from the last three arguments.

    `linear` is given the weight, the bias, and whether the weight is the layer's own (a tied head's is the
    embedding's); `other`, for a norm say, the module and all it holds.
    """
    import transformers
    from accelerate import init_empty_weights

    weights = read_weights(folder)
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with init_empty_weights(include_buffers=False):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    model.eval()
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    shared = next(f"{n}.weight" for n, m in model.named_modules() if m is table)

    def named(name: str) -> Named:
        return name, plan.changes.get(name) or Change(weights[name])

    for name, module in model.named_modules():
        own = {kind: f"{name}.{kind}" for kind, _ in module.named_parameters(recurse=False)}
        if not own:
            continue
        kind = type(module)
        is_tied = module is head and own["weight"] not in weights.keys() | plan.changes.keys()
        if kind is torch.nn.Linear:
            bias = named(own["bias"]) if "bias" in own else None
            module.forward = linear(*named(shared if is_tied else own["weight"]), bias, not is_tied)
        elif kind is torch.nn.Embedding:
            module.forward = embedding(*named(own["weight"]))
        else:
            module.forward = other(module, {kind: named(n) for kind, n in own.items()})
    return model


class _Linear:
    """x @ W^T, block by block of W's rows; the first `half` of the batch gets what the adapters add too."""

    def __init__(self, change: Change, bias: StoredTensor | None, half: int) -> None:
        self.change, self.bias, self.half = change, bias, half

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        blocks, source, parts = Blocks(self.change), self.change.source, []
        read_ahead(source.path, source.start, source.nbytes)
        low = None if blocks.right is None else x[: self.half] @ blocks.right.T  # (half, T, ranks)
        for first, end in row_blocks(source):
            rows = read_rows(source, first, end).float()
            part = x @ rows.T
            if blocks.magnitude is not None:
                part[: self.half] = x[: self.half] @ blocks.sum(first, end)[0].T
            elif low is not None and blocks.left is not None:
                part[: self.half] += low @ blocks.left[first:end].T
            parts.append(part)
        y = torch.cat(parts, -1)
        return y if self.bias is None else y + read_rows(self.bias, 0, self.bias.shape[0]).float().view(-1)


class _Embedding:
    """The rows of the tokens that occur."""

    def __init__(self, change: Change, half: int) -> None:
        self.change, self.half = change, half

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        blocks = Blocks(self.change)
        found = {int(i): blocks.sum(int(i), int(i) + 1) for i in ids.unique()}
        rows = torch.stack([found[int(i)][0] for i in ids.flatten()]).view(*ids.shape, -1)
        if self.change.addends:
            plain = torch.stack([found[int(i)][0] - found[int(i)][1] for i in ids.flatten()]).view(*ids.shape, -1)
            rows[self.half :] = plain[self.half :]
        return rows


def _filled(module: Any, sources: dict[str, Named]) -> Any:
    """A small module (a norm) with its numbers."""
    for kind, (_, change) in sources.items():
        shape = module.get_parameter(kind).shape
        numbers = read_rows(change.source, 0, change.source.shape[0]).float().view(shape)
        setattr(module, kind, torch.nn.Parameter(numbers, requires_grad=False))
    return module.forward
