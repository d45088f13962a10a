"""The weights of a model folder as they lie in its safetensors files, read and written piece by piece.

    weights = read_weights(Path("base"))                              # names, shapes and places; no numbers yet
    shards = plan_shards(weights.values(), shard_bytes("2GB"))
    write_shards(folder, shards, lambda tensor: raw_pieces(tensor))   # a copy in other shards

No model ever lies in memory whole: a piece has at most `PIECE_BYTES`. The format
(https://huggingface.co/docs/safetensors): eight bytes with the length of a JSON header, the header, the numbers.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mrp.errors import InputError, MrpError, raise_all
from mrp.files import read_json, write_json
from mrp.models.bases import MAX_HEADER_BYTES
from mrp.models.page_cache import read_ahead

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PIECE_BYTES = 4 * 2**20  # what fits a core's cache is added, rounded and measured fastest

FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}  # what can be added to
ITEM_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}

Piece = bytes | memoryview


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: `dtype` in the format's own words ("BF16"), `nbytes` bytes from `start` on."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    start: int
    nbytes: int

    @property
    def torch_dtype(self) -> torch.dtype:
        return FLOATS[self.dtype]

    @property
    def where(self) -> str:
        return f"{self.path}: {self.name}"


@dataclass(frozen=True)
class Shard:
    """A file to be written."""

    name: str
    tensors: tuple[StoredTensor, ...]

    @property
    def data_bytes(self) -> int:
        return sum(t.nbytes for t in self.tensors)


# -- reading -------------------------------------------------------------------------------------------------------


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file, in the order of their bytes. `InputError` if it is not a whole safetensors file."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if 0 < length < MAX_HEADER_BYTES else None
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}  # type: ignore[union-attr]
        tensors = [_stored(name, entry, path, 8 + length) for name, entry in entries.items()]
    except FileNotFoundError:
        raise InputError(f"no such file: {path.name}", str(path), "copy the missing file") from None
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"{path.name} is not a safetensors file", str(path), "copy the file anew") from error
    faults = [fault for tensor in tensors for fault in _faults_of(tensor, path.stat().st_size)]
    raise_all(f"{path.name} is broken", faults)
    return {t.name: t for t in sorted(tensors, key=lambda t: t.start)}


def _stored(name: str, entry: dict[str, Any], path: Path, data_start: int) -> StoredTensor:
    begin, end = entry["data_offsets"]
    shape = tuple(int(n) for n in entry["shape"])
    return StoredTensor(name, str(entry["dtype"]), shape, path, data_start + begin, end - begin)


def _faults_of(tensor: StoredTensor, file_bytes: int) -> Iterator[MrpError]:
    count = 1
    for n in tensor.shape:
        count *= n
    if tensor.dtype in ITEM_BYTES and count * ITEM_BYTES[tensor.dtype] != tensor.nbytes:
        what = f"{tensor.name} has {tensor.nbytes:,} bytes, which do not fit {tensor.dtype} {list(tensor.shape)}"
        yield InputError(what, tensor.where, "copy the file anew")
    elif tensor.start + tensor.nbytes > file_bytes:
        yield InputError(f"the file is cut off within {tensor.name}", tensor.where, "copy the file anew")


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights of a model folder: those of its index, else the single one."""
    if (folder / INDEX).is_file():
        return [folder / name for name in sorted(set(read_json(folder / INDEX)["weight_map"].values()))]
    return [folder / SINGLE]


