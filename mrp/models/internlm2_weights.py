"""The weights of an InternLM2 or of a Llama, held against its config, and laid out as those of the other.

    weights = read_model_weights(src)                           # safetensors or .bin; names and places, no numbers
    targets = lay_out(weights, sizes, src, to_llama=True)       # each new tensor as stretches of bytes of old ones
    write_shards(out, shards, Reading(targets).pieces)

`internlm2.py` makes whole folders of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mrp.errors import InputError, MrpError, raise_all
from mrp.models.bases import check_weight_files
from mrp.models.bin_files import BIN, BIN_INDEX, read_bin_weights
from mrp.models.internlm2_config import Sizes
from mrp.models.internlm2_layout import llama_modules
from mrp.models.shards import FLOATS, INDEX, ITEM_BYTES, PIECE_BYTES, SINGLE, StoredTensor, read_weights, same_bytes

COMPUTED = "rotary_emb.inv_freq"  # a table that old files keep; every reader makes it anew
EMBEDDING = ("model.tok_embeddings.weight", "model.embed_tokens.weight")  # InternLM2's, Llama's
OUTPUT = ("output.weight", "lm_head.weight")

Span = tuple[StoredTensor, int, int]  # bytes `begin` to `end` of a stored tensor


@dataclass(frozen=True)
class Target:
    """A tensor to be written, and the stretches of the source that it consists of, in order."""

    tensor: StoredTensor
    spans: tuple[Span, ...]


def read_model_weights(src: Path) -> dict[str, StoredTensor]:
    """Every tensor of a model folder by name, from safetensors, else from torch's `.bin` files."""
    has_safetensors = (src / INDEX).is_file() or (src / SINGLE).is_file()
    if not has_safetensors and ((src / BIN_INDEX).is_file() or (src / BIN).is_file()):
        return read_bin_weights(src)
    check_weight_files(src)
    return read_weights(src)


def lay_out(weights: dict[str, StoredTensor], sizes: Sizes, src: Path, to_llama: bool) -> dict[str, Target]:
    """Every tensor of the result by name, in the order of the source. `InputError` with every fault of the source.

    The tables of rotary positions that some old files keep are left out, and of a tied model the second copy of the
    embedding: whoever reads the result makes them anew.
    """
    weights = {name: tensor for name, tensor in weights.items() if not name.endswith(COMPUTED)}
    if sizes.is_tied:
        weights = _without_copy(weights, src)
    expected = sizes.internlm2_shapes() if to_llama else sizes.llama_shapes()
    faults = [*_name_faults(weights, expected, src), *_tensor_faults(weights, expected, src)]
    raise_all(f"the weights in {src} do not fit its config.json", faults)
    targets: dict[str, Target] = {}
    for own in sizes.internlm2_shapes():
        module, _, leaf = own.rpartition(".")
        llama = [f"{target}.{leaf}" for target in llama_modules(module)]
        make = _split if to_llama else _joined
        targets |= {target.tensor.name: target for target in make(own, llama, weights, sizes)}
    places = {name: k for k, name in enumerate(weights)}
    return dict(sorted(targets.items(), key=lambda item: places[item[1].spans[0][0].name]))


# -- faults of the source ----------------------------------------------------------------------------------------------


def _without_copy(weights: dict[str, StoredTensor], src: Path) -> dict[str, StoredTensor]:
    """The weights of a tied model without the copy of the embedding that some files keep as output."""
    kept = dict(weights)
    for output, embedding in zip(OUTPUT, EMBEDDING, strict=True):
        if output in kept and embedding in kept:
            if not same_bytes(kept[output], kept[embedding]):
                what = f"config.json says that {output} is {embedding}, and the two differ"
                fix = "set tie_word_embeddings to false there if the model was trained so"
                raise InputError(what, f"{src / 'config.json'}: tie_word_embeddings", fix)
            del kept[output]
    return kept


def _name_faults(
    weights: dict[str, StoredTensor], expected: dict[str, tuple[int, ...]], src: Path
) -> Iterator[MrpError]:
    for name in sorted(expected.keys() - weights.keys()):
        yield InputError(f"{name} is missing", str(src), "copy the files of weights anew, with their index")
    for name in sorted(weights.keys() - expected.keys()):
        fix = "this is no plain InternLM2 or Llama, or config.json belongs to another model"
        yield InputError(f"{name} is a tensor that the model does not have", weights[name].where, fix)


