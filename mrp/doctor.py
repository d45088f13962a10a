"""`mrp doctor`: is this machine fit, and is this run? Every finding with what to do about it; nothing is changed.

    examine(None)                    # the machine alone: python, packages, torch, GPU, memory, disk
    examine(Path("mrp.yaml"))        # and the run: base, tokenizer, chat template, data, adapter, merged model

A missing package is a finding, not a crash: torch is imported only where it is installed.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import mrp
from mrp.errors import Judgement, ManyFaults, MrpError
from mrp.files import size_text
from mrp.models.bases import cache_folder
from mrp.report import Reporter

Level = Literal["ok", "warning", "error"]
LEVELS: tuple[Level, ...] = ("ok", "warning", "error")
LITTLE_DISK, LITTLE_MEMORY = 5 * 10**9, 2 * 2**30
OWN_EXTRAS = ("dev",)  # for those who work on mrp itself
WIDTH, LABEL = 80, 18


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    area: str  # "machine" or "run"
    name: str
    level: Level
    what: str
    fix: str = ""


def doctor_command(path: Path | None, report: Reporter) -> Judgement:
    """Look at everything and print a table; the result holds each finding."""
    with report.waiting("looking around"):
        findings = examine(path)
    for line in table(findings):
        report.result(line)
    worst = max((f.level for f in findings), key=LEVELS.index)
    counts = {level: sum(f.level == level for f in findings) for level in LEVELS}
    found = {"worst": worst, "counts": counts, "findings": [asdict(f) for f in findings]}
    return Judgement(found, 2 if worst == "error" else 0)


def examine(path: Path | None) -> list[Finding]:
    """All findings about this machine, and about the run or model folder `path`."""
    found = [f for look in MACHINE for f in _guarded("machine", look)]
    if path is not None:
        from mrp.doctor_run import look_at_run

        found += look_at_run(path)
    return found


def _guarded(area: str, look: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """The findings of `look`; whatever it stumbles over is one too."""
    try:
        return list(look())
    except Exception as error:  # a doctor that crashes finds nothing
        name = look.__name__.removeprefix("_")
        return [
            Finding(area, name, "error", f"{type(error).__name__}: {error}", "see what is installed, and report it")
        ]


def told(area: str, name: str, error: MrpError) -> list[Finding]:
    """An error as findings: one for each fault."""
    faults = error.faults if isinstance(error, ManyFaults) else [error]
    return [
        Finding(area, name, "error", f.what + (f" ({f.where})" if f.where else ""), f.fix) for f in faults if f.what
    ]


def table(findings: list[Finding]) -> list[str]:
    """The findings for people, in lines of at most 80 columns (paths are never broken)."""
    lines: list[str] = []
    for area in dict.fromkeys(f.area for f in findings):
        lines += [*([""] if lines else []), area]
        for finding in (f for f in findings if f.area == area):
            head = f"  {finding.level:8}{finding.name:{LABEL}}"
            lines += _wrapped(finding.what, head, " " * len(head))
            if finding.fix:
                lines += _wrapped(finding.fix, f"{'':10}{'  fix:':{LABEL}}", " " * len(head))
    counts = [f"{sum(f.level == level for f in findings)} {level}" for level in LEVELS]
    return [*lines, "", ", ".join(counts)]


def _wrapped(text: str, first: str, others: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=others, break_long_words=False, break_on_hyphens=False
    ) or [first.rstrip()]


# -- the machine ---------------------------------------------------------------------------------------------------


def _python() -> Iterator[Finding]:
    what = f"{platform.python_version()} on {platform.system()} {platform.machine()}, mrp {mrp.__version__}"
    yield Finding("machine", "python", "ok", what)


def _packages() -> Iterator[Finding]:
    """The core's packages and each extra's, against the ranges that mrp asks for."""
    from packaging.requirements import Requirement

    try:
        asked = [Requirement(line) for line in metadata.requires("mrp-llm") or []]
    except metadata.PackageNotFoundError:
        what = "mrp is not installed, so nobody knows which versions it wants"
        yield Finding("machine", "packages", "warning", what, "pip install -e . in its folder")
        return
    extras = sorted({str(r.marker).split("extra == ")[1].strip("'\"") for r in asked if "extra ==" in str(r.marker)})
    for extra in ["", *(e for e in extras if e not in OWN_EXTRAS)]:
        wanted = [r for r in asked if _belongs(r, extra)]
        installed = {r.name: _version(r.name) for r in wanted}
        missing = [name for name, version in installed.items() if not version]
        unfit = [f"{r.name} {installed[r.name]} (not {r.specifier})" for r in wanted if not _fits(r, installed[r.name])]
        name, install = (f"extra {extra}", f"mrp-llm[{extra}]") if extra else ("core packages", "mrp-llm")
        fix = f"pip install -U '{install}'"
        if unfit:
            yield Finding("machine", name, "error", f"versions that do not fit: {', '.join(unfit)}", fix)
        if missing and len(missing) == len(wanted):
            yield Finding("machine", name, "warning" if extra == "train" else "ok", "not installed", fix)
        elif missing:
            yield Finding("machine", name, "warning" if extra else "error", f"missing: {', '.join(missing)}", fix)
        elif not unfit:
            yield Finding("machine", name, "ok", ", ".join(f"{n} {v}" for n, v in sorted(installed.items())))


def _belongs(requirement: Any, extra: str) -> bool:
    """True if a package is wanted by `extra` ("": by the core), on this machine."""
    marker = requirement.marker
    if marker is None:
        return not extra
    return bool(marker.evaluate({"extra": extra})) and (not extra or not marker.evaluate({"extra": ""}))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _fits(requirement: Any, version: str) -> bool:
    return not version or requirement.specifier.contains(version, prereleases=True)


def _torch() -> Iterator[Finding]:
    """torch, and the GPUs that it sees."""
    cards = nvidia_cards()
    if importlib.util.find_spec("torch") is None:
        what = "not installed: nothing can be trained or played here"
        yield Finding("machine", "torch", "warning", what, "pip install 'mrp-llm[train]'")
        return
    try:
        import torch
    except (ImportError, OSError) as error:
        first = (str(error).splitlines() or [""])[0]
        fix = "pip install --force-reinstall torch"
        yield Finding("machine", "torch", "error", f"installed, but cannot be loaded: {first}", fix)
        return
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    if torch.version.hip:
        build = f"ROCm {torch.version.hip}"
    yield Finding("machine", "torch", "ok", f"{torch.__version__} ({build})")
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            yield _gpu(torch, number, cards)
        if importlib.util.find_spec("triton") is None:
            what = "not installed: chats and training on the GPU go without CUDA graphs and fused kernels, more slowly"
            yield Finding("machine", "triton", "warning", what, "pip install triton (on Windows: triton-windows)")
    elif cards and not torch.version.cuda:
        what = f"{'; '.join(cards)}: but this torch was built for the CPU alone"
        yield Finding("machine", "GPU", "warning", what, "pip install --force-reinstall torch (a CUDA build)")
    elif cards:
        what = f"{'; '.join(cards)}: but torch cannot use it; the driver may be too old for CUDA {torch.version.cuda}"
        yield Finding("machine", "GPU", "error", what, "update the driver, or check CUDA_VISIBLE_DEVICES")
    else:
        has_bf16 = _cpu_has_bf16()
        what = "none: training and play run on the CPU" + (", which computes bf16" if has_bf16 else ", in float32")
        yield Finding("machine", "GPU", "ok", what)


def _gpu(torch: Any, number: int, cards: list[str]) -> Finding:
    free, total = torch.cuda.mem_get_info(number)
    major, minor = torch.cuda.get_device_capability(number)
    driver = f", driver {cards[0].rpartition('driver ')[2]}" if cards else ""
    what = f"{torch.cuda.get_device_name(number)}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    what += f", compute {major}.{minor}{driver}"
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        fix = "set train.precision: fp32; for 4-bit training take a card of compute 8.0 or later"
        return Finding("machine", f"GPU {number}", "warning", f"{what}; no bf16", fix)
    if free < total / 2:
        fix = "see nvidia-smi for what else runs there"
        return Finding("machine", f"GPU {number}", "warning", f"{what}: more than half is taken", fix)
    return Finding("machine", f"GPU {number}", "ok", f"{what}, bf16")


def nvidia_cards() -> list[str]:
    """What nvidia-smi says: "NAME, driver VERSION" of each card; [] where there is none."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.rpartition(",") for line in done.stdout.splitlines() if "," in line]
    return [f"{name.strip()}, driver {driver.strip()}" for name, _, driver in rows]


def _cpu_has_bf16() -> bool:
    from mrp.models.load import _cpu_has_bf16 as has_bf16

    return has_bf16()


def _memory() -> Iterator[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    what = f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free, {os.cpu_count()} CPU cores"
    little = memory.available < LITTLE_MEMORY
    fix = "close other programs" if little else ""
    yield Finding("machine", "memory", "warning" if little else "ok", what, fix)


def _disk() -> Iterator[Finding]:
    yield disk_finding("machine", "cache", cache_folder(), "set MRP_HOME to a folder on another disk")


def disk_finding(area: str, name: str, folder: Path, other: str) -> Finding:
    """How much room there is where `folder` lies (or will lie)."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    what = f"{size_text(free)} free in {folder}"
    if not os.access(place, os.W_OK):
        return Finding(area, name, "error", f"{place} cannot be written", other)
    little = free < LITTLE_DISK
    return Finding(area, name, "warning" if little else "ok", what, f"free some space, or {other}" if little else "")


MACHINE: tuple[Callable[[], Iterator[Finding]], ...] = (_python, _packages, _torch, _memory, _disk)
