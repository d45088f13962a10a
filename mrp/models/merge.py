"""Merging: LoRA adapters folded into their base model, in a folder that needs neither.

    record = merge(base, adapter, Path("merged"), max_shard_size="2GB")
    record = merge(base, [(adapter, 1.0), (voice, 0.5)], Path("merged"))     # several, weighted
    merge_run(run)                                                           # the same for a run: <run folder>/merged
    reshard(model, Path("smaller"), "500MB")                                 # no adapter: other files, the same bytes

W + scale * B @ A is computed in float32 and rounded once to the number format of the base's file, piece by piece
(merge_numbers.py), so a model of any length fits in little memory. The result is checked against base + adapters
(merge_check.py) before it takes its place; until then, and if anything fails, an earlier merge stays as it was.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mrp.config import KEPT_CAST_FILE, KEPT_RUN_FILE, RUN_FILE, Run, cast_text, load_run
from mrp.errors import InputError, MrpError
from mrp.files import folder_lock, need_space, read_json, replacing, replacing_folder, size_text
from mrp.models.bases import check_base_folder, find_base, model_identity
from mrp.models.merge_check import Passes, is_large, short_probes, verify
from mrp.models.merge_folder import (
    MERGE_RECORD,
    RECORD_FORMAT,
    check_place,
    copy_files,
    files_to_copy,
    is_intact,
    merge_inputs,
    settle_config,
    write_record,
)
from mrp.models.merge_numbers import Folding
from mrp.models.merge_plan import MergePlan, Weighted, check_weights, parse_adapter, plan_merge, weighted
from mrp.models.merge_probes import default_probes
from mrp.models.merge_shift import quantised_shift
from mrp.models.merge_sweep import sweep
from mrp.models.model_card import write_card
from mrp.models.shards import Shard, plan_shards, read_weights, same_bytes, shard_bytes, write_shards
from mrp.report import SILENT, Reporter
from mrp.train.lora import CONFIG, check_adapter_folder
from mrp.train.record import versions

MUCH_LOST = 0.5  # share of the adapter's change that rounding may take before it is worth a warning


def merge(
    base: Path,
    adapters: Path | Sequence[Weighted],
    out: Path,
    *,
    max_shard_size: str = "2GB",
    probes: list[list[int]] | None = None,
    report: Reporter = SILENT,
) -> dict[str, Any]:
    """Fold one PEFT adapter, or several (folder, weight), into the base and write the model to `out`.

    Returns the record (mrp-merge.json). Where `out` holds this very merge already, nothing is done. `probes` are token
    ids to check with. Raises `InputError` with every reason against it before anything is written, `SetupError` for a
    full disk, and `MrpError` if the result is not base + adapters.
    """
    out = out.resolve()
    limit = shard_bytes(max_shard_size)
    pairs = weighted(adapters)
    check_base_folder(base)
    for folder, _ in pairs:
        check_adapter_folder(folder)
    check_weights(pairs)
    check_place(out, base, *(folder for folder, _ in pairs))
    inputs = merge_inputs(base, pairs, limit)
    if is_intact(out, inputs):
        report.line(f"merge: done already ({out})")
        return dict(read_json(out / MERGE_RECORD))
    weights = read_weights(base)
    plan = plan_merge(base, weights, pairs)
    folding = Folding(plan.changes)
    with replacing_folder(out) as part:
        asked = short_probes(probes or default_probes(base)) if is_large(base, plan) else None
        shards, passes = _write_model(base, plan, part, limit, folding, report, asked)
        settle_config(part, plan)
        report.line(f"checking the merged model against base + {'adapter' if len(pairs) == 1 else 'adapters'}")
        checked = verify(base, pairs, part, probes, plan, passes)
        record = {
            "format": RECORD_FORMAT,
            "inputs": inputs,
            "scale": folding.scales(),
            "dtype": sorted({t.dtype for t in plan.tensors if t.name in plan.changes}),
            "tensors": {"changed": len(plan.changes), "kept": len(plan.tensors) - len(plan.changes)},
            "replaced": sorted({name for adapter, _ in plan.adapters for name in adapter.replaced}),
            "untied": plan.is_untied,
            "vocabulary": plan.vocabulary,
            "rounding": folding.rounding(),
            "shards": {shard.name: shard.data_bytes for shard in shards},
            "verification": checked,
            "trained_quantised": quantised_shift(base, pairs, part, probes, report),
            "made_with": versions(),
        }
        write_record(part, record)
    _tell(out, record, report)
    return record


def reshard(model: Path, out: Path, max_shard_size: str = "2GB", report: Reporter = SILENT) -> dict[str, Any]:
    """Write a model folder's weights, unchanged, in files of another length; returns the record."""
    out = out.resolve()
    limit = shard_bytes(max_shard_size, "--max-shard-size")
    if (model / CONFIG).is_file() and not (model / "config.json").is_file():
        fix = f"mrp merge BASE {model} --out DIR"
        raise InputError("this is an adapter, not a model: alone it has no weights to write", str(model), fix)
    check_base_folder(model)
    weights = read_weights(model)
    check_place(out, model)
    with replacing_folder(out) as part:
        shards, _ = _write_model(model, MergePlan(list(weights.values()), {}), part, limit, Folding({}), report)
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
        write_record(part, record)
    report.line(f"wrote {out}: {_shards_text(record)}")
    return record


