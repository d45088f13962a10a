"""What two models say to a few texts (the probes): their logits, the greedy replies, and how far they are apart.

probes = default_probes(folder)                             # token ids of four short texts
expected = logits_of(load_with_adapters(base, torch.bfloat16, [(adapter, 1.0)]), probes)
found = logits_of(load_merged(merged, torch.bfloat16), probes)
compare_logits(expected, found)["mean_kl"]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from mrp.data.view import ASSISTANT, SYSTEM, USER, Message
from mrp.errors import InputError
from mrp.models.load import Hardware, load_model, load_tokenizer
from mrp.models.merge_plan import Weighted
from mrp.render import ChatTemplate

GREEDY_TOKENS = 8  # of each reply
PROBE_TOKENS = 64  # of each text at most
PROBES = (
    ("You are an innkeeper at a mountain pass.", "Is there a room for tonight?", "There is one left, under the roof."),
    ("", "Name three things that a traveller should carry.", "A knife, a cloak, and a loaf of bread."),
    ("你是一位守夜的老人。", "今晚的月亮怎么这样红？", "风从西边来，带着沙。关好窗，别出门。"),
    ("", "你好！你叫什么名字？", "名字不要紧，先坐下喝碗茶。"),
)


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


# -- logits and replies --------------------------------------------------------------------------------------------


def compare_logits(expected: list[torch.Tensor], found: list[torch.Tensor]) -> dict[str, Any]:
    """The measures of two models' logits, (T, V) of each text, for the record."""
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


def with_replies(model: Any, probes: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[tuple[int, list[int]]]]:
    """The probes with the model's greedy replies behind them, and (where it begins, its ids) of each reply.

    So one pass of the other model over these texts tells whether it would say the same, token by token.
    """
    width = max(len(ids) for ids in probes)
    batch = torch.tensor([[0] * (width - len(ids)) + list(ids) for ids in probes])  # (B, T), padded before the text
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in probes])
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        grown = model.generate(
            input_ids=batch, attention_mask=mask, max_new_tokens=GREEDY_TOKENS, do_sample=False, pad_token_id=0
        )
    texts, replies = [], []
    ends = model.generation_config.eos_token_id
    stops = {*ends} if isinstance(ends, list | tuple) else {ends}
    for ids, row in zip(probes, grown[:, width:].tolist(), strict=True):
        stop = next((k + 1 for k, token in enumerate(row) if token in stops), len(row))
        texts.append([*ids, *row[:stop]])
        replies.append((len(ids), row[:stop]))
    return texts, replies


def same_replies(replies: list[tuple[int, list[int]]], found: list[torch.Tensor]) -> dict[str, int]:
    """How many replies the merged model would give token for token, and how many tokens of all it would choose."""
    chosen = [
        logits[begin - 1 : begin - 1 + len(reply)].argmax(-1).tolist() == reply
        for (begin, reply), logits in zip(replies, found, strict=True)
    ]
    return {"replies": len(replies), "same": sum(chosen), "tokens": sum(len(reply) for _, reply in replies)}


def logits_of(model: Any, probes: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """(T, V) float32 logits of each probe."""
    # One pass over the weights for all probes. Padding stands at the end, where no earlier token sees it.
    width = max(len(ids) for ids in probes)
    batch = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in probes])  # (B, T)
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        logits = model(input_ids=batch, use_cache=False).logits.float()  # (B, T, V)
    return [logits[k, : len(ids)] for k, ids in enumerate(probes)]


def load_with_adapters(
    base: Path, stored: torch.dtype, adapters: Sequence[Weighted], vocabulary: int | None = None, bits: int = 16
) -> Any:
    """Base and all adapters in PEFT, each with its weight, on the CPU; `vocabulary` resizes the embedding first."""
    from peft.tuners.lora import LoraLayer

    from mrp.train.lora import load_adapter

    model = load_model(base, Hardware("cpu", stored, None), bits)
    if vocabulary:
        model.resize_token_embeddings(vocabulary, mean_resizing=False)
    model = load_adapter(model, adapters[0][0])
    names = ["default", *(f"adapter{k}" for k in range(1, len(adapters)))]
    for name, (folder, _) in list(zip(names, adapters, strict=True))[1:]:
        model.load_adapter(str(folder), adapter_name=name, autocast_adapter_dtype=True)
    if len(names) > 1:
        model.base_model.set_adapter(names)
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name, (_, weight) in zip(names, adapters, strict=True):
                if name in module.scaling:
                    module.scaling[name] *= weight
    return _computing_in_float32(model.eval())


def load_merged(folder: Path, stored: torch.dtype) -> Any:
    """The model in `folder` on the CPU, stored as it is, computing in float32."""
    return _computing_in_float32(load_model(folder, Hardware("cpu", stored, None)))


def _computing_in_float32(model: Any) -> Any:
    """The model as its files store it (so they are mapped, not copied), widening each module while it computes."""
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
