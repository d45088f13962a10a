"""`mrp export`: a tuned model in the form that other programs take, in a folder of its own.

    export(Path("mrp.yaml"), Path("for-ollama"), "ollama", "q8_0")

hf: a safetensors folder for transformers, vLLM and LMDeploy. gguf: one file for llama.cpp and its kin. ollama: that
file and a Modelfile for each character. The characters' voices go along (export_voices.py). The folder is written
beside its place and renamed; `mrp-export.json` in it says what it was made of, so that a later export may take its
place and nothing else is ever overwritten.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mrp.cast import Cast, load_cast
from mrp.config import KEPT_CAST_FILE, KEPT_RUN_FILE, RUN_FILE, ChatOptions, Run, load_run
from mrp.errors import InputError, nearest
from mrp.files import need_space, read_json, replacing_folder, sampled_sha256, size_text, write_json
from mrp.models.bases import check_base_folder, model_identity
from mrp.models.export_voices import (
    VOICES,
    ExportedVoice,
    check_voices,
    gguf_voice_lines,
    hf_voice_lines,
    ollama_voice_lines,
    vllm_options,
    voices_beside,
    write_voices,
)
from mrp.models.gguf_layout import Layout, Planned, gguf_layout, plan_tensors
from mrp.models.gguf_vocab import vocabulary_fields
from mrp.models.gguf_write import (
    FILE_TYPES,
    K_QUANTS,
    QUANTISATION_VERSION,
    k_quantise,
    llama_cpp_library,
    stored_type,
    tensor_bytes,
    write_gguf,
)
from mrp.models.hf_folder import folder_files, portable_template
from mrp.models.load import load_tokenizer
from mrp.models.model_card import facts_of, gguf_usage, hf_usage, model_card
from mrp.models.ollama import modelfiles, usage
from mrp.models.run_voices import voices_of
from mrp.models.shards import (
    FLOATS,
    ITEM_BYTES,
    Piece,
    StoredTensor,
    as_piece,
    plan_shards,
    raw_pieces,
    read_weights,
    shard_bytes,
    write_shards,
)
from mrp.render import ChatTemplate
from mrp.report import SILENT, Reporter
from mrp.yamlfile import dump_yaml

EXPORT_RECORD = "mrp-export.json"
RECORD_FORMAT = 1
FORMS = ("hf", "gguf", "ollama")
HF_QUANTS = {"f16": "F16", "bf16": "BF16"}
LICENCES = ("LICEN[CS]E*", "NOTICE*", "COPYING*", "*POLICY*")
MAX_SHARD_SIZE = "2GB"
NOT_IN_A_CAST: Any = {"home": True, "dialogues": True, "characters": {"__all__": {"dialogues", "card", "avatar"}}}


@dataclass(frozen=True)
class Source:
    """The model to be exported, and who plays in it."""

    folder: Path
    cast: Cast | None
    options: ChatOptions
    run: Run | None
    tokenizer: Any
    template: ChatTemplate | None
    voices: tuple[ExportedVoice, ...] = ()

    @property
    def sampling(self) -> dict[str, Any]:
        """How the run samples; {} for a model folder, whose own generation config is kept."""
        return {"temperature": self.options.temperature, "top_p": self.options.top_p} if self.run else {}


def export(path: Path, out: Path, to: str, quant: str | None = None, report: Reporter = SILENT) -> dict[str, Any]:
    """Write the model that `path` names (run file, run folder, model folder) to the folder `out`; returns the record.

    Raises `InputError` with every reason against it before anything is written, `SetupError` for a full disk or a
    missing package.
    """
    _check_options(to, quant, out)
    out = out.resolve()
    source = open_source(path)
    _check_place(out, source.folder)
    name = model_name(out)
    quant = quant or ("" if to == "hf" else "f16")
    write = _write_hf if to == "hf" else _write_gguf_folder
    plan = write(source, name, to, quant)
    voice_bytes = sum(voice.nbytes for voice in source.voices)
    need_space(out.parent, plan.needed_bytes + voice_bytes + 2**20, "the exported model")
    with replacing_folder(out) as part:
        with report.progress("exporting", plan.data_bytes, "B") as update:
            tensors = plan.write_weights(part, update)
        write_voices(source.voices, source.folder, part, to)
        for file, text in plan.texts.items():
            (part / file).write_text(text, encoding="utf-8", newline="\n")
        for licence in _licence_files(source.folder):
            shutil.copyfile(licence, part / licence.name)
        record: dict[str, Any] = {
            "format": RECORD_FORMAT,
            "to": to,
            "quant": quant or "as stored",
            "name": name,
            "model": model_identity(source.folder),
            "tensors": tensors,
            "notes": plan.notes,
            **({"voices": [voice.character for voice in source.voices]} if source.voices else {}),
            "files": {path.relative_to(part).as_posix(): sampled_sha256(path) for path in _files_in(part)},
        }
        write_json(part / EXPORT_RECORD, record)
    for note in plan.notes:
        report.warn(note)
    size = sum(path.stat().st_size for path in _files_in(out))
    report.line(f"wrote {out}: {size_text(size)} in {len(record['files'])} files")
    return {"folder": str(out), **record}


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@dataclass(frozen=True)
class _Plan:
    """What will be written: texts by file name, and the weights by a function that is told the progress."""

    texts: dict[str, str]
    data_bytes: int
    needed_bytes: int
    write_weights: Callable[[Path, Callable[[int], None]], dict[str, int]]
    notes: list[str]


# -- what is exported ----------------------------------------------------------------------------------------------


def open_source(path: Path) -> Source:
    """The model that RUN names, checked: its merged model, or a folder of its own."""
    run: Run | None = None
    cast: Cast | None = None
    options = ChatOptions()
    voices = path / VOICES
    if path.is_file() or (path / KEPT_RUN_FILE).exists() or (path / RUN_FILE).exists():
        run = load_run(path)
        folder, cast, options, voices = run.merged, run.cast, run.config.chat, voices_of(run) or run.voices
        if not (folder / "config.json").is_file():
            fix = f"mrp merge {run.name_again}" if run.adapter.is_dir() else f"mrp run {run.name_again}"
            raise InputError("the run has no merged model to export", str(folder), fix)
        if run.adapter.is_dir() and not _is_current(run):
            what = "the merged model is not made of the run's adapter, base and cast as they are now"
            raise InputError(what, str(folder), f"mrp merge {run.name_again}")
    else:
        folder = path
        if not path.is_dir():
            fix = "name a run file, a run folder, or a model folder"
            raise InputError(f"no such file or folder: {path.name}", str(path), fix)
        if (path / "adapter_config.json").is_file():
            fix = "merge it first: mrp merge BASE ADAPTER --out DIR, then mrp export DIR OUT"
            raise InputError("this folder is an adapter, which is no model by itself", str(path), fix)
        if (path / KEPT_CAST_FILE).is_file():
            cast = load_cast(path / KEPT_CAST_FILE)
    check_base_folder(folder)
    tokenizer = load_tokenizer(folder)
    template = ChatTemplate(tokenizer, where=str(folder)) if tokenizer.chat_template else None
    spoken = tuple(check_voices(voices_beside(voices, cast), folder))
    return Source(folder, cast, options, run, tokenizer, template, spoken)


def _is_current(run: Run) -> bool:
    from mrp.models.merge import is_merged  # with PEFT, which a model folder does without

    return is_merged(run)


def model_name(out: Path) -> str:
    """A name for files and lists from the folder's: ASCII letters, digits, "_", "-" and dots."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", out.name).strip("-.") or "model"