# -- a run ---------------------------------------------------------------------------------------------------------


def is_merged(run: Run) -> bool:
    """True if the run's merged model is there, whole, made from its base and adapter as they are, with its cast."""
    with suppress(MrpError, OSError):
        if run.config.train.method == "full":  # training writes the merged model's folder itself
            return _kept_cast(run.merged) == cast_text(run, run.merged)
        base = find_base(run.config.base, run.path.parent)
        inputs = merge_inputs(base, [(run.adapter, 1.0)], shard_bytes(run.config.merge.max_shard_size))
        return is_intact(run.merged, inputs) and _kept_cast(run.merged) == cast_text(run, run.merged)
    return False


def merge_run(run: Run, report: Reporter = SILENT) -> Path:
    """Merge a run's adapter into its base, unless that is done; the folder gets the run's cast too, so it is enough
    for a chat, and a model card. The caller holds the run folder's lock. Returns the folder."""
    if run.config.train.method == "full":
        check_base_folder(run.merged)
    else:
        base = find_base(run.config.base, run.path.parent)
        merge(base, run.adapter, run.merged, max_shard_size=run.config.merge.max_shard_size, report=report)
    keep_cast(run, run.merged)
    write_card(run.merged, run.folder.name, run)
    return run.merged


def keep_cast(run: Run, folder: Path) -> None:
    """Give a merged model the run's cast, unless it has it."""
    if _kept_cast(folder) != cast_text(run, folder):
        with replacing(folder / KEPT_CAST_FILE) as file:
            file.write(cast_text(run, folder))


def _kept_cast(folder: Path) -> str:
    path = folder / KEPT_CAST_FILE
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def merge_command(
    paths: list[str], out: Path | None, max_shard_size: str | None, report: Reporter, voice: str | None = None
) -> dict[str, Any]:
    """`mrp merge RUN`, `mrp merge RUN --voice NAME`, `mrp merge BASE ADAPTER[=WEIGHT]... --out DIR`, and
    `mrp merge MODEL --out DIR` (other shards)."""
    if voice is not None and len(paths) > 1:
        fix = "mrp merge RUN --voice NAME; or give the voice's folder as one more ADAPTER"
        raise InputError("--voice names a voice of a run, and these are a base and adapters", "--voice", fix)
    if voice is not None or (len(paths) == 1 and out is None):
        _refuse_folder_without_out(Path(paths[0]))
        flags = {"merge.max_shard_size": max_shard_size} if max_shard_size else {}
        run = load_run(Path(paths[0]), flags)
        with folder_lock(run.folder):
            if voice is not None:
                from mrp.models.merge_voice import merge_voice

                return merge_voice(run, voice, out, report)
            folder = merge_run(run, report)
        return {"folder": str(folder), **read_json(folder / MERGE_RECORD)}
    if out is None:
        raise InputError("no folder to write to", "--out", "mrp merge BASE ADAPTER --out DIR")
    base = find_base(paths[0], Path.cwd())
    if len(paths) == 1:
        return {"folder": str(out), **reshard(base, out, max_shard_size or "2GB", report)}
    adapters = [parse_adapter(text) for text in paths[1:]]
    record = merge(base, adapters, out, max_shard_size=max_shard_size or "2GB", report=report)
    return {"folder": str(out), **record}


