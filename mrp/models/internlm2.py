"""InternLM2 as a plain Llama, and back: the same numbers under other names, in another order of rows.

    record = to_llama(Path("internlm2-chat-7b"), Path("internlm2-chat-7b-llama"))     # what mrp trains and chats with
    record = to_internlm2(Path("merged"), Path("for-lmdeploy"))                       # what LMDeploy and XTuner read

Why at all: InternLM2's own code, run in today's transformers, gives other logits than it was made to give, and no
error; a Llama of the same weights gives the right ones and runs no code of the folder (law 9). Every tensor of the
result is stretches of bytes of the source's files (safetensors or `.bin`), so no number changes, and memory holds
one piece at a time.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mrp import __version__
from mrp.errors import InputError, MrpError
from mrp.files import need_space, read_json, replacing_folder, sampled_sha256, size_text, write_json
from mrp.models.bases import is_internlm2
from mrp.models.internlm2_config import (
    Sizes,
    code_files_note,
    generation_config,
    internlm2_config,
    llama_config,
    read_sizes,
)
from mrp.models.internlm2_tokenizer import (
    EOS,
    IM_END,
    MODEL_FILE,
    Pieces,
    read_pieces,
    read_tokenizer,
    write_released_form,
    write_tokenizer,
)
from mrp.models.internlm2_weights import Reading, lay_out, read_model_weights
from mrp.models.shards import Shard, StoredTensor, plan_shards, shard_bytes, write_shards
from mrp.report import SILENT, Reporter

RECORD = "mrp-convert.json"
RECORD_FORMAT = 1  # raise it when a conversion writes something else for the same source
GENERATION = "generation_config.json"
COPIED = ("LICEN[CS]E*", "NOTICE*", "COPYING*")
TO_LLAMA, TO_INTERNLM2 = "internlm2-to-llama", "llama-to-internlm2"


def to_llama(src: Path, out: Path, *, max_shard_size: str = "2GB", report: Reporter = SILENT) -> dict[str, Any]:
    """Write the InternLM2 in `src` as a Llama to `out`, whole or not at all; returns the record (mrp-convert.json).

    `out` gets config, generation_config, a fast tokenizer with its chat template, tokenizer.model and the licence.
    Where it holds this very conversion already, nothing is done. Raises `InputError` with every fault of the source.
    """
    config = _config(src)
    if not is_internlm2(src):
        what = f"the model is of type {config.get('model_type')!r}, not 'internlm2'"
        raise InputError(what, f"{src / 'config.json'}: model_type", "only InternLM2 and 2.5 are to be laid out anew")
    sizes = read_sizes(config, str(src / "config.json"))
    own = llama_config(config, sizes, str(src / "config.json"))

    def accompany(part: Path) -> Pieces:
        pieces = read_pieces(src)
        write_tokenizer(read_tokenizer(src), part)
        shutil.copyfile(src / MODEL_FILE, part / MODEL_FILE)
        return pieces

    return _Conversion(src, out, TO_LLAMA, sizes, own, accompany, report).run(max_shard_size)


def to_internlm2(src: Path, out: Path, *, max_shard_size: str = "2GB", report: Reporter = SILENT) -> dict[str, Any]:
    """Write the Llama in `src` in InternLM2's released layout to `out`, for LMDeploy and XTuner; returns the record.

    `to_llama` undone, bit for bit. `src` needs tokenizer.model. Raises `InputError` with every trait of the model
    that InternLM2 has no place for.
    """
    config = _config(src)
    sizes = read_sizes(config, str(src / "config.json"))
    own = internlm2_config(config, sizes, str(src / "config.json"))

    def accompany(part: Path) -> Pieces:
        return write_released_form(src, part)

    record = _Conversion(src, out, TO_INTERNLM2, sizes, own, accompany, report).run(max_shard_size)
    report.line(code_files_note(out))
    return record


def _config(src: Path) -> dict[str, Any]:
    path = src / "config.json"
    if not src.is_dir() or not path.is_file():
        what = "no such folder" if not src.is_dir() else "no config.json"
        raise InputError(what, str(src), "give the folder of a model in Hugging Face format")
    config = read_json(path)
    if not isinstance(config, dict):
        raise InputError("config.json is not a JSON object", str(path), "copy the file anew")
    return config


# -- one conversion ----------------------------------------------------------------------------------------------------


@dataclass
class _Conversion:
    """`src` laid out anew at `out`; `accompany` writes the tokenizer and says what its pieces are."""

    src: Path
    out: Path
    direction: str
    sizes: Sizes
    config: dict[str, Any]
    accompany: Callable[[Path], Pieces]
    report: Reporter

    def run(self, max_shard_size: str) -> dict[str, Any]:
        self.out = self.out.resolve()
        limit = shard_bytes(max_shard_size, "--max-shard-size")
        weights = read_model_weights(self.src)
        source = {"direction": self.direction, "max_shard_bytes": limit, "files": self._source_files(weights)}
        if is_intact(self.out, source):
            self.report.line(f"done already: {self.out}")
            return dict(read_json(self.out / RECORD))
        _check_place(self.out, self.src)
        targets = lay_out(weights, self.sizes, self.src, to_llama=self.direction == TO_LLAMA)
        shards = plan_shards((target.tensor for target in targets.values()), limit)
        total = sum(shard.data_bytes for shard in shards)
        need_space(self.out.parent, total + 2**24, "the converted model")
        with replacing_folder(self.out) as part:
            self._write_small_files(part)
            with self.report.progress("laying out anew", total, "B") as update:
                write_shards(part, shards, Reading(targets).pieces, update)
            record = self._record(part, source, shards)
        count = len(shards)
        self.report.line(f"wrote {self.out}: {size_text(total)} in {count} file{'' if count == 1 else 's'}")
        return record

    def _source_files(self, weights: dict[str, StoredTensor]) -> dict[str, str]:
        """What tells one source from another: a hash of each file that the result is made from."""
        small = ("config.json", GENERATION, MODEL_FILE, "tokenizer_config.json", "chat_template.jinja")
        paths = {self.src / name for name in small} | {tensor.path for tensor in weights.values()}
        return {path.name: sampled_sha256(path) for path in sorted(paths) if path.is_file()}

    def _write_small_files(self, part: Path) -> None:
        """Everything but the weights; first, since a fault of the tokenizer should not wait for gigabytes."""
        pieces = self.accompany(part)
        if pieces.count > self.sizes.vocabulary:
            what = f"the tokenizer has {pieces.count} pieces, and the model knows {self.sizes.vocabulary}"
            where = f"{self.src / MODEL_FILE}; {self.src / 'config.json'}: vocab_size"
            raise InputError(what, where, "take the tokenizer.model and the config.json of one and the same model")
        given = read_json(self.src / GENERATION) if (self.src / GENERATION).is_file() else {}
        stops = [pieces.id_of(EOS), pieces.id_of(IM_END)]
        write_json(part / "config.json", self.config)
        write_json(part / GENERATION, generation_config(given, self.config, stops))
        for path in sorted({path for pattern in COPIED for path in self.src.glob(pattern) if path.is_file()}):
            shutil.copyfile(path, part / path.name)

    def _record(self, part: Path, source: dict[str, Any], shards: list[Shard]) -> dict[str, Any]:
        record = {
            "format": RECORD_FORMAT,
            "source": source,
            "shards": {shard.name: shard.data_bytes for shard in shards},
            "tensors": sum(len(shard.tensors) for shard in shards),
            "made_with": {"mrp-llm": __version__, "tokenizers": version("tokenizers")},
            "files": {path.name: sampled_sha256(path) for path in sorted(part.iterdir())},
        }
        write_json(part / RECORD, record)
        return record


def is_intact(folder: Path, source: dict[str, Any]) -> bool:
    """True if `folder` holds a conversion of just this source, each file as it was written."""
    with suppress(MrpError, OSError, LookupError, TypeError):
        record = read_json(folder / RECORD)
        if (record["format"], record["source"]) == (RECORD_FORMAT, source):
            return all(sampled_sha256(folder / name) == known for name, known in record["files"].items())
    return False


def _check_place(out: Path, src: Path) -> None:
    """`InputError` unless `out` is free, or holds an earlier conversion and nothing else that would be lost."""
    if out == src.resolve() or out in src.resolve().parents:
        what = f"the result cannot take the place of {src.name}, which it is made from"
        raise InputError(what, str(out), "choose another folder")
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError("a file is in the place of the converted model", str(out), "choose another folder")
    present = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    record = read_json(out / RECORD) if RECORD in present else None
    known = {*record.get("files", ()), RECORD} if isinstance(record, dict) else set()
    if others := sorted(present - known):
        what = f"the folder holds files that no conversion wrote and that would be lost: {', '.join(others[:5])}"
        raise InputError(what, str(out), "choose another folder, or empty it")