def _check_options(to: str, quant: str | None, out: Path) -> None:
    if to not in FORMS:
        raise InputError(f"there is no form {to!r}", "--to", nearest(to, FORMS))
    known = HF_QUANTS if to == "hf" else FILE_TYPES
    if quant is not None and quant not in known:
        what = f"{quant!r} cannot be written with --to {to}"
        raise InputError(what, "--quant", nearest(quant, known))
    if out.suffix == ".gguf" and not out.is_dir():
        fix = f"give a folder, such as {out.with_suffix('')}; the file in it gets its name"
        raise InputError("OUT is a folder, and this is the name of a file", str(out), fix)


def _check_place(out: Path, source: Path) -> None:
    """`InputError` unless `out` is free, or holds an earlier export and nothing else that would be lost."""
    place = source.resolve()
    if out == place or out in place.parents:
        raise InputError("the export cannot take the place of what it is made from", str(out), "choose another folder")
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError("a file is in the place of the export", str(out), "choose another folder")
    present = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    if not present:
        return
    if EXPORT_RECORD not in present:
        what = f"the folder is not empty, and no earlier export: it has no {EXPORT_RECORD}"
        raise InputError(what, str(out), "choose another folder, or empty it")
    record = read_json(out / EXPORT_RECORD)
    files = record.get("files") if isinstance(record, dict) else None
    known = {*(files if isinstance(files, dict) else ()), EXPORT_RECORD}
    if others := sorted(present - known):
        what = f"the folder holds files that no export wrote and that would be lost: {', '.join(others[:5])}"
        raise InputError(what, str(out), "move them elsewhere, or choose another folder")


