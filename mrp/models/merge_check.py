"""Is the merged model the base with its adapters? Asked of PEFT, which has its own idea of what an adapter adds.

    found = verify(base, adapter, merged)       # what was compared, or an MrpError

Three questions, from exact to whole:
1. each changed weight is base + PEFT's own delta, up to one rounding to the number format of the file;
2. every other weight is the base's, bit for bit;
3. both models, computing in float32, say the same on a few texts (the probes), as `LARGEST_MEAN_KL` bounds it, and go
   on from them with the same words (greedy replies).
The first finds a wrong scale or a missed layer however little the adapter does; the third a model that is loaded
otherwise than it was written. Of a model above `LARGE_BYTES` a sample of the weights is compared, and the passes are
made a layer at a time: while the merge goes over the weights (merge_sweep.py), or from the files (merge_stream.py). The
record says so.
"""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from mrp.errors import MrpError
from mrp.models.merge_plan import MergePlan, Weighted, plan_merge, weighted
from mrp.models.merge_probes import (
    compare_logits,
    default_probes,
    load_merged,
    load_with_adapters,
    logits_of,
    mean_kl,
    same_replies,
    with_replies,
)
from mrp.models.merge_stream import TOKENS, can_stream, sampled_weights, streamed_logits
from mrp.models.shards import FLOATS, StoredTensor, read_rows, read_weights, row_blocks, same_bytes

Passes = tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]  # base + adapters, base alone, merged

LARGE_BYTES = 4 * 10**9  # of weights: reading all of them twice, and two whole passes, then take longer than the merge

# Of the distribution of the next token, in nats, mean over all positions of the probes. Rounding moves each changed
# weight by at most 2^-8 of it in bf16, 2^-11 in fp16, 2^-24 in fp32, and the divergence grows with the square.
# Measured on SmolLM2-135M (bf16) with a rank-16 adapter of two epochs: 0.00008 for the merge, 0.32 for twice the
# scale, 0.002 to 0.015 where one block of 30 is missed. So this bound leaves a correct merge 50 times its measured
# divergence, finds gross faults, and leaves single layers to the comparison of weights, which is exact.
LARGEST_MEAN_KL = {torch.bfloat16: 0.005, torch.float16: 0.0005, torch.float32: 0.00001}


def verify(
    base: Path,
    adapters: Path | Sequence[Weighted],
    merged: Path,
    probes: Sequence[Sequence[int]] | None = None,
    plan: MergePlan | None = None,
    passes: Passes | None = None,
) -> dict[str, Any]:
    """Compare the folder `merged` with base + adapters; `probes` are token ids (default: four short texts).

    `passes` are the logits that a sweep has made already, of `short_probes`. Returns the measures for the record.
    Raises `MrpError` naming what differs.
    """
    before, after = read_weights(base), read_weights(merged)
    plan = plan or plan_merge(base, before, weighted(adapters))
    if others := {t.name for t in plan.tensors} ^ after.keys():
        raise _not_equal(f"{min(others)} is in one of base and merged model alone")
    probes = probes or default_probes(merged)
    if passes or is_large(base, plan):
        errors, expected, found, without, more = _look_at_sample(base, merged, probes, plan, after, passes)
    else:
        errors, expected, found, without, more = _look_at_all(base, weighted(adapters), merged, probes, plan, after)
    coarsest = max((after[name].torch_dtype for name in plan.changes), key=lambda dtype: torch.finfo(dtype).eps)
    measures = {
        "weights_compared": len(errors),
        "largest_weight_error": max(errors.values()),  # as a share of what one rounding may do
        **compare_logits(expected, found),
        "allowed_mean_kl": LARGEST_MEAN_KL[coarsest],
        "adapter_mean_kl": mean_kl(expected, without),  # what the adapter changes, to compare with
        **more,
    }
    if not measures["mean_kl"] <= LARGEST_MEAN_KL[coarsest]:
        what = f"mean KL divergence {measures['mean_kl']:.2g} on {measures['positions']} tokens of text"
        raise _not_equal(f"{what}, and rounding makes at most {LARGEST_MEAN_KL[coarsest]}")
    return measures


def is_large(base: Path, plan: MergePlan) -> bool:
    """True for a model of which a sample is compared, and the passes are made a layer at a time."""
    return sum(t.nbytes for t in read_weights(base).values()) > LARGE_BYTES and can_stream(base, plan)


def short_probes(probes: Sequence[Sequence[int]]) -> list[list[int]]:
    """What of the probes a large model is asked."""
    return [list(ids)[:TOKENS] for ids in probes[::2]]


Looked = tuple[dict[str, float], list[torch.Tensor], list[torch.Tensor], list[torch.Tensor], dict[str, Any]]


def _look_at_all(
    base: Path,
    adapters: list[Weighted],
    merged: Path,
    probes: Sequence[Sequence[int]],
    plan: MergePlan,
    after: dict[str, StoredTensor],
) -> Looked:
    stored = _widest(read_weights(base))
    model = load_with_adapters(base, stored, adapters, plan.vocabulary)
    errors = _compare_changed(model, after, plan)
    _compare_kept([t for t in plan.tensors if t.name not in plan.changes], after)
    texts, replies = with_replies(model, probes)
    expected = logits_of(model, texts)
    with model.disable_adapter():
        without = logits_of(model, texts)
    del model
    gc.collect()
    model = load_merged(merged, stored)
    found = logits_of(model, texts)
    del model
    gc.collect()  # the files of `merged` must be closed before its folder is renamed (Windows)
    greedy = same_replies(replies, found)
    return errors, expected, found, without, {"compared": "every number", "greedy_replies": greedy}


