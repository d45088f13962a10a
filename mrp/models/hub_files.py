"""The files of a model on a hub, and which of them make a base model.

    chosen = choose_files(listing)      # config, tokenizer, licence; then the weights, safetensors before anything else

Never chosen: code (`.py`), pickles where safetensors exist, other frameworks' weights, anything in a subfolder. The
clients (`pull_hf.py`, `pull_modelscope.py`) make listings, `pull_hub.py` fetches what is chosen.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Protocol

from mrp.errors import InputError, MrpError, raise_all
from mrp.files import fingerprint

SAFETENSORS, SAFETENSORS_INDEX = "model.safetensors", "model.safetensors.index.json"
BIN, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
SMALL_NAMES = {
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    *("chat_template.jinja", "chat_template.json", "README.md", "USE_POLICY.md"),
}
PAPERS = re.compile(r"(LICEN[CS]E|NOTICE|COPYING)[\w .-]*", re.IGNORECASE)  # never code: see `_is_small`
SHARD = re.compile(r"(model|pytorch_model)-\d+-of-\d+\.(safetensors|bin)")
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][\w.+ -]*", re.ASCII)  # no folders, nothing hidden, a file on every system


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub lists it. `sha256` is of its bytes; `git_sha1` is git's own hash of small ones (hex)."""

    path: str
    nbytes: int
    sha256: str | None = None
    git_sha1: str | None = None

    def key(self, commit: str) -> str:
        """Tells one content from another; with a hash, whatever commit it came with. A download is kept under it."""
        return self.sha256 or self.git_sha1 or fingerprint([self.path, self.nbytes, commit])


@dataclass(frozen=True)
class Listing:
    """A repository at a commit."""

    source: str  # "hf" or "modelscope"
    repo: str
    revision: str  # what files are asked for by
    commit: str
    license: str | None
    files: tuple[RemoteFile, ...]

    @property
    def where(self) -> str:
        return f"{self.source}:{self.repo}@{self.commit[:12]}"


class Tell(Protocol):
    """Told the bytes that came (negative: that are lost again); may raise to stop a download."""

    def __call__(self, nbytes: int) -> None: ...


class Hub(Protocol):
    """A hub through its own client. Both methods raise `MrpError`s; see `UnreachableError` and `BrokenError`."""

    source: str
    part_ending: str  # of a file that is not whole yet

    def look(self, repo: str, revision: str | None) -> Listing: ...

    def fetch(self, listing: Listing, file: RemoteFile, place: Any, tell: Tell) -> None: ...


class UnreachableError(Exception):
    """The hub cannot be reached at all; never leaves `pull.py`."""


class BrokenError(Exception):
    """A request that may go well when it is made again, after `wait_s` seconds where the hub says so."""

    def __init__(self, what: str, wait_s: float | None = None) -> None:
        self.wait_s = wait_s
        super().__init__(what)


class WrongHashError(Exception):
    """All bytes came, and they are not those of the file."""


@dataclass(frozen=True)
class Chosen:
    """The files of a base model: `kind` of the weights is "safetensors", "bin" or "gguf"."""

    kind: str
    small: tuple[RemoteFile, ...]
    weights: tuple[RemoteFile, ...]
    index: str | None = None  # the small file that names the weights

    @property
    def files(self) -> tuple[RemoteFile, ...]:
        return self.small + self.weights


def choose_files(listing: Listing, gguf: str | None = None) -> Chosen:
    """What to take of a repository; `gguf` names one of several GGUF files.

    Raises `InputError` for a repository that holds no model that could serve as base.
    """
    files = {file.path: file for file in listing.files if PLAIN_NAME.fullmatch(file.path)}
    small = tuple(file for path, file in sorted(files.items()) if _is_small(path))
    has_other = any(name in files for name in (SAFETENSORS, SAFETENSORS_INDEX, BIN, BIN_INDEX))
    if gguf or (not has_other and any(path.endswith(".gguf") for path in files)):
        papers = tuple(file for file in small if PAPERS.fullmatch(file.path) or file.path == "README.md")
        return Chosen("gguf", papers, (_choose_gguf(listing, files, gguf),))
    if "config.json" not in files:
        what, fix = "the repository has no config.json", "choose a model in the transformers format"
        if "adapter_config.json" in files:
            what, fix = "this is an adapter, not a whole model", "pull the base model that it was trained on"
        raise InputError(what, listing.where, fix)
    for kind, single, index in (("safetensors", SAFETENSORS, SAFETENSORS_INDEX), ("bin", BIN, BIN_INDEX)):
        if index in files:
            ending = single.rpartition(".")[2]
            shards = [file for path, file in sorted(files.items()) if SHARD.fullmatch(path) and path.endswith(ending)]
            return Chosen(kind, (*small, files[index]), tuple(shards), index)
        if single in files:
            return Chosen(kind, small, (files[single],))
    shown = ", ".join(sorted(path for path in files if not _is_small(path))[:8])
    what = f"no weights that could be read: neither {SAFETENSORS} nor its index, nor {BIN}"
    raise InputError(what, listing.where, f"choose another model; this one has {shown}")


def shards_of(chosen: Chosen, index: Any, listing: Listing) -> tuple[RemoteFile, ...]:
    """The weights that the fetched index (its JSON) names. `InputError` naming each one that the hub does not have."""
    named = index.get("weight_map") if isinstance(index, dict) else None
    where = f"{listing.where}: {chosen.index}"
    if not isinstance(named, dict) or not named:
        raise InputError("the index of the weights names no shard", where, "choose another model or revision")
    files = {file.path: file for file in listing.files if PLAIN_NAME.fullmatch(file.path)}
    faults: list[MrpError] = []
    shards: list[RemoteFile] = []
    for name in sorted({str(value) for value in named.values()}):
        if name in files and name.endswith((".safetensors", ".bin")):
            shards.append(files[name])
        else:
            what = f"the index names {name}, which the repository does not have"
            faults.append(InputError(what, where, "choose another revision, or tell the model's owner"))
    raise_all(f"{listing.where} is not whole", faults)
    return tuple(shards)


def _is_small(path: str) -> bool:
    return path in SMALL_NAMES or bool(PAPERS.fullmatch(path) and path.rpartition(".")[2] not in ("py", "safetensors"))


def _choose_gguf(listing: Listing, files: dict[str, RemoteFile], name: str | None) -> RemoteFile:
    there = sorted(path for path in files if path.endswith(".gguf"))
    if name is None and len(there) == 1:
        return files[there[0]]
    if name in there:
        return files[name]
    what = f"no {name} in the repository" if name else f"the repository has {len(there)} GGUF files"
    shown = f"{', '.join(there[:12])}{' ...' if len(there) > 12 else ''}" if there else "none"
    prefix = "hf" if listing.source == "hf" else "ms"
    raise InputError(what, listing.where, f"name one: {prefix}:{listing.repo}/FILE.gguf; there are {shown}")
