"""Is the merged model the base with its adapter? Asked of PEFT, which has its own idea of what an adapter adds.

    found = verify(base, adapter, merged)       # what was compared, or an MrpError

Three questions, from exact to whole:
1. each changed weight is base + PEFT's own delta, up to one rounding to the number format of the file;
2. every other weight is the base's, bit for bit;
3. both models, computing in float32, say the same on a few texts (the probes), as `LARGEST_MEAN_KL` bounds it.
The first finds a wrong scale or a missed layer however little the adapter does; the third a model that is loaded
otherwise than it was written.
"""

from __future__ import annotations

import gc
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from mrp.data.view import ASSISTANT, SYSTEM, USER, Message
from mrp.errors import InputError, MrpError
from mrp.models.load import Hardware, load_model, load_tokenizer
from mrp.models.shards import FLOATS, StoredTensor, read_rows, read_weights, row_blocks, same_bytes
from mrp.render import ChatTemplate

# Of the distribution of the next token, in nats, mean over all positions of the probes. Rounding moves each changed
# weight by at most 2^-8 of it in bf16, 2^-11 in fp16, 2^-24 in fp32, and the divergence grows with the square.
# Measured on SmolLM2-135M (bf16) with a rank-16 adapter of two epochs: 0.00008 for the merge, 0.32 for twice the
# scale, 0.002 to 0.015 where one block of 30 is missed. So this bound leaves a correct merge 50 times its measured
# divergence, finds gross faults, and leaves single layers to the comparison of weights, which is exact.
LARGEST_MEAN_KL = {torch.bfloat16: 0.005, torch.float16: 0.0005, torch.float32: 0.00001}
PROBE_TOKENS = 64  # of each text at most
PROBES = (
    ("You are an innkeeper at a mountain pass.", "Is there a room for tonight?", "There is one left, under the roof."),
    ("", "Name three things that a traveller should carry.", "A knife, a cloak, and a loaf of bread."),
    ("你是一位守夜的老人。", "今晚的月亮怎么这样红？", "风从西边来，带着沙。关好窗，别出门。"),
    ("", "你好！你叫什么名字？", "名字不要紧，先坐下喝碗茶。"),
)


def verify(base: Path, adapter: Path, merged: Path, probes: Sequence[Sequence[int]] | None = None) -> dict[str, Any]:
    """Compare the folder `merged` with base + adapter; `probes` are token ids (default: four short texts).

    Returns the measures for the record. Raises `MrpError` naming what differs.
    """
    probes = probes or default_probes(base)
    before, after = read_weights(base), read_weights(merged)
    stored = _widest(before)
    model = _load(base, stored, adapter)
    changed = _compare_changed(model, after)
    _compare_kept(before, after, changed.keys())
    expected = _logits(model, probes)
    with model.disable_adapter():
        without = _logits(model, probes)
    del model
    gc.collect()
    model = _load(merged, stored)
    found = _logits(model, probes)
    del model
    gc.collect()  # the files of `merged` must be closed before its folder is renamed (Windows)
    coarsest = max((after[name].torch_dtype for name in changed), key=lambda dtype: torch.finfo(dtype).eps)
    measures = {
        "weights_compared": len(changed),
        "largest_weight_error": max(changed.values()),  # as a share of what one rounding may do
        **_compare_logits(expected, found),
        "allowed_mean_kl": LARGEST_MEAN_KL[coarsest],
        "adapter_mean_kl": mean_kl(expected, without),  # what the adapter changes, to compare with
    }
    if not measures["mean_kl"] <= LARGEST_MEAN_KL[coarsest]:
        what = f"mean KL divergence {measures['mean_kl']:.2g} on {measures['positions']} tokens of text"
        raise _not_equal(f"{what}, and rounding makes at most {LARGEST_MEAN_KL[coarsest]}")
    return measures


def default_probes(base: Path) -> list[list[int]]:
    """Four short texts, English and Chinese, in the base's chat template (plain where it has none that works)."""
    tokenizer = load_tokenizer(base)
    try:
        template = ChatTemplate(tokenizer, where=str(base))
    except InputError:
        texts = ["\n".join(texts) for texts in PROBES]
        return [list(tokenizer(text).input_ids)[:PROBE_TOKENS] for text in texts]
    dialogues = [
        [Message(SYSTEM, system), Message(USER, question), Message(ASSISTANT, answer, True)]
        for system, question, answer in PROBES
    ]
    return [template.sample(messages)[0].input_ids[:PROBE_TOKENS] for messages in dialogues]


# -- weights -------------------------------------------------------------------------------------------------------