def _card(source: Source, name: str, usage_lines: list[str]) -> str:
    return model_card(facts_of(name, source.folder, source.cast, source.run), usage_lines)


def _licence_files(folder: Path) -> list[Path]:
    return sorted({path for pattern in LICENCES for path in folder.glob(pattern) if path.is_file()})


# -- hf ------------------------------------------------------------------------------------------------------------


def _write_hf(source: Source, name: str, to: str, quant: str) -> _Plan:
    del to
    weights = read_weights(source.folder)
    originals = {tensor.name: tensor for tensor in weights.values()}
    shards = plan_shards((_as_stored(tensor, quant) for tensor in weights.values()), shard_bytes(MAX_SHARD_SIZE))
    texts = folder_files(source.folder, source.tokenizer, source.template, source.sampling)
    if quant:
        word = "float16" if quant == "f16" else "bfloat16"
        texts["config.json"] = re.sub(r'("(?:torch_)?dtype": )"[^"]*"', rf'\1"{word}"', texts["config.json"])
    texts["README.md"] = _card(
        source, name, hf_usage(source.cast, vllm_options(source.voices), hf_voice_lines(source.voices))
    )
    if source.cast:
        texts[KEPT_CAST_FILE] = _cast_to_share(source.cast)
    total = sum(shard.data_bytes for shard in shards)

    def write_weights(part: Path, tick: Callable[[int], None]) -> dict[str, int]:
        write_shards(part, shards, lambda tensor: _converted(originals[tensor.name], tensor), tick)
        kinds = [tensor.dtype for shard in shards for tensor in shard.tensors]
        return {kind: kinds.count(kind) for kind in sorted(set(kinds))}

    return _Plan(texts, total, total + sum(len(text) * 3 for text in texts.values()), write_weights, [])


