"""`run.json`: what a training was made of, and what came out.

`fingerprint` is the hash of everything that the adapter depends on; equal fingerprints mean equal adapters (on the
same kind of machine), so a finished training is not repeated and a checkpoint is only resumed where it fits.
"""

from __future__ import annotations

import hashlib
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import mrp
from mrp.config import Run
from mrp.errors import InputError
from mrp.files import fingerprint, read_json, sha256_file
from mrp.models.bases import model_identity
from mrp.models.voices import voices_in
from mrp.plan.command import predicted_memory
from mrp.train import full, lora
from mrp.train.checkpoint import State
from mrp.train.steps import Plan

PACKAGES = ("torch", "transformers", "peft", "tokenizers", "safetensors", "bitsandbytes", "triton")
NOT_TRAINING = ("base", "cast", "out", "question", "merge", "chat")  # what the adapter does not depend on by name
NOT_RESULT = ("threads", "checkpoint_minutes")


def training_inputs(run: Run, base: Path, template: dict[str, Any]) -> dict[str, Any]:
    """Everything that the adapter depends on, as JSON."""
    options = run.config.model_dump(exclude=set(NOT_TRAINING))
    del options["data"]["mix_files"]  # where they lie makes no difference; the data's fingerprint knows what is in them
    options["train"] = {k: v for k, v in options["train"].items() if k not in NOT_RESULT}
    return {
        "options": options,
        "identities": {c.id: run.cast.persona(c.id) for c in run.cast},
        "names": {c.id: list(c.names) for c in run.cast},
        "scenario": run.cast.scenario,
        "language": run.cast.language,
        "data": data_hashes(run),
        "base": model_identity(base),
        "template": template,
    }


def training_fingerprint(inputs: dict[str, Any]) -> str:
    return fingerprint(inputs)


def differences(old: Any, new: Any, at: str = "") -> list[str]:
    """What differs between two values of `training_inputs`: "options.train.epochs was 2, is 3"."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new})
        return [text for k in keys for text in differences(old.get(k), new.get(k), f"{at}.{k}" if at else k)]
    if old == new:
        return []
    values = f"{at} was {old!r}, is {new!r}"
    return [values if len(values) <= 80 else at]


def data_hashes(run: Run) -> dict[str, str]:
    """SHA-256 of the data files; `InputError` if the data is not built."""
    hashes = {}
    for name in ("train.jsonl", "held-out.jsonl"):
        path = run.data / name
        if not path.is_file():
            raise InputError(f"the data is not built: no {name}", str(path), f"run `mrp data build {run.path}`")
        hashes[name] = sha256_file(path)
    return hashes


def versions() -> dict[str, str]:
    """Versions of python, mrp and the libraries that a result depends on."""
    found = {"mrp": mrp.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def finished_record(run: Run, inputs: dict[str, Any]) -> dict[str, Any] | None:
    """The record of a training with these inputs whose adapter lies there as it was written, or None."""
    record = read_json(run.record) if run.record.is_file() else {}
    weights, config = trained_files(run)
    same = record.get("fingerprint") == training_fingerprint(inputs) and config.is_file()
    if not (same and weights.is_file() and record.get("adapter_sha256") == sha256_file(weights)):
        return None
    return record if voice_hashes(run) == record["voices_sha256"] else None


def voice_hashes(run: Run) -> dict[str, str]:
    """SHA-256 of the weights of each voice in the run folder."""
    return {who: sha256_file(run.voices / who / lora.WEIGHTS) for who in voices_in(run.voices)}


def trained_files(run: Run) -> tuple[Path, Path]:
    """The weights that a training of this run writes, and the config beside them."""
    if run.config.train.method == "full":
        return run.merged / full.WEIGHTS, run.merged / full.CONFIG
    return run.adapter / lora.WEIGHTS, run.adapter / lora.CONFIG


def realised_order(log: Path) -> dict[str, Any]:
    """The order in which samples were really trained, from the log of steps: a hash, and how many."""
    digest = hashlib.sha256()
    count = 0
    with log.open(encoding="utf-8") as file:
        for line in file:
            for sample_id in json.loads(line)["samples"]:
                digest.update(sample_id.encode() + b"\n")
                count += 1
    return {"file": log.name, "samples_trained": count, "sha256": digest.hexdigest()}


def training_record(run: Run, state: State, plan: Plan, log: Path, machine: dict[str, Any]) -> dict[str, Any]:
    """`run.json` of a finished training, whose adapter is written; `log` holds its steps."""
    after: dict[str, float] = next((e["held_out_loss"] for e in state.epochs if e["epoch"] == state.best_epoch), {})
    if not run.config.train.epochs:  # the adapter is none
        after = state.before
    with_voice = after | {who: v["held_out_loss"] for who, v in state.voices.items() if v.get("held_out_loss")}
    held = {}
    for name in state.before.keys() & after.keys():
        adapter = {"adapter": after[name]} if state.voices else {}
        held[name] = {"before": state.before[name]} | adapter | {"after": with_voice[name]}
    held = {name: held[name] for name in state.before if name in held}
    made_of = {
        "samples": len(plan.samples),
        "dev_samples": len(plan.dev_samples),
        "dev_scenes": sorted({s.scene for s in plan.dev_samples}),
        "left_out": plan.left_out,
        "pieces_cut_from_long_samples": plan.pieces_cut,
    }
    if run.config.train.contrast:  # a long sample may be cut elsewhere under another persona, and then has no twin
        items = [item for step in plan.steps if step.stage == 0 for item in step.items]
        made_of["contrast"] = {"with_twin": sum(i.twin is not None for i in items), "samples": len(items)}
    return {
        "fingerprint": training_fingerprint(state.inputs),
        "adapter_sha256": sha256_file(trained_files(run)[0]),
        "voices_sha256": voice_hashes(run),
        "options": run.config.model_dump(),
        "origins": run.origins,
        "data": state.inputs["data"] | made_of,
        "base": state.inputs["base"],
        "template": state.inputs["template"],
        "order": {"asked": run.config.data.order} | realised_order(log),
        **machine,
        **_memory_predicted(run, plan, machine),
        "versions": versions(),
        "measures": {
            "steps": state.step,
            "tokens": state.tokens,
            "labelled_tokens": state.labelled,
            "measured_tokens": plan.measured_tokens(e["stage"] for e in state.epochs),
            "seconds": round(state.seconds, 1),
            "tokens_per_second": round(state.tokens / max(state.seconds, 1e-9), 1),
            "chosen_epoch": state.best_epoch,
            "voices": state.voices,
            "held_out_loss": held,
            "epochs": state.epochs,
            "curve": state.curve,
        },
    }


def _memory_predicted(run: Run, plan: Plan, machine: dict[str, Any]) -> dict[str, Any]:
    """What `mrp plan` would have said of this training's GPU memory, beside what was measured."""
    if "gpu_memory_mib" not in machine or not run.config.train.epochs:
        return {}
    rows = []
    for step in plan.steps:
        for row in step.rows if step.stage == 0 else ():
            sides = [i.rendered for i in row], [i.twin.rendered for i in row if i.twin]
            rows += [[(len(each.input_ids), each.labelled) for each in side] for side in sides if side]
    return {"gpu_memory_predicted_mib": predicted_memory(run, rows, machine["kernels"])}
