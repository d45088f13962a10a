"""Merging: a LoRA adapter folded into its base model, in a folder that needs neither.

    record = merge(base, adapter, Path("merged"), max_shard_size="2GB")
    merge_run(run)                                  # the same for a run: <run folder>/merged

W + scale * B @ A is computed in float32 and rounded once to the number format of the base's file, piece by piece, so
a model of any length fits in little memory. The result is checked against base + adapter (merge_check.py) before it
takes its place; until then, and if anything fails, an earlier merge stays as it was.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mrp.config import KEPT_CAST_FILE, Run, cast_text, load_run
from mrp.errors import InputError, MrpError
from mrp.files import (
    folder_lock,
    need_space,
    read_json,
    replacing,
    replacing_folder,
    sampled_sha256,
    sha256_file,
    size_text,
    write_json,
)
from mrp.models.adapter_file import CONFIG, WEIGHTS, Pair, read_adapter
from mrp.models.bases import check_base_folder, find_base, model_identity
from mrp.models.merge_check import verify
from mrp.models.shards import (
    Piece,
    Shard,
    StoredTensor,
    as_piece,
    plan_shards,
    raw_pieces,
    read_rows,
    read_weights,
    row_blocks,
    same_bytes,
    shard_bytes,
    write_shards,
)
from mrp.report import SILENT, Reporter
from mrp.train.lora import check_adapter_folder
from mrp.train.record import versions

MERGE_RECORD = "mrp-merge.json"
RECORD_FORMAT = 1  # raise it when a merge writes something else for the same inputs: older ones are then done anew
COPIED = (
    *("*.json", "*.jinja", "*.model", "*.model.*", "*.tiktoken", "*.txt"),  # config, tokenizer, chat template
    *("LICEN[CS]E*", "NOTICE*", "COPYING*", "*POLICY*", "additional_chat_templates/*.jinja"),
)
NOT_COPIED = ("*.index.json", "mrp-*.json", "adapter_*")
MUCH_LOST = 0.5  # share of the adapter's change that rounding may take before it is worth a warning


def merge(
    base: Path,
    adapter: Path,
    out: Path,
    *,
    max_shard_size: str = "2GB",
    probes: list[list[int]] | None = None,
    report: Reporter = SILENT,
) -> dict[str, Any]:
    """Fold the PEFT adapter into the base and write the model to `out`; returns the record (mrp-merge.json).

    Where `out` holds this very merge already, nothing is done. `probes` are token ids to check with. Raises
    `InputError` with every reason against it before anything is written, `SetupError` for a full disk, and `MrpError`
    if the result is not base + adapter.
    """
    out = out.resolve()
    limit = shard_bytes(max_shard_size)
    check_base_folder(base)
    check_adapter_folder(adapter)
    _check_place(out, base, adapter)
    inputs = _inputs(base, adapter, limit)
    if is_intact(out, inputs):
        report.line(f"merge: done already ({out})")
        return dict(read_json(out / MERGE_RECORD))
    weights = read_weights(base)
    pairs = read_adapter(adapter, base, weights)
    folding = _Folding({f"{layer}.weight": pair for layer, pair in pairs.items()})
    with replacing_folder(out) as part:
        shards = _write_model(base, weights, part, limit, folding, report)
        report.line("checking the merged model against base + adapter")
        checked = verify(base, adapter, part, probes)
        record = {
            "format": RECORD_FORMAT,
            "inputs": inputs,
            "scale": folding.scales(),
            "dtype": sorted({weights[name].dtype for name in folding.pairs}),
            "tensors": {"changed": len(folding.pairs), "kept": len(weights) - len(folding.pairs)},
            "rounding": folding.rounding(),
            "shards": {shard.name: shard.data_bytes for shard in shards},
            "verification": checked,
            "made_with": versions(),
        }
        _write_record(part, record)
    _tell(out, record, report)
    return record


def reshard(model: Path, out: Path, max_shard_size: str = "2GB", report: Reporter = SILENT) -> dict[str, Any]:
    """Write a model folder's weights, unchanged, in files of another length; returns the record."""
    out = out.resolve()
    limit = shard_bytes(max_shard_size, "--max-shard-size")
    check_base_folder(model)
    weights = read_weights(model)
    _check_place(out, model)
    with replacing_folder(out) as part:
        shards = _write_model(model, weights, part, limit, _Folding({}), report)
        written = read_weights(part)
        for name, tensor in weights.items():
            if name not in written or not same_bytes(tensor, written[name]):
                raise MrpError(f"{name} was not written as it is", str(model), "check the disk, then try again")
        cast = model / KEPT_CAST_FILE
        if cast.is_file():
            shutil.copyfile(cast, part / KEPT_CAST_FILE)
        record = {
            "format": RECORD_FORMAT,
            "inputs": {"base": model_identity(model), "adapter": None, "max_shard_bytes": limit},
            "merged_before": read_json(model / MERGE_RECORD) if (model / MERGE_RECORD).is_file() else None,
            "shards": {shard.name: shard.data_bytes for shard in shards},
            "made_with": versions(),
        }
        _write_record(part, record)
    report.line(f"wrote {out}: {_shards_text(record)}")
    return record


