"""The folder that a merge writes: the base's other files, the record, and the place that may be taken.

check_place(out, base, adapter)         # free, or an earlier merge and nothing else
copy_files(base, part)                  # config, tokenizer, chat template, licence; never code
write_record(part, record)              # mrp-merge.json, with a hash of every file
is_intact(out, inputs)                  # a merge of just these inputs, as it was written
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mrp.config import KEPT_CAST_FILE
from mrp.errors import InputError
from mrp.files import read_json, sampled_sha256, sha256_file, write_json
from mrp.models.bases import model_identity
from mrp.models.merge_plan import TOKENIZER_FILES, MergePlan, Weighted
from mrp.models.model_card import CARD
from mrp.train.lora import CONFIG, WEIGHTS

MERGE_RECORD = "mrp-merge.json"
RECORD_FORMAT = 2  # raise it when a merge writes something else for the same inputs: older ones are then done anew
COPIED = (
    *("*.json", "*.jinja", "*.model", "*.model.*", "*.tiktoken", "*.txt"),  # config, tokenizer, chat template
    *("LICEN[CS]E*", "NOTICE*", "COPYING*", "*POLICY*", "additional_chat_templates/*.jinja"),
)
LATER = (KEPT_CAST_FILE, CARD)  # written once the merge is done
NOT_COPIED = ("*.index.json", "mrp-*.json", "adapter_*")


def files_to_copy(base: Path) -> list[Path]:
    """Config, tokenizer, chat template and licence. No code: a folder's Python files never run here."""
    found = {path for pattern in COPIED for path in base.glob(pattern) if path.is_file()}
    return sorted(p for p in found if not any(p.match(pattern) for pattern in NOT_COPIED))


def copy_files(base: Path, part: Path) -> None:
    """Copy what a model folder holds beside its weights."""
    for path in files_to_copy(base):
        place = part / path.relative_to(base)
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, place)


def settle_config(part: Path, plan: MergePlan) -> None:
    """Make the copied config and tokenizer say what the weights are: untied, or of another vocabulary."""
    if plan.tokenizer:
        for name in TOKENIZER_FILES:
            if (plan.tokenizer / name).is_file():
                shutil.copyfile(plan.tokenizer / name, part / name)
    new: dict[str, Any] = {"tie_word_embeddings": False} if plan.is_untied else {}
    if plan.vocabulary:
        new["vocab_size"] = plan.vocabulary
    if not new:
        return
    config = read_json(part / "config.json")
    inner = config.get("text_config") if isinstance(config.get("text_config"), dict) else None
    for key, value in new.items():
        if inner is None or key == "tie_word_embeddings":  # transformers reads this one at both places
            config[key] = value
        if inner is not None:
            inner[key] = value
    write_json(part / "config.json", config)


def merge_inputs(base: Path, adapters: Sequence[Weighted], max_shard_bytes: int) -> dict[str, Any]:
    """Everything that a merge depends on; equal inputs make it needless to merge again."""
    found = [({name: sha256_file(folder / name) for name in (CONFIG, WEIGHTS)}, w) for folder, w in adapters]
    alone = found[0][0] if len(found) == 1 and found[0][1] == 1 else [{**h, "weight": w} for h, w in found]
    return {"base": model_identity(base), "adapter": alone, "max_shard_bytes": max_shard_bytes}


def is_intact(folder: Path, inputs: dict[str, Any]) -> bool:
    """True if `folder` is a merge of just these inputs, and every file that it had is there as it was written."""
    with suppress(InputError, OSError, LookupError, TypeError):
        record = read_json(folder / MERGE_RECORD)
        if (record["format"], record["inputs"]) == (RECORD_FORMAT, inputs):
            return all(sampled_sha256(folder / name) == known for name, known in record["files"].items())
    return False


def write_record(part: Path, record: dict[str, Any]) -> None:
    """Write the record, with a hash of every file of the folder."""
    files = sorted(p for p in part.rglob("*") if p.is_file() and p.name not in LATER)
    record["files"] = {path.relative_to(part).as_posix(): sampled_sha256(path) for path in files}
    write_json(part / MERGE_RECORD, record)


def check_place(out: Path, *sources: Path) -> None:
    """`InputError` unless `out` is free, or holds an earlier merge and nothing else that would be lost."""
    for source in sources:
        place = source.resolve()
        if out == place or out in place.parents:
            what = f"the merged model cannot take the place of {source.name}, which it is made from"
            raise InputError(what, str(out), "choose another folder")
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError("a file is in the place of the merged model", str(out), "choose another folder")
    present = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file() and not p.name.startswith(".")}
    if not present:
        return
    if MERGE_RECORD not in present:
        what = f"the folder is not empty, and no earlier merge: it has no {MERGE_RECORD}"
        raise InputError(what, str(out), "choose another folder, or empty it")
    record = read_json(out / MERGE_RECORD)
    known = {*record.get("files", ()), MERGE_RECORD, *LATER} if isinstance(record, dict) else set()
    if others := sorted(present - known):
        what = f"the folder holds files that no merge wrote and that would be lost: {', '.join(others[:5])}"
        raise InputError(what, str(out), "move them elsewhere, or choose another folder")
