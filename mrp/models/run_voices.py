"""The voices of a run, held against the cast adapter they were trained over.

    voices = voices_of(run)          # the folder, or None where the run has no voices

A voice adds to what its cast adapter gives; over another adapter it says something nobody trained. `run.json` knows
both by their hashes, so whatever plays, measures, merges or exports a run asks here.
"""

from __future__ import annotations

from pathlib import Path

from mrp.config import Run
from mrp.errors import InputError
from mrp.files import read_json, sha256_file
from mrp.models.voices import voices_in
from mrp.train.lora import WEIGHTS


def voices_of(run: Run) -> Path | None:
    """The folder of the run's voices; None if there are none.

    Raises `InputError` naming each voice that was trained over another adapter than the one that lies there.
    """
    voices = voices_in(run.voices)
    if not voices:
        return None
    record = read_json(run.record) if run.record.is_file() else {}
    trained, adapter = record.get("voices_sha256", {}), run.adapter / WEIGHTS
    if not trained or not adapter.is_file() or sha256_file(adapter) == record.get("adapter_sha256"):
        return run.voices
    stale = [who for who in voices if trained.get(who) == sha256_file(run.voices / who / WEIGHTS)]
    if stale:
        what = f"the cast adapter is another one than the voices of {', '.join(stale)} were trained over"
        fix = f"put the adapter of that training back, train anew (`mrp train {run.path}`), or take the voices away"
        raise InputError(what, str(run.voices), fix)
    return run.voices