# -- a run ---------------------------------------------------------------------------------------------------------


def is_merged(run: Run) -> bool:
    """True if the run's merged model is there, whole, made from its base and adapter as they are, with its cast."""
    with suppress(MrpError, OSError):
        if run.config.train.method == "full":  # training writes the merged model's folder itself
            return _kept_cast(run.merged) == cast_text(run, run.merged)
        base = find_base(run.config.base, run.path.parent)
        inputs = _inputs(base, run.adapter, shard_bytes(run.config.merge.max_shard_size))
        return is_intact(run.merged, inputs) and _kept_cast(run.merged) == cast_text(run, run.merged)
    return False


def merge_run(run: Run, report: Reporter = SILENT) -> Path:
    """Merge a run's adapter into its base, unless that is done; the folder gets the run's cast too, so it is enough
    for a chat. The caller holds the run folder's lock. Returns the folder."""
    if run.config.train.method == "full":
        check_base_folder(run.merged)
    else:
        base = find_base(run.config.base, run.path.parent)
        merge(base, run.adapter, run.merged, max_shard_size=run.config.merge.max_shard_size, report=report)
    if _kept_cast(run.merged) != cast_text(run, run.merged):
        with replacing(run.merged / KEPT_CAST_FILE) as file:
            file.write(cast_text(run, run.merged))
    return run.merged


def _kept_cast(folder: Path) -> str:
    path = folder / KEPT_CAST_FILE
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def merge_command(paths: list[str], out: Path | None, max_shard_size: str | None, report: Reporter) -> dict[str, Any]:
    """`mrp merge RUN`, `mrp merge BASE ADAPTER --out DIR` and `mrp merge MODEL --out DIR` (other shards)."""
    if len(paths) == 1 and out is None:
        flags = {"merge.max_shard_size": max_shard_size} if max_shard_size else {}
        run = load_run(Path(paths[0]), flags)
        with folder_lock(run.folder):
            folder = merge_run(run, report)
        return {"folder": str(folder), **read_json(folder / MERGE_RECORD)}
    if out is None:
        raise InputError("no folder to write to", "--out", "mrp merge BASE ADAPTER --out DIR")
    base = find_base(paths[0], Path.cwd())
    if len(paths) == 1:
        record = reshard(base, out, max_shard_size or "2GB", report)
    elif len(paths) == 2:
        record = merge(base, Path(paths[1]), out, max_shard_size=max_shard_size or "2GB", report=report)
    else:
        what = f"{len(paths) - 1} adapters at once cannot be merged by this version"
        raise InputError(what, " ".join(paths[1:]), "merge one adapter, then the next into the result")
    return {"folder": str(out), **record}


# -- the folding ---------------------------------------------------------------------------------------------------


@dataclass
class _Folding:
    """New bytes for each tensor, and how much of the change was lost when they were rounded."""

    pairs: dict[str, Pair]  # by name of the weight
    lost: dict[str, float] = field(default_factory=dict)  # norm of the rounding error / norm of the change
    change_squared: float = 0.0
    error_squared: float = 0.0

    def pieces(self, tensor: StoredTensor) -> Iterator[Piece]:
        if tensor.name not in self.pairs:
            yield from raw_pieces(tensor)
            return
        pair = self.pairs[tensor.name]
        a, b = pair.factors()
        change_squared = error_squared = 0.0
        for first, end in row_blocks(tensor):
            change = pair.scale * (b[first:end] @ a)  # (rows, in)
            exact = read_rows(tensor, first, end).float() + change
            rounded = exact.to(tensor.torch_dtype)
            if not torch.isfinite(rounded).all():
                raise _not_finite(tensor, first, end)
            change_squared += _squared(change)
            error_squared += _squared(exact - rounded)
            yield as_piece(rounded)
        self.lost[tensor.name] = (error_squared / change_squared) ** 0.5 if change_squared else 0.0
        self.change_squared += change_squared
        self.error_squared += error_squared

    def scales(self) -> float | dict[str, float]:
        """The scale that all layers share, or each one's."""
        scales = {name: pair.scale for name, pair in self.pairs.items()}
        return min(scales.values()) if len(set(scales.values())) == 1 else scales

    def rounding(self) -> dict[str, Any]:
        """How much of the adapter's change was lost by rounding, as a share of its norm."""
        largest = max(self.lost, key=lambda name: self.lost[name])
        return {
            "lost": (self.error_squared / self.change_squared) ** 0.5 if self.change_squared else 0.0,
            "mean": sum(self.lost.values()) / len(self.lost),
            "largest": self.lost[largest],
            "largest_in": largest,
            "change_norm": self.change_squared**0.5,
        }


