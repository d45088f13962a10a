"""A GGUF file, written tensor by tensor: no more than a block of rows lies in memory.

    write_gguf(path, "llama", fields, tensors, "q8_0")

The `gguf` package packs the head and quantises; which tensors there are, and in which order their rows lie, is said
by gguf_layout.py. K-quants are made from such a file by llama.cpp's own library (`k_quantise`), where it is installed.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mrp.errors import InputError, MrpError, SetupError, need_extra
from mrp.models.gguf_layout import Planned
from mrp.models.shards import PIECE_BYTES, StoredTensor, read_rows

ALIGNMENT = 32
BLOCK = 32  # numbers that q8_0 and q4_0 quantise together; rows of another length stay in f16
# llama_ftype of llama.h: what programs show as the file's type.
FILE_TYPES = {"f16": 1, "q4_0": 2, "q8_0": 7, "q4_k_m": 15, "bf16": 32}
K_QUANTS = ("q4_k_m",)
QUANTISATION_VERSION = 2
KEPT_FINER = ("token_embd.weight", "output.weight")  # in q8_0 where the rest is q4_0: every token passes through them


def stored_type(name: str, shape: Sequence[int], quant: str) -> str:
    """In which numbers a tensor is stored: f32 for norms and biases, else as asked, or the nearest that can be."""
    if len(shape) == 1:
        return "f32"
    if quant in ("q8_0", "q4_0") and shape[-1] % BLOCK:
        return "f16"
    return "q8_0" if quant == "q4_0" and name in KEPT_FINER else quant


def tensor_bytes(shape: Sequence[int], kind: str) -> int:
    """How many bytes a tensor takes in the file."""
    per_block = {"f32": 128, "f16": 64, "bf16": 64, "q8_0": 34, "q4_0": 18}[kind]
    count = int(np.prod(shape))
    return count * per_block // BLOCK


def write_gguf(
    path: Path,
    architecture: str,
    fields: dict[str, Any],
    tensors: Sequence[Planned],
    quant: str,
    rope_factors: Sequence[float] = (),
    tick: Callable[[int], None] = lambda _: None,
) -> dict[str, int]:
    """Write the file; returns how many tensors there are of each type.

    `fields` are the metadata by key: text, whole numbers, fractions, truth values, or lists of one of them.
    `tick` is told the bytes written so far. Raises `InputError` for NaN, and for a number that f16 cannot hold.
    """
    kinds = {t.name: stored_type(t.name, t.source.shape, quant) for t in tensors}
    constants = {"rope_freqs.weight": np.asarray(rope_factors, np.float32)} if len(rope_factors) else {}
    shapes = {t.name: (t.source.shape, kinds[t.name]) for t in tensors}
    _write_head(path, architecture, fields, shapes | {n: (v.shape, "f32") for n, v in constants.items()})
    total = 0
    with path.open("ab") as file:
        _pad(file)
        for tensor in tensors:
            for piece in _pieces(tensor, kinds[tensor.name]):
                file.write(piece)
                total += len(piece)
                tick(total)
            _pad(file)
        for values in constants.values():
            file.write(values.astype("<f4").tobytes())
            _pad(file)
        file.flush()
        os.fsync(file.fileno())
    used = [*kinds.values(), *("f32" for _ in constants)]
    return {kind: used.count(kind) for kind in sorted(set(used))}


def write_arrays(path: Path, architecture: str, fields: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write a small GGUF file of float32 arrays in memory."""
    _write_head(path, architecture, fields, {name: (value.shape, "f32") for name, value in arrays.items()})
    with path.open("ab") as file:
        _pad(file)
        for value in arrays.values():
            file.write(np.ascontiguousarray(value, "<f4").tobytes())
            _pad(file)