def read_weights(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a model folder by name, in the order of its files.

    Raises `InputError` with every fault: broken files, a tensor in two of them, one that the index alone knows.
    """
    found, faults = tensors_of(weight_files(folder), read_header)
    if (folder / INDEX).is_file():
        for name in sorted(read_json(folder / INDEX)["weight_map"].keys() - found.keys()):
            what = f"{name} is in the index, and in none of its files"
            faults.append(InputError(what, str(folder / INDEX), "copy the files anew"))
    raise_all(f"the weights in {folder} cannot be read", faults)
    return found


def tensors_of(
    paths: Iterable[Path], read: Callable[[Path], dict[str, StoredTensor]]
) -> tuple[dict[str, StoredTensor], list[MrpError]]:
    """The tensors of several files by name, and every fault: files that `read` refuses, a tensor in two of them."""
    found: dict[str, StoredTensor] = {}
    faults: list[MrpError] = []
    for path in paths:
        try:
            tensors = read(path)
        except InputError as error:
            faults.append(error)
            continue
        for name in sorted(found.keys() & tensors.keys()):
            faults.append(InputError(f"{name} is also in {found[name].path.name}", str(path), "copy the files anew"))
        found.update(tensors)
    return found, faults


def raw_pieces(tensor: StoredTensor) -> Iterator[bytes]:
    """The bytes of a tensor, whatever its numbers are."""
    with tensor.path.open("rb") as file:
        file.seek(tensor.start)
        left = tensor.nbytes
        while left:
            piece = file.read(min(left, PIECE_BYTES))
            if not piece:
                raise InputError(f"the file is cut off within {tensor.name}", tensor.where, "copy the file anew")
            left -= len(piece)
            yield piece


def read_rows(tensor: StoredTensor, first: int, end: int, into: torch.Tensor | None = None) -> torch.Tensor:
    """Rows `first` to `end` of a matrix as stored; a vector counts as a matrix of one column. `into` is memory of the
    same shape and format to read them to."""
    columns = columns_of(tensor)
    row_bytes = columns * ITEM_BYTES[tensor.dtype]
    data = memoryview(bytearray((end - first) * row_bytes)) if into is None else as_piece(into)
    with tensor.path.open("rb", buffering=0) as file:
        file.seek(tensor.start + first * row_bytes)
        done = 0
        while count := file.readinto(data[done:]):
            done += count
    if done != len(data):
        raise InputError(f"the file is cut off within {tensor.name}", tensor.where, "copy the file anew")
    return torch.frombuffer(data, dtype=tensor.torch_dtype).view(end - first, columns) if into is None else into


def read_matrix(tensor: StoredTensor) -> torch.Tensor:
    """A whole matrix in float32; meant for the small ones of an adapter."""
    return read_rows(tensor, 0, tensor.shape[0]).float()


def columns_of(tensor: StoredTensor) -> int:
    """How many numbers a row has."""
    return tensor.shape[1] if len(tensor.shape) == 2 else 1


def has_bad_number(tensor: StoredTensor) -> bool:
    """True if a matrix or vector holds NaN or infinity."""
    return any(not torch.isfinite(read_rows(tensor, *rows)).all() for rows in row_blocks(tensor))


def row_blocks(tensor: StoredTensor) -> Iterator[tuple[int, int]]:
    """(first, end) of stretches of rows that take at most `PIECE_BYTES` in float32 (one row at least)."""
    rows = tensor.shape[0]
    step = max(1, PIECE_BYTES // (4 * max(columns_of(tensor), 1)))
    for first in range(0, rows, step):
        yield first, min(first + step, rows)


def same_bytes(one: StoredTensor, other: StoredTensor) -> bool:
    """True if both hold the same numbers in the same form."""
    if (one.dtype, one.shape, one.nbytes) != (other.dtype, other.shape, other.nbytes):
        return False
    return all(a == b for a, b in zip(raw_pieces(one), raw_pieces(other), strict=True))


# -- writing -------------------------------------------------------------------------------------------------------


def shard_bytes(text: str, where: str = "merge.max_shard_size") -> int:
    """The number of bytes in "2GB", "500 MB" (powers of 1000) or "1.5GiB" (of 1024); `InputError` for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKMGT]?i?)B", text.strip())
    unit = found[2].replace("K", "k") if found else ""
    unit = {"ki": "Ki"}.get(unit, unit)
    if not found or unit not in UNITS or int(float(found[1]) * UNITS[unit]) < 1:
        raise InputError(f"{text!r} is not a size of a file", where, "write it like 2GB, 500MB or 1.5GiB")
    return int(float(found[1]) * UNITS[unit])


def plan_shards(tensors: Iterable[StoredTensor], max_bytes: int) -> list[Shard]:
    """The tensors, in their order, in files of at most `max_bytes` (header included).

    A tensor that is larger by itself gets a file of its own: tensors are never split.
    """
    groups: list[list[StoredTensor]] = []
    used = 0
    for tensor in tensors:
        needed = tensor.nbytes + len(_entry(tensor, 10**15))
        if not groups or used + needed > max_bytes:
            groups.append([])
            used = 64  # length, metadata, padding
        groups[-1].append(tensor)
        used += needed
    # Wide numbers first, so that each tensor starts at a multiple of its item's bytes.
    ordered = [tuple(sorted(group, key=lambda t: -ITEM_BYTES.get(t.dtype, 1))) for group in groups]
    if len(ordered) == 1:
        return [Shard(SINGLE, ordered[0])]
    return [Shard(f"model-{k:05d}-of-{len(ordered):05d}.safetensors", group) for k, group in enumerate(ordered, 1)]


def write_shards(
    folder: Path,
    shards: list[Shard],
    pieces: Callable[[StoredTensor], Iterable[Piece]],
    tick: Callable[[int], None] = lambda _: None,
) -> None:
    """Write the files, and the index where there are several; `pieces` gives each tensor's new bytes in order.

    Shapes and number formats stay as they are. `tick` is told the bytes written so far.
    """
    total = 0
    with ThreadPoolExecutor(1) as disk:  # which takes in one file while the next is computed
        waiting: Future[None] | None = None
        for shard in shards:
            with (folder / shard.name).open("wb") as file:
                file.write(header_bytes(shard))
                for tensor, following in zip(shard.tensors, (*shard.tensors[1:], None), strict=True):
                    if following:
                        read_ahead(following.path, following.start, following.nbytes)
                    written = 0
                    for piece in pieces(tensor):
                        file.write(piece)
                        written += len(piece)
                        tick(total + written)
                    assert written == tensor.nbytes, f"{tensor.name}: {written} of {tensor.nbytes} bytes"
                    total += written
            if waiting:
                waiting.result()
            waiting = disk.submit(to_disk, folder / shard.name)
        if waiting:
            waiting.result()
    write_index(folder, shards)


def write_index(folder: Path, shards: list[Shard]) -> None:
    """Write which file holds which tensor, where there are several."""
    if len(shards) > 1:
        places = {t.name: shard.name for shard in shards for t in shard.tensors}
        total = sum(shard.data_bytes for shard in shards)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        write_json(folder / INDEX, index)


def to_disk(path: Path) -> None:
    """Wait until what was written to a file is on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def header_bytes(shard: Shard) -> bytes:
    """What a file begins with: the length of its table, and the table."""
    entries = ['"__metadata__":{"format":"pt"}']
    at = 0
    for tensor in shard.tensors:
        entries.append(_entry(tensor, at))
        at += tensor.nbytes
    text = ("{" + ",".join(entries) + "}").encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _entry(tensor: StoredTensor, at: int) -> str:
    value = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [at, at + tensor.nbytes]}
    return f"{json.dumps(tensor.name)}:{json.dumps(value, separators=(',', ':'))}"


def as_piece(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor in memory."""
    return memoryview(tensor.contiguous().view(torch.uint8).numpy()).cast("B")