def _squared(values: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2


def _not_finite(tensor: StoredTensor, first: int, end: int) -> MrpError:
    if not torch.isfinite(read_rows(tensor, first, end)).all():
        return InputError(f"{tensor.name} of the base holds NaN or infinity", tensor.where, "copy the base model anew")
    what = f"{tensor.name} with the adapter is too large for {tensor.dtype}"
    return InputError(what, tensor.where, "train again, with a lower train.learning_rate")


# -- the folder ----------------------------------------------------------------------------------------------------


def _write_model(
    base: Path, weights: dict[str, StoredTensor], part: Path, limit: int, folding: _Folding, report: Reporter
) -> list[Shard]:
    """Everything of a model folder but the record: weights with what `folding` adds, and the base's other files."""
    shards = plan_shards(weights.values(), limit)
    total = sum(shard.data_bytes for shard in shards)
    copied = _files_to_copy(base)
    small = sum(path.stat().st_size for path in copied) + 200 * len(weights)
    need_space(part.parent, total + small + 2**20, "the merged model")
    for path in copied:
        place = part / path.relative_to(base)
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, place)
    if too_long := [t for s in shards for t in s.tensors if s.data_bytes > limit]:
        longest = max(too_long, key=lambda t: t.nbytes)
        what = f"{longest.name} alone has {size_text(longest.nbytes)}, more than {size_text(limit)}"
        report.warn(f"{what}: tensors are never split, so its file is larger")
    with report.progress("merging" if folding.pairs else "writing", total, "B") as update:
        write_shards(part, shards, folding.pieces, update)
    return shards


def _files_to_copy(base: Path) -> list[Path]:
    """Config, tokenizer, chat template and licence. No code: a folder's Python files never run here."""
    found = {path for pattern in COPIED for path in base.glob(pattern) if path.is_file()}
    return sorted(p for p in found if not any(p.match(pattern) for pattern in NOT_COPIED))


def _inputs(base: Path, adapter: Path, max_shard_bytes: int) -> dict[str, Any]:
    """Everything that a merge depends on; equal inputs make it needless to merge again."""
    hashes = {name: sha256_file(adapter / name) for name in (CONFIG, WEIGHTS)}
    return {"base": model_identity(base), "adapter": hashes, "max_shard_bytes": max_shard_bytes}


def is_intact(folder: Path, inputs: dict[str, Any]) -> bool:
    """True if `folder` is a merge of just these inputs, and every file that it had is there as it was written."""
    with suppress(InputError, OSError, LookupError, TypeError):
        record = read_json(folder / MERGE_RECORD)
        if (record["format"], record["inputs"]) == (RECORD_FORMAT, inputs):
            return all(sampled_sha256(folder / name) == known for name, known in record["files"].items())
    return False


def _write_record(part: Path, record: dict[str, Any]) -> None:
    files = sorted(p for p in part.rglob("*") if p.is_file() and p.name != KEPT_CAST_FILE)
    record["files"] = {path.relative_to(part).as_posix(): sampled_sha256(path) for path in files}
    write_json(part / MERGE_RECORD, record)


def _check_place(out: Path, *sources: Path) -> None:
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
    known = {*record.get("files", ()), MERGE_RECORD, KEPT_CAST_FILE} if isinstance(record, dict) else set()
    if others := sorted(present - known):
        what = f"the folder holds files that no merge wrote and that would be lost: {', '.join(others[:5])}"
        raise InputError(what, str(out), "move them elsewhere, or choose another folder")


def _tell(out: Path, record: dict[str, Any], report: Reporter) -> None:
    rounding, checked = record["rounding"], record["verification"]
    if not rounding["change_norm"]:
        report.warn("the adapter changes nothing: its B matrices are all zero, as before training")
    elif rounding["lost"] > MUCH_LOST:
        what = f"rounding to {'/'.join(record['dtype'])} takes {rounding['lost']:.0%} of the adapter's change"
        report.warn(f"{what}; it was trained very little, or the base should be kept in float32")
    report.line(f"merged into {out}: {_shards_text(record)}")
    report.line(
        f"{record['tensors']['changed']} matrices changed, rounding took {rounding['lost']:.1%} of the change; "
        f"same first choice as base + adapter at {checked['same_first_choice']:.1%} of {checked['positions']} tokens, "
        f"mean KL {checked['mean_kl']:.1e} (the adapter itself: {checked['adapter_mean_kl']:.1e})"
    )


def _shards_text(record: dict[str, Any]) -> str:
    count = len(record["shards"])
    return f"{size_text(sum(record['shards'].values()))} in {count} file{'' if count == 1 else 's'}"