def _compare_changed(model: Any, after: dict[str, StoredTensor]) -> dict[str, float]:
    """Each merged weight against base + PEFT's delta: the largest error in it, as a share of what is allowed."""
    from peft.tuners.lora import LoraLayer

    errors: dict[str, float] = {}
    for layer, module in model.base_model.model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        name = f"{layer}.weight"
        if name not in after:
            raise _not_equal(f"{name} is missing")
        old, delta = module.get_base_layer().weight, module.get_delta_weight("default").float()
        errors[name] = _largest_error(old, delta, after[name])
        if not errors[name] <= 1:
            raise _not_equal(f"{name} is not the base's weight with the adapter's part, rounded once")
    if not errors:
        raise _not_equal("PEFT finds no LoRA layer in base + adapter")
    return errors


def _largest_error(old: torch.Tensor, delta: torch.Tensor, new: StoredTensor) -> float:
    """The largest |new - (old + delta)|, as a share of what one rounding may do; nan where `new` holds one."""
    if tuple(delta.shape) != new.shape:
        return float("inf")
    form = torch.finfo(new.torch_dtype)
    smallest = max(form.smallest_normal * form.eps, 1e-37)  # rounding of numbers near zero
    # A float32 product may be summed in another order; 2^-14 of the delta is hundreds of times what that makes.
    slack = float(delta.abs().max()) * 2**-14
    largest = torch.zeros(())
    for first, end in row_blocks(new):
        exact = old[first:end].float() + delta[first:end]
        error = (read_rows(new, first, end).float() - exact).abs()
        share = error / (exact.abs() * (form.eps / 2) + smallest + slack)
        largest = torch.maximum(largest, share.max())  # which keeps nan, unlike Python's max
    return float(largest)


def _compare_kept(before: dict[str, StoredTensor], after: dict[str, StoredTensor], changed: Collection[str]) -> None:
    """Every weight that no LoRA layer changes is there, bit for bit, and nothing was added."""
    if others := before.keys() ^ after.keys():
        raise _not_equal(f"{min(others)} is in one of base and merged model alone")
    for name in before.keys() - changed:
        if not same_bytes(before[name], after[name]):
            raise _not_equal(f"{name} is not the base's, and the adapter does not change it")


# -- logits --------------------------------------------------------------------------------------------------------


def _compare_logits(expected: list[torch.Tensor], found: list[torch.Tensor]) -> dict[str, Any]:
    positions = sum(len(one) for one in expected)
    same = sum(int((a.argmax(-1) == b.argmax(-1)).sum()) for a, b in zip(expected, found, strict=True))
    return {
        "probes": len(expected),
        "positions": positions,
        "mean_kl": mean_kl(expected, found),
        "largest_logit_difference": max(float((a - b).abs().max()) for a, b in zip(expected, found, strict=True)),
        "logit_spread": float(torch.cat([a.std(-1) for a in expected]).mean()),
        "same_first_choice": same / positions,
    }


def mean_kl(expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> float:
    """KL(expected || found) of the next token in nats, mean over all positions; each item is (T, V) logits."""
    total, positions = 0.0, 0
    for one, other in zip(expected, found, strict=True):
        p, q = F.log_softmax(one.double(), -1), F.log_softmax(other.double(), -1)
        total += float((p.exp() * (p - q)).sum())
        positions += len(one)
    return max(total / positions, 0.0) if positions else float("nan")


def _logits(model: Any, probes: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """(T, V) float32 logits of each probe."""
    # One pass over the weights for all probes. Padding stands at the end, where no earlier token sees it.
    width = max(len(ids) for ids in probes)
    batch = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in probes])  # (B, T)
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        logits = model(input_ids=batch, use_cache=False).logits.float()  # (B, T, V)
    return [logits[k, : len(ids)] for k, ids in enumerate(probes)]


def _load(folder: Path, stored: torch.dtype, adapter: Path | None = None) -> Any:
    """The model on the CPU as its files store it (so they are mapped, not copied), computing in float32."""
    from mrp.train.lora import load_adapter

    model = load_model(folder, Hardware("cpu", stored, None))
    if adapter is not None:
        model = load_adapter(model, adapter)
    for module in model.modules():
        if any(p.dtype in (torch.bfloat16, torch.float16) for p in module.parameters(recurse=False)):
            module.register_forward_pre_hook(_widen)
            module.register_forward_hook(_narrow, always_call=True)
    return model


def _widen(module: Any, _: Any) -> None:
    module.mrp_stored = {name: p.data for name, p in module.named_parameters(recurse=False)}
    for parameter in module.parameters(recurse=False):
        parameter.data = parameter.data.float()


def _narrow(module: Any, *_: Any) -> None:
    for name, parameter in module.named_parameters(recurse=False):
        parameter.data = module.mrp_stored[name]
    del module.mrp_stored


def _widest(weights: dict[str, StoredTensor]) -> torch.dtype:
    """The number format that holds every stored weight without rounding."""
    formats = {t.torch_dtype for t in weights.values() if t.dtype in FLOATS}
    return formats.pop() if len(formats) == 1 else torch.float32


def _not_equal(what: str) -> MrpError:
    fix = "nothing was replaced; please report it, with the base model's name: its files may be laid out in a new way"
    return MrpError(f"the merged model is not base + adapter: {what}", "the check after merging", fix)
