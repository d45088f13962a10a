"""`mrp compare`: several ways to train one cast, each with several seeds, measured alike and compared pair by pair.

    compared = compare(Path("experiment.yaml"))        # compare.json, compare.md, compare.html in its `out` folder

An arm is a set of options over one run file. What is missing is built, trained and evaluated; what is done is skipped;
what was stopped goes on. One JSON for each arm and seed lies in OUT/results/.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic
from pydantic import Field

from mrp.config import Run, keep_run, load_run
from mrp.errors import InputError, ManyFaults, MrpError, nearest, raise_all
from mrp.evaluate.evaluation import PARTS, evaluate
from mrp.files import folder_lock, is_safe_id, read_json, write_json
from mrp.report import SILENT, Reporter
from mrp.yamlfile import StrictModel, check_value, key_lines, place_of, read_yaml

OWN_OPTIONS = ("seed", "out")  # which the experiment itself sets


class Experiment(StrictModel):
    """An experiment file."""

    run: str
    """The run file that all arms start from, seen from this file."""
    arms: dict[str, dict[str, bool | int | float | str | None]] = Field(min_length=1)
    """Name of an arm: the options in which it differs from the run file, such as `data.order: sequential`."""
    seeds: list[int] = Field([0], min_length=1)
    """Each arm is trained once with each."""
    out: str = "compare"
    """The folder of the experiment, seen from this file."""
    parts: list[str] = ["identity", "voice", "retention"]
    """What is measured: parts of `mrp eval`."""
    replies: int = Field(0, ge=0)
    """Generated replies a character; 0: fitting the cast."""
    lines: int = Field(0, ge=0)
    """Held-out lines of a character that are scored under every identity; 0: fitting the cast."""
    curve: int = Field(4, ge=1)
    """Points of each epoch at which held-out loss is measured, its end included, for the curves of forgetting."""
    full: bool = False
    """As much as a published figure wants."""

    @pydantic.field_validator("parts")
    @classmethod
    def _parts_are_known(cls, value: list[str]) -> list[str]:
        for part in value:
            if part not in PARTS:
                raise ValueError(f"no part of an evaluation is called {part!r}|{nearest(part, PARTS)}")
        return value


@dataclass(frozen=True)
class Trial:
    """One arm with one seed, and the run that it is."""

    arm: str
    seed: int
    run: Run
    file: Path  # its JSON of results


def compare(
    path: Path, command: str = "", report: Reporter = SILENT, threads: int = 8, bits: str = "auto"
) -> dict[str, Any]:
    """Do what is missing of an experiment, write its report, and return the figures. `bits`: of the weights of all that
    is measured, as in `mrp eval`.

    Raises `InputError` for a broken file, with every fault of every arm, before anything is trained.
    """
    from mrp.evaluate.compare_report import compared, write_comparison
    from mrp.models.load import hardware
    from mrp.play.open import check_bits

    experiment, trials, folder = read_experiment(path)
    check_bits(bits, hardware(trials[0].run.config.train.precision).device)
    with folder_lock(folder):
        found = []
        for number, trial in enumerate(trials, 1):
            report.line(f"== {trial.arm}, seed {trial.seed} ({number} of {len(trials)})")
            found.append(_do(experiment, trial, folder, report, threads, bits))
        results = compared(found, experiment.seeds) | {"command": command, "run": experiment.run}
        write_json(folder / "compare.json", results)
        write_comparison(folder, results)
    return results | {"folder": str(folder)}


def read_experiment(path: Path) -> tuple[Experiment, list[Trial], Path]:
    """The file, every trial in it (arm by arm), and the experiment's folder."""
    lines = key_lines(path)
    experiment = check_value(read_yaml(path), Experiment, path, lines)
    folder = path.parent / experiment.out
    faults: list[MrpError] = []
    trials: list[Trial] = []
    slugs: dict[str, str] = {}
    for arm, options in experiment.arms.items():
        where = place_of(path, lines, ("arms", arm))
        slug = arm.replace(" ", "-").replace(",", "")
        if not is_safe_id(slug) or slugs.setdefault(slug.casefold(), arm) != arm:
            fix = "use ASCII letters, digits, spaces, '_' and '-', another name for each arm"
            faults.append(InputError(f"the arm {arm!r} cannot name a folder of its own", where, fix))
            continue
        for option in OWN_OPTIONS:
            if option in options:
                faults.append(InputError(f"{option!r} belongs to the experiment, not to an arm", where, "leave it out"))
        options = {key: value for key, value in options.items() if key not in OWN_OPTIONS}
        for seed in experiment.seeds:
            try:
                run = _run_of(path.parent / experiment.run, options, seed, folder / "runs" / slug / f"seed-{seed}")
            except MrpError as error:
                faults += _placed(error, where)
                break
            trials.append(Trial(arm, seed, run, folder / "results" / f"{slug}-seed-{seed}.json"))
    raise_all(path.name, faults)
    return experiment, trials, folder