def _write_head(
    path: Path, architecture: str, fields: dict[str, Any], shapes: Mapping[str, tuple[Sequence[int], str]]
) -> None:
    gguf = _gguf()
    writer = gguf.GGUFWriter(None, architecture)  # which says general.architecture itself
    for key, value in fields.items():
        _add(writer, key, value)
    for name, (shape, kind) in shapes.items():
        raw = gguf.GGMLQuantizationType[kind.upper()]
        writer.add_tensor_info(name, shape, np.dtype(np.float32), tensor_bytes(shape, kind), raw_dtype=raw)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def _add(writer: Any, key: str, value: Any) -> None:
    """One piece of metadata, in the type that llama.cpp reads: whole numbers are uint32, those in lists int32."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _pad(file: Any) -> None:
    file.write(b"\0" * (-file.tell() % ALIGNMENT))


# -- numbers -------------------------------------------------------------------------------------------------------


def _pieces(planned: Planned, kind: str) -> Iterator[bytes]:
    """The bytes of a tensor as the file has them, some rows at a time."""
    tensor = as_matrix(planned.source)
    rows, columns = tensor.shape
    step = max(1, PIECE_BYTES // (4 * max(columns, 1)))
    if planned.paired_heads:
        head_rows = rows // planned.paired_heads
        step = max(1, step // head_rows) * head_rows  # whole heads, whose rows change places among themselves
    for first in range(0, rows, step):
        block = read_rows(tensor, first, min(first + step, rows))
        if planned.paired_heads:
            block = in_pairs(block, len(block) // head_rows)
        yield _packed(block, kind, planned.source)


def as_matrix(tensor: StoredTensor) -> StoredTensor:
    """A tensor seen as rows: a vector is one number a row, so that its rows can change places too."""
    return tensor if len(tensor.shape) == 2 else replace(tensor, shape=(tensor.shape[0], 1))


def in_pairs(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """(heads * d, columns) with each head's rows from halves into pairs: 0, d/2, 1, d/2 + 1, ..."""
    return rows.view(heads, 2, -1, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


def _packed(block: torch.Tensor, kind: str, source: StoredTensor) -> bytes:
    if not torch.isfinite(block).all():
        raise InputError(f"{source.name} holds NaN or infinity", source.where, "copy the model anew, or train it again")
    if kind == "bf16":
        return bytes(block.to(torch.bfloat16).contiguous().view(torch.int16).numpy().astype("<i2").tobytes())
    if kind == "f16":
        narrow = block.to(torch.float16)
        if not torch.isfinite(narrow).all():
            what = f"{source.name} holds numbers that are too large for f16"
            raise InputError(what, source.where, "export with --quant bf16")
        return bytes(narrow.contiguous().numpy().astype("<f2").tobytes())
    values = block.float().contiguous().numpy()
    if kind == "f32":
        return bytes(values.astype("<f4").tobytes())
    gguf = _gguf()
    packed = gguf.quantize(values, gguf.GGMLQuantizationType[kind.upper()])
    return bytes(packed.tobytes())


def _gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise need_extra("train", "gguf") from error
    return gguf


# -- K-quants ------------------------------------------------------------------------------------------------------


def llama_cpp_library() -> Any:
    """llama.cpp's Python binding; `SetupError` where it is not installed."""
    try:
        import llama_cpp  # type: ignore[import-not-found]
    except ImportError as error:
        fix = "pip install llama-cpp-python (it builds for about ten minutes), or take --quant q8_0 or q4_0"
        raise SetupError("K-quants are made by llama.cpp's own library, which is not installed", "", fix) from error
    return llama_cpp


@functools.cache
def _silence(library: Any) -> Any:
    """A callback that swallows llama.cpp's log lines; kept, since the library keeps a pointer to it."""
    return library.llama_log_callback(lambda *_: None)


def k_quantise(source: Path, out: Path, quant: str) -> None:
    """Make the K-quant file `out` from the f16 file `source`, with llama.cpp."""
    library = llama_cpp_library()
    params = library.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[quant]
    library.llama_log_set(_silence(library), None)  # it would print a line for each tensor
    failed = library.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(params))
    if failed or not out.is_file():
        fix = "take --quant q8_0 or q4_0; if the model is a usual one, please report it"
        raise MrpError(f"llama.cpp could not quantise the model to {quant} (it returned {failed})", str(source), fix)
