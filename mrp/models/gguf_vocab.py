"""A fast tokenizer as GGUF metadata, so that llama.cpp cuts every text into the same ids, or an error says why not.

    fields, notes = vocabulary_fields(tokenizer, template, rows=49152, where="model")

Two kinds are written. Byte-level BPE (Qwen, SmolLM2, Llama 3) becomes `gpt2`: vocabulary, merges, and the name of the
family's way to cut text before BPE, which is recognised by what the tokenizer does. BPE over "▁" with byte fallback
(InternLM2, Llama 2) becomes `llama`: llama.cpp has no merges there; it joins the two neighbours whose union is the
best-scored token, as SentencePiece does. So scores are given by the order of the merges, and a tokenizer whose merges
are not all the cuts of its tokens, which would then be cut otherwise, is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from mrp.errors import InputError
from mrp.render import ChatTemplate

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # token types of llama.h
SPACE = "▁"
BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
LOWEST = -1e6  # of tokens that no merge makes
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,DIGITS}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# llama.cpp's names for the ways to cut text before a byte-level BPE: (steps, ignore_merges) to name.
FAMILIES: dict[tuple[tuple[str, ...], bool], str] = {
    (("bytes by words",), False): "gpt-2",
    (("digits", "bytes by words"), False): "smollm",
    ((GPT4.replace("DIGITS", "1"), "bytes"), False): "qwen2",
    ((GPT4.replace("DIGITS", "3"), "bytes"), True): "llama-bpe",
    ((GPT4.replace("DIGITS", "3"), "bytes"), False): "dbrx",
}
HF = "use the model with --to hf, or llama.cpp's own converter"


def vocabulary_fields(
    tokenizer: Any, template: ChatTemplate | None, rows: int, where: str
) -> tuple[dict[str, Any], list[str]]:
    """The `tokenizer.ggml.*` fields of a tokenizer, and notes for people.

    `rows` is the number of rows of the embedding: ids above the tokenizer's get names of their own. Raises
    `InputError` for a tokenizer that llama.cpp would not follow.
    """
    pipeline = _pipeline(tokenizer, where)
    if len(tokenizer) > rows:
        what = f"the tokenizer has {len(tokenizer)} tokens, and the embedding only {rows} rows"
        raise InputError(what, where, "copy the model anew: its tokenizer belongs to another model")
    names = _names(tokenizer, rows)
    if _is_byte_level(pipeline):
        kind, notes = _byte_level_fields(pipeline, where)
    else:
        kind, notes = _sentencepiece_fields(tokenizer, pipeline, names, template, where)
    types = [_type(tokenizer, i, name, kind["tokenizer.ggml.model"]) for i, name in enumerate(names)]
    if odd := [t.content for t in tokenizer.added_tokens_decoder.values() if t.lstrip or t.rstrip or t.single_word]:
        notes.append(f"the spaces beside {', '.join(odd[:3])} are kept by llama.cpp, and taken away by transformers")
    fields = {
        **kind,
        "tokenizer.ggml.tokens": names,
        "tokenizer.ggml.token_type": types,
        **_special_fields(tokenizer, template),
    }
    return fields, notes


def _pipeline(tokenizer: Any, where: str) -> dict[str, Any]:
    """What a fast tokenizer does, as its JSON says."""
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise InputError("the tokenizer has no fast form (tokenizer.json)", where, HF)
    pipeline: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    model = pipeline["model"]
    if model.get("type") != "BPE":
        raise InputError(f"the tokenizer is a {model.get('type')}, not a BPE", where, HF)
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise InputError(f"the tokenizer's {key} is {model[key]!r}, which GGUF cannot say", where, HF)
    return pipeline


def _names(tokenizer: Any, rows: int) -> list[str]:
    """The text of every id; one that has none (the embedding is longer, or has a gap) gets a name of its own.

    llama.cpp reads an empty name, and one that is a null character, as the end of a text: those are renamed too.
    """
    names = [f"[PAD{i}]" for i in range(rows)]
    for name, i in tokenizer.get_vocab().items():
        names[i] = name if name.strip("\0") else f"[UNUSED_PIECE_{i}]"
    return names


def _type(tokenizer: Any, number: int, name: str, model: str) -> int:
    added = tokenizer.added_tokens_decoder.get(number)
    if added is not None:
        if model == "llama" and name == tokenizer.unk_token:
            return UNKNOWN
        return CONTROL if added.special else USER_DEFINED
    if name in (f"[PAD{number}]", f"[UNUSED_PIECE_{number}]"):
        return UNUSED
    return BYTE if model == "llama" and BYTE_PIECE.fullmatch(name) else NORMAL


def _special_fields(tokenizer: Any, template: ChatTemplate | None) -> dict[str, Any]:
    ids = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "eot": template.end_of_turn_id if template else None,
        "unknown": tokenizer.unk_token_id,
        "padding": tokenizer.pad_token_id,
    }
    plain = list(tokenizer("a").input_ids)
    return {
        **{f"tokenizer.ggml.{key}_token_id": int(i) for key, i in ids.items() if i is not None},
        "tokenizer.ggml.add_bos_token": adds_bos(tokenizer, template),
        "tokenizer.ggml.add_eos_token": bool(plain and plain[-1] == tokenizer.eos_token_id),
    }


def adds_bos(tokenizer: Any, template: ChatTemplate | None) -> bool:
    """True if a runtime should put BOS before a prompt: the tokenizer does, and chat prompts begin with it.

    llama.cpp takes one away where the chat template prints it too. A template without BOS wins over its tokenizer:
    training saw none.
    """
    bos = tokenizer.bos_token_id
    if bos is None or list(tokenizer("a").input_ids)[:1] != [bos]:
        return False
    return template is None or prompt_start(template)[:1] == [bos]


def prompt_start(template: ChatTemplate) -> list[int]:
    """The ids of a short prompt."""
    from mrp.data.view import SYSTEM, USER, Message

    return template.prompt([Message(SYSTEM, "a"), Message(USER, "b")])


# -- byte-level BPE ------------------------------------------------------------------------------------------------


def _steps(pipeline: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The steps that cut the text before BPE, one after the other."""
    waiting = [pipeline.get("pre_tokenizer")]
    while waiting:
        step = waiting.pop(0)
        if step and step["type"] == "Sequence":
            waiting = [*step["pretokenizers"], *waiting]
        elif step:
            yield step


