"""Run files that come with mrp (`mrp presets`), and the folder that `mrp init` writes.

A preset is a run file whose first line is a comment that says what it is for.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from mrp.errors import InputError, nearest

HOME = Path(__file__).parent
STARTER = HOME / "starter"


def describe_presets() -> dict[str, str]:
    """Name and first line of each preset."""
    return {path.stem: _first_line(path) for path in sorted(HOME.glob("*.yaml"))}


def copy_preset(name: str, folder: Path) -> Path:
    """Copy a preset to `folder`/mrp.yaml; never over an existing file."""
    source = HOME / f"{name}.yaml"
    if name not in describe_presets():
        raise InputError(f"unknown preset {name!r}", "mrp presets copy", nearest(name, describe_presets()))
    return _copy(source, folder / "mrp.yaml")


def write_starter(folder: Path) -> list[Path]:
    """Write the files of a new project into `folder`; never over existing ones."""
    files = sorted(p for p in STARTER.rglob("*") if p.is_file())
    targets = [folder / p.relative_to(STARTER) for p in files]
    for target in targets:
        _must_be_new(target)
    written: list[Path] = []
    try:
        for source, target in zip(files, targets, strict=True):
            written.append(_copy(source, target))
    except InputError:
        for path in written:  # so that it can be tried again
            path.unlink()
        raise
    return written


def _copy(source: Path, target: Path) -> Path:
    _must_be_new(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    except OSError as error:
        raise InputError(f"cannot write: {error.strerror}", str(target), "choose another folder") from error
    return target


def _must_be_new(path: Path) -> None:
    if path.exists():
        raise InputError(f"{path.name} exists already", str(path), "choose another folder, or move the file away")


def _first_line(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        return file.readline().lstrip("# ").strip()
