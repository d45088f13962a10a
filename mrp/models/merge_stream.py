"""The check of a merge that is too large to load: a sample of its weights, and passes that read a layer at a time.

    logits, without = streamed_logits(base, plan, probes)       # of base + adapters, and of the base alone
    errors, wrong = sampled_weights(base, plan, after)

A model's modules are built without numbers; each linear layer reads its own rows from the files while it computes, in
blocks, so embedding and head too take little memory. The adapters stand beside the weights as (x @ A^T) @ B^T, and not
as the sum that the merge wrote. PEFT is asked for the scale of each layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mrp.models.adapter_file import skeleton
from mrp.models.merge_numbers import Blocks
from mrp.models.merge_plan import Change, MergePlan
from mrp.models.shards import StoredTensor, read_ahead, read_rows, read_weights, row_blocks

SAMPLED_ROWS = 8
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
    rows = new.shape[0]
    form = torch.finfo(new.torch_dtype)
    blocks, largest = Blocks(change), torch.zeros(())
    for row in {(rows - 1) * k // (SAMPLED_ROWS - 1) for k in range(SAMPLED_ROWS)}:
        exact, added = blocks.sum(row, row + 1)
        slack = added.abs().max() * 2**-14 + form.smallest_normal * form.eps + 1e-37
        error = (read_rows(new, row, row + 1).float() - exact).abs()
        largest = torch.maximum(largest, (error / (exact.abs() * (form.eps / 2) + slack)).max())
    return float(largest)


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
    width = max(len(ids) for ids in probes)
    batch = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in probes])  # (B, T)
    both = torch.cat([batch, batch]) if plan.changes else batch
    model = _streaming(folder, plan, len(batch))
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        logits = model(input_ids=both, use_cache=False).logits.float()
    with_, without = logits[: len(batch)], logits[-len(batch) :]
    return ([x[k, : len(ids)] for k, ids in enumerate(probes)] for x in (with_, without))  # type: ignore[return-value]


def _streaming(folder: Path, plan: MergePlan, half: int) -> Any:
    """The model without numbers, whose modules read theirs when they compute."""
    import transformers
    from accelerate import init_empty_weights

    weights = read_weights(folder)
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with init_empty_weights(include_buffers=False):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    model.eval()
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    shared = next(n for n, m in model.named_modules() if m is embedding)
    for name, module in model.named_modules():
        own = {kind: f"{name}.{kind}" for kind, _ in module.named_parameters(recurse=False)}
        if not own:
            continue
        change = plan.changes.get(f"{name}.weight")
        if change is None and module is head and f"{name}.weight" not in weights:  # tied
            change = Change(weights[f"{shared}.weight"])
        change = change or Change(weights[own["weight"]]) if "weight" in own else None
        if type(module) is torch.nn.Linear and change:
            bias = (
                plan.changes[own["bias"]].source
                if own.get("bias") in plan.changes
                else weights.get(own.get("bias", ""))
            )
            module.forward = _Linear(change, bias, half)
        elif type(module) is torch.nn.Embedding and change:
            module.forward = _Embedding(change, half)
        else:
            sources = {k: plan.changes[n].source if n in plan.changes else weights[n] for k, n in own.items()}
            module.register_forward_pre_hook(_Fill(sources))
    return model


class _Linear:
    """x @ W^T, block by block of W's rows; the first `half` of the batch gets what the adapters add too."""

    def __init__(self, change: Change, bias: StoredTensor | None, half: int) -> None:
        self.change, self.bias, self.half = change, bias, half

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        blocks, source, parts = Blocks(self.change), self.change.source, []
        read_ahead(source)
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


class _Fill:
    """Give a small module (a norm) its numbers, the first time that it computes."""

    def __init__(self, sources: dict[str, StoredTensor]) -> None:
        self.sources = sources

    def __call__(self, module: Any, _: Any) -> None:
        for kind, source in self.sources.items():
            if module.get_parameter(kind).is_meta:
                shape = module.get_parameter(kind).shape
                numbers = read_rows(source, 0, source.shape[0]).float().view(shape)
                setattr(module, kind, torch.nn.Parameter(numbers, requires_grad=False))