def _is_byte_level(pipeline: dict[str, Any]) -> bool:
    return any(step["type"] == "ByteLevel" for step in _steps(pipeline))


def _byte_level_fields(pipeline: dict[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    steps = tuple(_step_name(step) for step in _steps(pipeline))
    ignores = bool(pipeline["model"].get("ignore_merges"))
    normaliser = (pipeline.get("normalizer") or {}).get("type")
    family = FAMILIES.get((steps, ignores))
    if family is None or normaliser not in (None, "NFC"):
        described = ", ".join([*([normaliser] if normaliser else []), *steps])
        what = f"llama.cpp has no name that this version knows for how the tokenizer cuts text: {described}"
        raise InputError(what, where, HF)
    notes = ["decomposed letters (e + ´) get other ids in llama.cpp, which does not compose them"] if normaliser else []
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in pipeline["model"]["merges"]]
    fields = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": family, "tokenizer.ggml.merges": merges}
    return fields, notes


def _step_name(step: dict[str, Any]) -> str:
    """What a step does, comparable: a regular expression that cuts, or a word for the others."""
    if step["type"] == "ByteLevel" and not step.get("add_prefix_space"):
        return "bytes by words" if step.get("use_regex", True) else "bytes"
    if step["type"] == "Digits" and step.get("individual_digits"):
        return "digits"
    pattern = (step.get("pattern") or {}).get("Regex")
    if step["type"] == "Split" and pattern and step.get("behavior") == "Isolated" and not step.get("invert"):
        return str(pattern).replace(r"|\p{N}|", r"|\p{N}{1,1}|")
    return str(step["type"])


# -- SentencePiece's BPE -------------------------------------------------------------------------------------------


def _sentencepiece_fields(
    tokenizer: Any, pipeline: dict[str, Any], names: list[str], template: ChatTemplate | None, where: str
) -> tuple[dict[str, Any], list[str]]:
    model = pipeline["model"]
    if not model.get("byte_fallback") or not all(f"<0x{byte:02X}>" in model["vocab"] for byte in range(256)):
        what = "the tokenizer is neither a byte-level BPE nor one with byte fallback"
        raise InputError(what, where, HF)
    space, notes = _leading_space(pipeline, template, where)
    ranks = _ranks(tokenizer, model, where)
    fields = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": [float(-ranks[name]) if name in ranks else LOWEST for name in names],
        "tokenizer.ggml.add_space_prefix": space,
        "tokenizer.ggml.remove_extra_whitespaces": False,
    }
    return fields, notes