def _refuse_folder_without_out(path: Path) -> None:
    """`InputError` for a model or an adapter where a run was meant: both need more than their own folder."""
    if any((path / name).is_file() for name in (KEPT_RUN_FILE, RUN_FILE)):
        return
    if (path / CONFIG).is_file():
        fix = f"mrp merge BASE {path} --out DIR"
        raise InputError("this is an adapter, and its base model is not named", str(path), fix)
    if (path / "config.json").is_file():
        fix = f"to write it in other shards: mrp merge {path} --out DIR; to merge: mrp merge {path} ADAPTER --out DIR"
        raise InputError("this is a model's folder, and no adapter is named", str(path), fix)


# -- the folder ----------------------------------------------------------------------------------------------------


def _write_model(
    base: Path,
    plan: MergePlan,
    part: Path,
    limit: int,
    folding: Folding,
    report: Reporter,
    probes: list[list[int]] | None = None,
) -> tuple[list[Shard], Passes | None]:
    """Everything of a model folder but the record: weights with what `folding` adds, and the base's other files. With
    `probes`, their logits too, made in the same sweep over the weights."""
    shards = plan_shards(plan.tensors, limit)
    total = sum(shard.data_bytes for shard in shards)
    small = sum(path.stat().st_size for path in files_to_copy(base)) + 200 * len(plan.tensors)
    need_space(part.parent, total + small + 2**20, "the merged model")
    copy_files(base, part)
    if too_long := [t for s in shards for t in s.tensors if s.data_bytes > limit]:
        longest = max(too_long, key=lambda t: t.nbytes)
        what = f"{longest.name} alone has {size_text(longest.nbytes)}, more than {size_text(limit)}"
        report.warn(f"{what}: tensors are never split, so its file is larger")
    with report.progress("merging" if folding.changes else "writing", total, "B") as update:
        if probes:
            return shards, sweep(base, plan, shards, part, folding, probes, update)
        write_shards(part, shards, folding.pieces, update)
    return shards, None


# -- for people ----------------------------------------------------------------------------------------------------


def _tell(out: Path, record: dict[str, Any], report: Reporter) -> None:
    rounding, checked = record["rounding"], record["verification"]
    if not rounding["change_norm"]:
        report.warn("the adapter changes nothing: its B matrices are all zero, as before training")
    elif rounding["lost"] > MUCH_LOST:
        what = f"rounding to {'/'.join(record['dtype'])} takes {rounding['lost']:.0%} of the adapter's change"
        report.warn(f"{what}; it was trained very little, or the base should be kept in float32")
    report.line(f"merged into {out}: {_shards_text(record)}")
    if record["untied"]:
        report.line("embedding and head were one weight and are two now (config.json: tie_word_embeddings false)")
    report.line(_rounding_text(rounding, record["dtype"]))
    report.line(
        f"{record['tensors']['changed']} weights changed; "
        f"same first choice as base + adapter at {checked['same_first_choice']:.1%} of {checked['positions']} tokens, "
        f"largest logit difference {checked['largest_logit_difference']:.2g}, "
        f"mean KL {checked['mean_kl']:.1e} (the adapter itself: {checked['adapter_mean_kl']:.1e})"
    )


def _rounding_text(rounding: dict[str, Any], dtype: list[str]) -> str:
    """One line on what rounding took: "rounding to BF16 moved weights by 2.1e-05 on average (at most 9.8e-04) ..."."""
    return (
        f"rounding to {'/'.join(dtype)} moved weights by {rounding['mean_difference']:.1e} on average "
        f"(at most {rounding['largest_difference']:.1e}), the adapter by {rounding['mean_change']:.1e} "
        f"(at most {rounding['largest_change']:.1e}): {rounding['lost']:.1%} of its change was lost"
        + (f"; measured on {rounding['measured_share']:.0%} of the numbers" if rounding["measured_share"] < 1 else "")
    )


def _shards_text(record: dict[str, Any]) -> str:
    count = len(record["shards"])
    return f"{size_text(sum(record['shards'].values()))} in {count} file{'' if count == 1 else 's'}"