def _tensor_faults(
    weights: dict[str, StoredTensor], expected: dict[str, tuple[int, ...]], src: Path
) -> Iterator[MrpError]:
    for name in sorted(weights.keys() & expected.keys()):
        tensor, shape = weights[name], expected[name]
        if name in (*EMBEDDING, *OUTPUT) and tensor.shape[1:] == shape[1:] and tensor.shape != shape:
            what = f"{name} has {tensor.shape[0]} rows, and config.json says vocab_size {shape[0]}"
            fix = "take config.json and weights of one and the same model; if it was resized, put its vocab_size there"
            yield InputError(what, f"{tensor.where}; {src / 'config.json'}: vocab_size", fix)
        elif tensor.shape != shape:
            what = f"{name} has the shape {list(tensor.shape)}; by config.json it is {list(shape)}"
            yield InputError(what, tensor.where, "take config.json and weights of one and the same model")
        elif tensor.dtype not in FLOATS:
            fix = "take the model in bfloat16, float16 or float32: other numbers cannot be laid out anew"
            yield InputError(f"{name} is stored as {tensor.dtype}", tensor.where, fix)


# -- names and bytes ---------------------------------------------------------------------------------------------------


def _split(own: str, llama: list[str], weights: dict[str, StoredTensor], sizes: Sizes) -> Iterator[Target]:
    """Llama's tensors out of InternLM2's tensor `own`."""
    source = weights[own]
    if len(llama) == 1:
        yield _target(llama[0], source.shape, [(source, 0, source.nbytes)])
        return
    row_bytes = source.nbytes // source.shape[0]
    spans: list[list[Span]] = [[], [], []]
    for part, first, end in sizes.heads.stretches():
        spans[part].append((source, first * row_bytes, end * row_bytes))
    for name, rows, own_spans in zip(llama, sizes.heads.rows, spans, strict=True):
        yield _target(name, (rows, *source.shape[1:]), own_spans)


def _joined(own: str, llama: list[str], weights: dict[str, StoredTensor], sizes: Sizes) -> Iterator[Target]:
    """InternLM2's tensor `own` out of Llama's."""
    sources = [weights[name] for name in llama]
    if len(sources) == 1:
        yield _target(own, sources[0].shape, [(sources[0], 0, sources[0].nbytes)])
        return
    if len({source.dtype for source in sources}) > 1:
        what = f"{', '.join(llama)} are stored as {', '.join(source.dtype for source in sources)}"
        raise InputError(what, sources[0].where, "save the model in one number format")
    row_bytes = sources[0].nbytes // sources[0].shape[0]
    at = [0, 0, 0]
    spans: list[Span] = []
    for part, first, end in sizes.heads.stretches():
        begin, at[part] = at[part], at[part] + (end - first) * row_bytes
        spans.append((sources[part], begin, at[part]))
    yield _target(own, (sizes.heads.fused_rows, *sources[0].shape[1:]), spans)


def _target(name: str, shape: tuple[int, ...], spans: list[Span]) -> Target:
    source = spans[0][0]
    nbytes = sum(end - begin for _, begin, end in spans)
    return Target(StoredTensor(name, source.dtype, shape, source.path, source.start, nbytes), tuple(spans))


class Reading:
    """The bytes of each target, read into one buffer (plain reads: pages of a mapped file would count as resident)."""

    def __init__(self, targets: dict[str, Target]) -> None:
        self.targets = targets
        self.buffer = bytearray(PIECE_BYTES)

    def pieces(self, tensor: StoredTensor) -> Iterator[memoryview]:
        """The new bytes of `tensor`, piece by piece; a piece is good until the next one is asked for."""
        for source, begin, end in self.targets[tensor.name].spans:
            with source.path.open("rb", buffering=0) as file:
                file.seek(source.start + begin)
                while begin < end:
                    piece = memoryview(self.buffer)[: min(end - begin, PIECE_BYTES)]
                    _fill(piece, file, source)
                    _check_finite(piece, source)
                    begin += len(piece)
                    yield piece


def _fill(piece: memoryview, file: Any, source: StoredTensor) -> None:
    done = 0
    while done < len(piece):  # a plain read may give less than was asked for
        count = file.readinto(piece[done:])
        if not count:
            raise InputError(f"the file is cut off within {source.name}", source.where, "copy the file anew")
        done += count


def _check_finite(piece: memoryview, source: StoredTensor) -> None:
    """`InputError` if a number is NaN or infinite: smallest and largest show it at 10 GB/s, `isfinite` at 0.4."""
    assert len(piece) % ITEM_BYTES[source.dtype] == 0
    ends = torch.stack(torch.frombuffer(piece, dtype=source.torch_dtype).aminmax())
    if not torch.isfinite(ends).all():
        fix = "copy the file anew; if it stays so, the model is broken"
        raise InputError(f"{source.name} holds NaN or infinity", source.where, fix)
