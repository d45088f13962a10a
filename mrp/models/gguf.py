"""GGUF to a Hugging Face folder: weights dequantised to bf16 safetensors, tokenizer, chat template, configs.

`pull.py` runs it once for each base model. transformers dequantises the weights; the tokenizer is built here, because
transformers' own reader ignores `tokenizer.ggml.pre`: it splits SmolLM2's text without isolating digits, so that
"\\n\\n1." gives other ids than the model was trained on.

    >>> convert_gguf(Path("SmolLM2-135M-Instruct.Q4_1.gguf"), Path("smollm2-135m-instruct"))
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mrp.errors import InputError, SetupError
from mrp.files import write_json

CONTROL, USER_DEFINED = 3, 4  # token types of the GGUF format
WHOLE_WORDS_FIRST = ("llama-bpe",)  # families that take a word of the vocabulary whole, before any merge
COMPOSED = ("qwen2",)  # families whose tokenizer composes letters first


def convert_gguf(gguf: Path, out: Path) -> None:
    """Write `gguf` (ChatML or any other chat model with a byte-level BPE) as a Hugging Face folder into `out`.

    Works offline. Peak memory is about four times the folder. Raises `InputError` for a file that is not such a GGUF.
    """
    fields = read_fields(gguf)
    with quiet_libraries():
        tokenizer = build_tokenizer(fields, str(gguf))
        _save_model(gguf, out, tokenizer)
        _save_tokenizer(tokenizer, out)
    for path in out.iterdir():
        path.chmod(0o644)  # safetensors files are made private


def read_fields(gguf: Path) -> dict[str, Any]:
    """The metadata of a GGUF file, key to value."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(gguf)
        return {key: field.contents() for key, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError) as error:
        raise InputError(f"not a GGUF file: {error}", str(gguf), "fetch the file anew") from error


def build_tokenizer(fields: dict[str, Any], where: str) -> Any:
    """The fast tokenizer that GGUF metadata describes, chat template included (a `PreTrainedTokenizerFast`)."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    pre = _pre_tokenizer(fields, where)
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    whole_first = fields.get("tokenizer.ggml.pre") in WHOLE_WORDS_FIRST
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=whole_first))
    backend.pre_tokenizer = pre
    if fields.get("tokenizer.ggml.pre") in COMPOSED:
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    added = [(token, kind) for token, kind in zip(tokens, types, strict=True) if kind in (CONTROL, USER_DEFINED)]
    backend.add_special_tokens([AddedToken(token, normalized=False) for token, kind in added if kind == CONTROL])
    backend.add_tokens([AddedToken(token, normalized=False) for token, kind in added if kind == USER_DEFINED])
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {name: fields.get(f"tokenizer.ggml.{key}_token_id") for name, key in names.items()}
    if fields.get("tokenizer.ggml.add_bos_token") and (bos := ids["bos_token"]) is not None:
        backend.post_processor = processors.TemplateProcessing(f"{tokens[bos]} $A", None, [(tokens[bos], bos)])
    context_tokens = fields[f"{fields['general.architecture']}.context_length"]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=context_tokens,
        clean_up_tokenization_spaces=False,
        chat_template=fields.get("tokenizer.chat_template"),
        **{name: tokens[i] for name, i in ids.items() if i is not None},
    )


def _pre_tokenizer(fields: dict[str, Any], where: str) -> Any:
    """How the text is cut before BPE: by the name that llama.cpp gives to the family."""
    from tokenizers import Regex
    from tokenizers import pre_tokenizers as p

    from mrp.models.gguf_vocab import GPT4

    def by_words(most_digits: str) -> Any:
        split = p.Split(Regex(GPT4.replace("DIGITS", most_digits)), "isolated")
        return p.Sequence([split, p.ByteLevel(add_prefix_space=False, use_regex=False)])

    known: dict[tuple[str, str], Callable[[], Any]] = {
        ("gpt2", "gpt-2"): lambda: p.ByteLevel(add_prefix_space=False),
        ("gpt2", "smollm"): lambda: p.Sequence([p.Digits(individual_digits=True), p.ByteLevel(add_prefix_space=False)]),
        ("gpt2", "qwen2"): lambda: by_words("1"),
        ("gpt2", "llama-bpe"): lambda: by_words("3"),
        ("gpt2", "dbrx"): lambda: by_words("3"),
    }
    family = (fields.get("tokenizer.ggml.model", ""), fields.get("tokenizer.ggml.pre", ""))
    if family not in known:
        raise InputError(
            f"this version cannot read a tokenizer of the kind {'/'.join(family)} from a GGUF",
            f"{where}: tokenizer.ggml.pre",
            "use the model in Hugging Face format",
        )
    return known[family]()


def _save_tokenizer(tokenizer: Any, out: Path) -> None:
    tokenizer.save_pretrained(out)
    # transformers 5 writes a class name that version 4 (in older servers and converters) does not know; this alias
    # of the same class is known to both.
    path = out / "tokenizer_config.json"
    config = {**json.loads(path.read_text(encoding="utf-8")), "tokenizer_class": "PreTrainedTokenizerFast"}
    config.pop("backend", None)
    write_json(path, config)


def _save_model(gguf: Path, out: Path, tokenizer: Any) -> None:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, GenerationConfig, GgufConfig

    model, found = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),  # without it save_pretrained refuses
        dtype=torch.bfloat16,
        local_files_only=True,
        output_loading_info=True,
    )
    if absent := sorted(found["missing_keys"]):  # transformers would fill them with random numbers
        raise InputError(f"the GGUF lacks weights: {', '.join(absent[:5])}", str(gguf), "fetch the file anew")
    # GGUF keeps 1e-05 as a 32-bit float; written out in full it reads 9.999999747378752e-06.
    model.config.rms_norm_eps = float(f"{model.config.rms_norm_eps:.7g}")
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**special)
    del model.config._model_name_or_path  # a file's inner name
    try:
        model.save_pretrained(out)
    except SafetensorError as error:
        fix = "free some space, then run the command again"
        raise SetupError(f"the weights cannot be written: {error}", str(out), fix) from error


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep transformers' bars and warnings off the terminal; the earlier settings come back afterwards.

    Standard error is held back too: the bar of GGUF loading obeys no setting.
    """
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
