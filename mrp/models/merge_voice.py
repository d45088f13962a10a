"""One character's voice folded in: a model that needs neither adapter nor voice, for programs that take no LoRA.

    merge_voice(run, "wukong")                     # <run folder>/merged-wukong: base + cast adapter + that voice
    merge_voice(run, "wukong", Path("wukong"))     # the same elsewhere

It is a merge of two adapters (merge.py): added in float32, rounded once, checked against base + adapter + voice.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mrp.config import Run
from mrp.errors import InputError, nearest
from mrp.models.bases import check_base_folder, find_base
from mrp.models.merge import keep_cast, merge
from mrp.models.merge_plan import Weighted
from mrp.models.model_card import write_card
from mrp.models.run_voices import voices_of
from mrp.models.voices import voices_in
from mrp.report import SILENT, Reporter


def merge_voice(run: Run, name: str, out: Path | None = None, report: Reporter = SILENT) -> dict[str, Any]:
    """Fold the run's cast adapter and the voice of one character into the base; returns the record, with the folder.

    `name` is an id, a name or an alias. The caller holds the run folder's lock. Raises `InputError` for a character
    without a voice, for the place of the run's own merged model, and whatever `merge` raises.
    """
    who = run.cast.find(name, "--voice").id
    known = voices_in(voices_of(run) or run.voices)
    if who not in known:
        fix = nearest(who, known) if known else "merge without --voice: this run has one adapter for all characters"
        raise InputError(f"{who!r} has no voice of its own", str(run.voices), fix)
    out = (out or run.folder / f"merged-{who}").resolve()
    if out == run.merged.resolve():
        what = "a merge with one character's voice cannot take the place of the cast's merged model"
        raise InputError(what, str(out), "choose another folder, or leave --out out")
    base, adapters = _parts(run)
    adapters.append((run.voices / who, 1.0))
    limit = run.config.merge.max_shard_size
    record = merge(base, adapters, out, max_shard_size=limit, report=report)
    keep_cast(run, out)
    write_card(out, f"{run.folder.name}-{who}", run)
    return {"folder": str(out), "voice": who, **record}


def _parts(run: Run) -> tuple[Path, list[Weighted]]:
    """What a voice adds to: base and cast adapter, or the model that full fine-tuning made."""
    if run.config.train.method == "full":
        check_base_folder(run.merged)
        return run.merged, []
    return find_base(run.config.base, run.path.parent), [(run.adapter, 1.0)]