def _run_of(path: Path, options: dict[str, Any], seed: int, folder: Path) -> Run:
    flags = {key: value if isinstance(value, str) else json.dumps(value) for key, value in options.items()}
    return load_run(path, flags | {"seed": str(seed), "out": str(folder.resolve())})


def _placed(error: MrpError, where: str) -> Iterator[MrpError]:
    """The faults of a run's options, told at the arm that has them."""
    for fault in error.faults if isinstance(error, ManyFaults) else [error]:
        at = f"{where}, {fault.where.removeprefix('--set ')}" if fault.where.startswith("--set ") else fault.where
        yield InputError(fault.what, at, fault.fix)


def _do(
    experiment: Experiment, trial: Trial, folder: Path, report: Reporter, threads: int, bits: str
) -> dict[str, Any]:
    """Build, train and evaluate a trial as far as it is not done; its results, which are also written."""
    from mrp.data.build import build_data
    from mrp.train.checkpoint import checkpoint_folder
    from mrp.train.loop import train

    run = trial.run
    with folder_lock(run.folder):
        build_data(run, report)
        keep_run(run)
        record = train(run, resume=checkpoint_folder(run.folder).is_dir(), curve=experiment.curve, report=report)
    results = evaluate(
        run.folder,
        full=experiment.full,
        replies=experiment.replies,
        lines=experiment.lines,
        only=experiment.parts,
        seed=trial.seed,
        threads=threads,
        bits=bits,
        command=f"mrp eval {run.folder}",
        kept=folder / "kept",
        report=report,
    )
    results.pop("folder")
    results |= {"arm": trial.arm, "options": experiment.arms[trial.arm], "measures": record["measures"]}
    results["cost"] = _cost(run, record) | {"serving": _serving(trial, record, bits)}
    write_json(trial.file, results)
    return dict(read_json(trial.file))


def _serving(trial: Trial, record: dict[str, Any], bits: str) -> dict[str, Any]:
    """Measured once for each training."""
    from mrp.evaluate.serving_speed import serving

    made_by = record["fingerprint"]
    if trial.file.is_file():
        known: dict[str, Any] = read_json(trial.file).get("cost", {}).get("serving", {})
        if (known.get("made_by"), known.get("bits")) == (made_by, bits):
            return known
    return serving(trial.run, bits) | {"made_by": made_by}


def _cost(run: Run, record: dict[str, Any]) -> dict[str, Any]:
    """What the training took and what it left on the disk beside the base."""
    measures, peak = record["measures"], record.get("gpu_memory_mib", {}).get("reserved")
    kept = [file for part in (run.adapter, run.voices) for file in part.rglob("*.safetensors")]
    return {
        "seconds": measures["seconds"],
        "tokens": measures["tokens"],
        "disk_bytes": sum(file.stat().st_size for file in kept),
        "peak_gib": None if peak is None else round(peak / 1024, 3),
        "device": record.get("device"),
    }
