"""Weights in torch's own `.bin` files, named and placed like those of safetensors files; no code of a pickle runs.

    weights = read_bin_weights(Path("internlm2-chat-7b"))     # names, shapes and places; no numbers yet

Such a file is a zip of a pickle (which tensor lies where) and the plain numbers. The pickle is read by torch's
restricted reader (`weights_only`), which refuses everything but tensors and plain containers; the numbers stay in the
file until `shards.raw_pieces` or another reader takes them by their place, so that a model of any length fits.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mrp.errors import InputError, MrpError, raise_all
from mrp.files import read_json
from mrp.models.shards import StoredTensor, tensors_of

BIN, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
DTYPE_WORDS = {
    **{torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64", torch.int64: "I64"},
    **{torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL"},
}
BROKEN = (OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError, EOFError)


def read_bin_weights(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a folder with pytorch_model.bin (or its index and shards), in the order of its files.

    Raises `InputError` with every fault: a pickle that wants to run code, broken or missing files, a tensor that is
    in two files, or in the index alone.
    """
    named: dict[str, str] = {}
    if (folder / BIN_INDEX).is_file():
        named = _weight_map(folder / BIN_INDEX)
    paths = [folder / name for name in sorted(set(named.values()))] or [folder / BIN]
    found, faults = tensors_of(paths, read_bin_header)
    if not faults:
        for name in sorted(named.keys() - found.keys()):
            what = f"{name} is in the index, and in none of its files"
            faults.append(InputError(what, str(folder / BIN_INDEX), "copy the files anew"))
    raise_all(f"the weights in {folder} cannot be read", faults)
    return found


def _weight_map(index: Path) -> dict[str, str]:
    value = read_json(index)
    named = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
        raise InputError("the index of the weights names no shard", f"{index}: weight_map", "copy the file anew")
    return named


def read_bin_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one `.bin` file, in the order of their bytes. `InputError` if it is not one, or holds code."""
    if not path.is_file():
        raise InputError(f"no such file: {path.name}", str(path), "copy the missing file")
    with path.open("rb") as file:
        start = file.read(8)
    if start == b"version ":
        raise InputError(f"{path.name} is a Git LFS pointer, not the weights", str(path), "git lfs pull")
    if start.startswith(b"\x80"):
        raise _refused(path, "it is nothing but a pickle")
    if not start.startswith(b"PK"):
        fix = "copy the file anew; if it was saved by a torch older than 1.6, save it once more with a newer one"
        raise InputError(f"{path.name} is not a file of torch's zip form", str(path), fix)
    tensors = [_stored(name, value, path) for name, value in _unpickled(path).items()]
    faults = [fault for tensor in tensors for fault in _faults_of(tensor)]
    raise_all(f"{path.name} is broken", faults)
    return {t.name: t for t in sorted(tensors, key=lambda t: t.start)}


def _unpickled(path: Path) -> dict[str, Any]:
    """What the pickle says, with tensors that have shapes and places but no numbers."""
    try:
        with zipfile.ZipFile(path) as archive:  # compressed numbers have no place to be read from
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise InputError(f"{path.name} is compressed", str(path), "save the model once more with torch.save")
            order = next((name for name in archive.namelist() if name.endswith("/byteorder")), "")
            if order and archive.read(order) != b"little":
                what = f"{path.name} was written by a machine that turns its bytes around"
                raise InputError(what, str(path), "save the model once more on another machine")
        value = torch.load(path, map_location="meta", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        raise _refused(path, f"it wants {wanted[1]}" if wanted else _first_line(error)) from error
    except (*BROKEN, zipfile.BadZipFile) as error:
        what = f"{path.name} is cut off, or not a file of torch"
        raise InputError(what, str(path), "copy the file anew") from error
    if isinstance(value, dict) and isinstance(value.get("state_dict"), dict):
        value = value["state_dict"]
    if not isinstance(value, dict) or not all(isinstance(v, torch.Tensor) for v in value.values()):
        what = f"{path.name} holds something else than named tensors"
        raise InputError(what, str(path), "take the file of weights of a model")
    return {str(name): tensor for name, tensor in value.items()}


def _refused(path: Path, reason: str) -> InputError:
    """The fault of a pickle that the restricted reader does not take."""
    return InputError(
        f"{path.name} is a pickle that holds more than tensors, and was not run: {reason}",
        str(path),
        "do not use this file unless you know who made it and why; take the safetensors form of the model",
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _stored(name: str, tensor: torch.Tensor, path: Path) -> StoredTensor:
    storage = tensor.untyped_storage()
    offset = getattr(storage, "_checkpoint_offset", None)
    if offset is None or tensor.dtype not in DTYPE_WORDS or not tensor.is_contiguous():
        what = f"{name} cannot be read piece by piece ({tensor.dtype}, strides {tensor.stride()})"
        raise InputError(what, f"{path}: {name}", "load the model with transformers and save it with save_pretrained")
    start = int(offset) + tensor.storage_offset() * tensor.element_size()
    nbytes = tensor.numel() * tensor.element_size()
    return StoredTensor(name, DTYPE_WORDS[tensor.dtype], tuple(tensor.shape), path, start, nbytes)


def _faults_of(tensor: StoredTensor) -> Iterator[MrpError]:
    if tensor.start + tensor.nbytes > tensor.path.stat().st_size:
        yield InputError(f"the file is cut off within {tensor.name}", tensor.where, "copy the file anew")