def _look_at_sample(
    base: Path,
    merged: Path,
    probes: Sequence[Sequence[int]],
    plan: MergePlan,
    after: dict[str, StoredTensor],
    passes: Passes | None,
) -> Looked:
    errors, wrong = sampled_weights(base, plan, after)
    if wrong:
        raise _not_equal(wrong)
    if passes:
        expected, without, found = passes
    else:
        short = short_probes(probes)
        expected, without = streamed_logits(base, plan, short)
        found, _ = streamed_logits(merged, MergePlan(list(after.values()), {}), short)
    source = "with the weights as they were written" if passes else "streamed from the files"
    how = f"a row of every block of every changed weight, three places of every other; passes {source}"
    no_replies = "not generated: each token is a pass over all weights; see same_first_choice"
    return errors, expected, found, without, {"compared": how, "greedy_replies": no_replies}


# -- weights -------------------------------------------------------------------------------------------------------


def _compare_changed(model: Any, after: dict[str, StoredTensor], plan: MergePlan) -> dict[str, float]:
    """Each merged weight against base + PEFT's delta: the largest error in it, as a share of what is allowed."""
    from peft.tuners.lora import LoraLayer

    inner = model.base_model.model
    missed = [n for n, m in inner.named_modules() if isinstance(m, LoraLayer) and f"{n}.weight" not in plan.changes]
    if missed:
        raise _not_equal(f"{missed[0]}.weight is changed by the adapter, and not by the merge")
    errors: dict[str, float] = {}
    for name in plan.changes:
        layer, _, kind = name.rpartition(".")
        if name not in after:
            raise _not_equal(f"{name} is missing")
        errors[name] = _largest_error(inner.get_submodule(layer), kind, after[name])
        if not errors[name] <= 1:
            raise _not_equal(f"{name} is not the base's weight with the adapter's part, rounded once")
    return errors


def _largest_error(module: Any, kind: str, new: StoredTensor) -> float:
    """The largest |new - exact|, as a share of what one rounding may do; nan where `new` holds one."""
    form = torch.finfo(new.torch_dtype)
    smallest = max(form.smallest_normal * form.eps, 1e-37)  # rounding of numbers near zero
    largest = torch.zeros(())
    for first, end, exact, slack in _exact_blocks(module, kind, new):
        found = read_rows(new, first, end).float()
        if exact.shape != found.shape:
            return float("inf")
        share = (found - exact).abs() / (exact.abs() * (form.eps / 2) + smallest + slack)
        largest = torch.maximum(largest, share.max())  # which keeps nan, unlike Python's max
    return float(largest)


def _exact_blocks(module: Any, kind: str, new: StoredTensor) -> Iterator[tuple[int, int, torch.Tensor, Any]]:
    """(first, end, numbers in float32, slack) of the weight that PEFT's module stands for.

    A float32 product may be summed in another order: the slack, 2^-14 of the delta, is hundreds of times what that
    makes (with DoRA, 2^-18 of the number itself for the length of its row).
    """
    from peft.tuners.lora import LoraLayer
    from peft.utils.other import ModulesToSaveWrapper

    if isinstance(module, ModulesToSaveWrapper):
        module = module.modules_to_save["default"]
    is_lora = isinstance(module, LoraLayer)
    old = (module.get_base_layer() if is_lora else module).get_parameter(kind).data
    for first, end in row_blocks(new):
        rows = old[first:end].float().view(-1, old.shape[1] if old.dim() == 2 else 1)
        if not is_lora:
            yield first, end, rows, 0.0
            continue
        delta = _peft_delta(module, first, end)
        exact, slack = rows + delta, delta.abs().max() * 2**-14
        if "default" in module.lora_magnitude_vector:
            magnitude = module.lora_magnitude_vector["default"]
            length = magnitude.get_weight_norm(rows, delta, 1).unsqueeze(1)
            exact = exact * magnitude.weight.data[first:end, None].float() / length
            slack = slack + exact.abs() * 2**-18
        yield first, end, exact, slack


def _peft_delta(module: Any, first: int, end: int) -> torch.Tensor:
    """Rows of what all active adapters of a PEFT layer add, by PEFT's own scaling."""
    total: Any = 0
    for name in module.active_adapters:
        if name in module.lora_A:
            a, b = module.lora_A[name].weight.data.float(), module.lora_B[name].weight.data[first:end].float()
            total = total + module.scaling[name] * (b @ a)
        elif name in module.lora_embedding_A:
            a, b = module.lora_embedding_A[name].data[:, first:end].float(), module.lora_embedding_B[name].data.float()
            total = total + module.scaling[name] * (b @ a).T
    return torch.as_tensor(total)


def _compare_kept(kept: Collection[StoredTensor], after: dict[str, StoredTensor]) -> None:
    """Every weight that no adapter changes is there, bit for bit."""
    for tensor in kept:
        if not same_bytes(tensor, after[tensor.name]):
            raise _not_equal(f"{tensor.name} is not the base's, and the adapter does not change it")


def _widest(weights: dict[str, StoredTensor]) -> torch.dtype:
    """The number format that holds every stored weight without rounding."""
    formats = {t.torch_dtype for t in weights.values() if t.dtype in FLOATS}
    return formats.pop() if len(formats) == 1 else torch.float32


def _not_equal(what: str) -> MrpError:
    fix = "nothing was replaced; please report it, with the base model's name: its files may be laid out in a new way"
    return MrpError(f"the merged model is not base + adapter: {what}", "the check after merging", fix)
