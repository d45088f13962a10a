"""Which weights a merge changes, and how: one or several adapters on one base.

    plan = plan_merge(base, read_weights(base), weighted(Path("adapter")))
    plan.changes["model.layers.0.mlp.up_proj.weight"].addends      # LoRA pairs, each with its weight
    plan.is_untied                                                 # the head gets a weight of its own

Several adapters add up: W + sum of weight * scale * B @ A, in float32, rounded once. A weight may be negative (what an
adapter taught is then taken away: Ilharco et al. 2023, "Editing Models with Task Arithmetic", arXiv 2212.04089).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mrp.errors import InputError, raise_all
from mrp.models.adapter_file import Adapter, Pair, embedding_weight, name_of, read_whole_adapter, skeleton
from mrp.models.shards import ITEM_BYTES, StoredTensor, columns_of, same_bytes

Weighted = tuple[Path, float]
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("tokenizer.model", "vocab.json", "merges.txt", "chat_template.jinja"),
)


@dataclass(frozen=True)
class Change:
    """What becomes of one weight: `source` (the base's, or one that an adapter brings) and what is added to it."""

    source: StoredTensor
    addends: tuple[tuple[float, Pair], ...] = ()  # (weight of the adapter, its pair)
    before: StoredTensor | None = None  # the base's own weight, where `source` is another


@dataclass
class MergePlan:
    """The weights to write, in order, and what becomes of those that change."""

    tensors: list[StoredTensor]  # names, formats and shapes as they will be
    changes: dict[str, Change]
    adapters: list[tuple[Adapter, float]] = field(default_factory=list)
    is_untied: bool = False
    vocabulary: int | None = None  # the new number of rows, where an adapter brings another
    tokenizer: Path | None = None  # the adapter's folder, where its tokenizer names the new rows


def weighted(adapters: Path | Sequence[Weighted]) -> list[Weighted]:
    """One adapter is one with the weight 1."""
    return [(adapters, 1.0)] if isinstance(adapters, Path) else list(adapters)


def parse_adapter(text: str) -> Weighted:
    """("my-adapter", 0.5) for "my-adapter=0.5"; a folder whose name holds "=" is taken as it is."""
    folder, sign, number = text.rpartition("=")
    if not sign or Path(text).is_dir():
        return Path(text), 1.0
    try:
        return Path(folder), float(number)
    except ValueError:
        fix = "write ADAPTER=WEIGHT, such as voice=0.5"
        raise InputError(f"{number!r} is not a weight", text, fix) from None


def check_weights(adapters: Sequence[Weighted]) -> None:
    """`InputError` for no adapter, a weight of 0, NaN or infinity, and a folder that is given twice."""
    if not adapters:
        raise InputError("no adapter to merge", "ADAPTER", "mrp merge BASE ADAPTER --out DIR")
    faults: list[InputError] = []
    seen: set[Path] = set()
    for folder, weight in adapters:
        if not math.isfinite(weight) or weight == 0:
            fix = "leave the adapter out, or give a number other than 0 (a negative one takes away what it taught)"
            faults.append(InputError(f"the weight of {folder.name} is {weight:g}", f"{folder}={weight:g}", fix))
        if folder.resolve() in seen:
            faults.append(InputError(f"{folder.name} is given twice", str(folder), "give it once, with the sum"))
        seen.add(folder.resolve())
    raise_all("the adapters cannot be merged", faults)


def plan_merge(base: Path, weights: dict[str, StoredTensor], adapters: Sequence[Weighted]) -> MergePlan:
    """What merging does to every weight of `base`. Raises `InputError` with every reason against it."""
    read: list[tuple[Adapter, float]] = []
    faults: list[Any] = []
    for folder, weight in adapters:
        try:
            read.append((read_whole_adapter(folder, base, weights), weight))
        except InputError as error:
            faults += getattr(error, "faults", [error])
    raise_all(f"the adapters cannot be merged into {base.name}", faults)
    if len(read) > 1 or read[0][1] != 1:
        raise_all("the adapters cannot be weighted", [_no_sum(a) for a, _ in read if not a.is_plain_sum])
    model = skeleton(base)
    plan = MergePlan(list(weights.values()), {}, read)
    for adapter, weight in read:
        for name, tensor in adapter.replaced.items():
            plan.changes[name] = Change(tensor, before=weights.get(name) or embedding_weight(model, weights))
        for layer, pair in adapter.pairs.items():
            name = f"{layer}.weight"
            change = plan.changes.get(name) or Change(weights.get(name) or embedding_weight(model, weights))
            plan.changes[name] = replace(change, addends=(*change.addends, (weight, pair)))
    _settle_vocabulary(plan, weights, model)
    return plan


def _no_sum(adapter: Adapter) -> InputError:
    why = "weights of its own in place of the base's" if adapter.replaced else "DoRA's lengths of rows"
    fix = "merge it alone, with the weight 1, then the others into the result"
    return InputError(f"{adapter.folder.name} has {why}, which have no weighted sum", str(adapter.folder), fix)


# -- embedding and head --------------------------------------------------------------------------------------------


def _settle_vocabulary(plan: MergePlan, weights: dict[str, StoredTensor], model: Any) -> None:
    """Untie the head where it is no longer the embedding; follow an embedding of other length."""
    embedding = embedding_weight(model, weights)
    head = f"{name_of(model, model.get_output_embeddings())}.weight"
    config = model.config.get_text_config()
    tied = head != ".weight" and (bool(getattr(config, "tie_word_embeddings", False)) or head not in weights)
    if tied:
        _settle_tied_head(plan, embedding, head)
    rows = {name: plan.changes[name].source.shape[0] for name in (embedding.name, head) if name in plan.changes}
    if {embedding.shape[0]} != {*rows.values(), embedding.shape[0]}:
        adapter = plan.adapters[0][0].folder
        both = [embedding.name] if tied and not plan.is_untied else [embedding.name, head]
        plan.vocabulary = _new_vocabulary(rows, both, adapter)
        plan.tokenizer = adapter
        plan.tensors = [_with_rows(t, plan.vocabulary) if t.name in rows else t for t in plan.tensors]


def _settle_tied_head(plan: MergePlan, embedding: StoredTensor, head: str) -> None:
    changes = plan.changes
    if not {embedding.name, head} & changes.keys():
        return
    saved = plan.adapters[0][0].saved_modules
    of_embedding = changes.get(embedding.name, Change(embedding))
    # An embedding that was saved because it grew is the head too; one in modules_to_save is a copy beside the head.
    follows = embedding if embedding.name in saved else of_embedding.source
    of_head = changes.get(head, Change(follows))
    if of_head.source == embedding:  # LoRA alone is on the head: its start is what the embedding starts from
        of_head = replace(of_head, source=follows)
    is_one = of_head.source == of_embedding.source or same_bytes(of_head.source, of_embedding.source)
    if is_one and not of_head.addends and not of_embedding.addends:
        changes.pop(head, None)
        plan.tensors = [t for t in plan.tensors if t.name != head]
        return
    plan.is_untied = True
    changes[head] = of_head
    kept = [t for t in plan.tensors if t.name != head]
    plan.tensors = [*kept, replace(embedding, name=head)]


def _new_vocabulary(rows: dict[str, int], wanted: list[str], adapter: Path) -> int:
    """The number of rows that embedding and head both get; `InputError` if they differ, or nothing names the rows."""
    found = {rows.get(name) for name in wanted}
    if len(found) > 1:
        sizes = ", ".join(f"{name}: {rows.get(name, 'as before')}" for name in wanted)
        what = f"the adapter brings embedding and head of different length ({sizes})"
        raise InputError(what, str(adapter), "save it with save_embedding_layers=True, both resized")
    count = found.pop()
    assert count is not None
    if not any((adapter / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        what = f"the adapter brings a vocabulary of {count} tokens, and no tokenizer that knows their words"
        fix = "save the tokenizer it was trained with into the adapter's folder"
        raise InputError(what, str(adapter), fix)
    from mrp.models.load import load_tokenizer

    if (known := len(load_tokenizer(adapter))) > count:
        what = f"the adapter's tokenizer knows {known} tokens, and its embedding has {count} rows"
        raise InputError(what, str(adapter), "copy the adapter anew: tokenizer and weights do not belong together")
    return count


def _with_rows(tensor: StoredTensor, rows: int) -> StoredTensor:
    nbytes = rows * columns_of(tensor) * ITEM_BYTES[tensor.dtype]
    return replace(tensor, shape=(rows, *tensor.shape[1:]), nbytes=nbytes)