def _ranks(tokenizer: Any, model: dict[str, Any], where: str) -> dict[str, int]:
    """Which tokens are made by merges, in which order.

    Raises `InputError` unless each token is made of every two tokens that it can be cut into, those of the earlier
    token before those of a later one: SentencePiece's order, and what llama.cpp does with scores.
    """
    made: dict[str, list[tuple[str, str]]] = {}
    last = ""
    for pair in model["merges"]:
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        whole = left + right
        if whole != last and whole in made:
            raise _not_sentencepiece(whole, where)
        made.setdefault(whole, []).append((left, right))
        last = whole
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    ordinary = {name for name in model["vocab"] if name not in added and not BYTE_PIECE.fullmatch(name)}
    for name in ordinary:
        cuts = {(name[:k], name[k:]) for k in range(1, len(name)) if name[:k] in ordinary and name[k:] in ordinary}
        if cuts - set(made.get(name, ())):
            raise _not_sentencepiece(name, where)
    return {name: rank for rank, name in enumerate(made)}


def _not_sentencepiece(name: str, where: str) -> InputError:
    what = (
        f"its merges are not SentencePiece's (see {name!r}), so llama.cpp would cut other tokens than it was trained on"
    )
    return InputError(what, where, HF)


def _leading_space(pipeline: dict[str, Any], template: ChatTemplate | None, where: str) -> tuple[bool, list[str]]:
    """Whether llama.cpp puts a space before each stretch of text (it does so after each control token), and notes."""
    if (scheme := _space_scheme(pipeline)) is None:
        raise InputError("how the tokenizer marks spaces is not known to this version", where, HF)
    if scheme == "always":
        return True, []
    if scheme == "never":
        return False, []
    # "first": before a text that begins the input, but not after a control token, which llama.cpp cannot do.
    starts_with_control = template is not None and prompt_start(template)[0] in template.plain.control.values()
    if not starts_with_control:
        what = "the tokenizer puts a space before the first text only, and chat prompts begin with text"
        raise InputError(what, where, HF)
    return False, ["raw text without the chat template gets no leading space in llama.cpp"]


def _space_scheme(pipeline: dict[str, Any]) -> str | None:
    """always, never or first: where one more "▁" goes than the text has spaces; None: not understood."""
    normaliser = pipeline.get("normalizer") or {"type": "Sequence", "normalizers": []}
    parts = normaliser["normalizers"] if normaliser["type"] == "Sequence" else [normaliser]
    kinds = [part["type"] for part in parts]
    steps = list(_steps(pipeline))
    if kinds in (["Replace"], ["Prepend", "Replace"]) and not steps:
        replaced = parts[-1]
        if (replaced["pattern"].get("String"), replaced["content"]) == (" ", SPACE):
            return "always" if "Prepend" in kinds else "never"
    if not kinds and [step["type"] for step in steps] == ["Metaspace"] and not steps[0].get("split"):
        return str(steps[0].get("prepend_scheme", "always"))
    return None