def _as_stored(tensor: StoredTensor, quant: str) -> StoredTensor:
    """The tensor as it will be stored."""
    if not quant or tensor.dtype not in FLOATS:
        return tensor
    dtype = HF_QUANTS[quant]
    return replace(tensor, dtype=dtype, nbytes=tensor.nbytes // ITEM_BYTES[tensor.dtype] * ITEM_BYTES[dtype])


def _converted(original: StoredTensor, wanted: StoredTensor) -> Iterator[Piece]:
    """The bytes of a tensor in the wanted numbers, checked: NaN and infinity never leave the house."""
    for piece in raw_pieces(original):
        if original.dtype not in FLOATS:
            yield piece
            continue
        values = torch.frombuffer(bytearray(piece), dtype=original.torch_dtype)
        if not torch.isfinite(values).all():
            fix = "copy the model anew, or train it again"
            raise InputError(f"{original.name} holds NaN or infinity", original.where, fix)
        if wanted.dtype == original.dtype:
            yield piece
            continue
        changed = values.to(wanted.torch_dtype)
        if not torch.isfinite(changed).all():
            what = f"{original.name} holds numbers that are too large for {wanted.dtype}"
            raise InputError(what, original.where, "export with --quant bf16, or leave --quant out")
        yield as_piece(changed)


def _cast_to_share(cast: Cast) -> str:
    """The cast without what points to files of this machine."""
    shared = cast.model_dump(exclude_defaults=True, exclude=NOT_IN_A_CAST)
    return dump_yaml({"language": cast.language} | shared, width=120)


# -- gguf and ollama -----------------------------------------------------------------------------------------------


def _write_gguf_folder(source: Source, name: str, to: str, quant: str) -> _Plan:
    if quant in K_QUANTS:
        llama_cpp_library()
    layout, fields, notes = gguf_metadata(source, name, quant)
    tensors = plan_tensors(layout, read_weights(source.folder), source.folder)
    file = f"{name}-{quant}.gguf"
    first = "f16" if quant in K_QUANTS else quant
    data = sum(tensor_bytes(t.source.shape, stored_type(t.name, t.source.shape, first)) for t in tensors)
    longest = layout.fields[f"{layout.architecture}.context_length"]
    if to == "ollama":
        texts, said = _ollama_texts(source, name, file, longest)
        notes = [*notes, *said]
    else:
        context = min(source.options.context_tokens, longest)
        said = gguf_voice_lines(file, source.voices, context)
        texts = {"README.md": _card(source, name, gguf_usage(file, source.cast, context, said))}

    def write_weights(part: Path, tick: Callable[[int], None]) -> dict[str, int]:
        return _write_file(part / file, layout, fields, tensors, quant, tick)

    space = data * (2 if quant in K_QUANTS else 1) + 100 * layout.vocabulary
    return _Plan(texts, data, space, write_weights, notes)


def _write_file(
    path: Path,
    layout: Layout,
    fields: dict[str, Any],
    tensors: list[Planned],
    quant: str,
    tick: Callable[[int], None],
) -> dict[str, int]:
    if quant not in K_QUANTS:
        return write_gguf(path, layout.architecture, fields, tensors, quant, layout.rope_factors, tick)
    whole = path.with_name("whole.part")
    halves = fields | {"general.file_type": FILE_TYPES["f16"]}
    write_gguf(whole, layout.architecture, halves, tensors, "f16", layout.rope_factors, tick)
    k_quantise(whole, path, quant)
    whole.unlink()
    return {quant: len(tensors)}


def gguf_metadata(source: Source, name: str, quant: str) -> tuple[Layout, dict[str, Any], list[str]]:
    """The layout of the model, all metadata of its GGUF file, and notes for people."""
    from transformers import AutoConfig

    where = str(source.folder / "config.json")
    raw = read_json(source.folder / "config.json")
    config = AutoConfig.from_pretrained(source.folder, local_files_only=True, trust_remote_code=False).to_dict()
    layout = gguf_layout(config | {"model_type": raw.get("model_type")}, where)
    vocabulary, notes = vocabulary_fields(source.tokenizer, source.template, layout.vocabulary, str(source.folder))
    fields: dict[str, Any] = {
        "general.type": "model",
        "general.name": name,
        "general.file_type": FILE_TYPES[quant],
        "general.quantization_version": QUANTISATION_VERSION,
        **layout.fields,
        **vocabulary,
    }
    if licence := facts_of(name, source.folder, source.cast, source.run).licence:
        fields["general.license"] = licence
    if source.template:
        fields["tokenizer.chat_template"] = portable_template(source.template)
    return layout, fields, [*layout.notes, *notes]


def _ollama_texts(source: Source, name: str, file: str, longest: int) -> tuple[dict[str, str], list[str]]:
    if source.template is None:
        fix = "take an instruct or chat model, or put a chat_template.jinja into its folder"
        raise InputError("the model has no chat template for Ollama", str(source.folder), fix)
    stops = [str(source.tokenizer.convert_ids_to_tokens(i)) for i in source.template.stop_ids()]
    options = source.options.model_copy(update={"context_tokens": min(source.options.context_tokens, longest)})
    voices = {voice.character: f"./{VOICES}/{voice.character}.gguf" for voice in source.voices}
    files, notes = modelfiles(file, source.template, source.cast, options, stops, voices)
    said = [*usage(name, list(files), source.cast), *ollama_voice_lines(source.voices)]
    return files | {"README.md": _card(source, name, said)}, notes
