"""A model folder that servers of today and of two years ago load: plain transformers (4.45 and later), vLLM, LMDeploy.

    files = folder_files(source, tokenizer, template, sampling)    # name to text; weights are written by export.py

transformers 5 writes names that version 4 does not know (`TokenizersBackend`, `rope_parameters`, `dtype`) and the chat
template into a file that older servers do not read. Here both words stand side by side.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mrp.data.view import ASSISTANT, SYSTEM, USER, Message
from mrp.errors import InputError, MrpError
from mrp.files import read_json
from mrp.models.gguf_layout import rope_of
from mrp.render import ChatTemplate

NO_LIMIT = int(1e30)  # of a tokenizer: the config bounds the length
GENERATION_TAG = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")
TRIED = (
    [Message(SYSTEM, "a b"), Message(USER, "c\n1"), Message(ASSISTANT, "d."), Message(USER, "妖怪")],
    [Message(SYSTEM, "a"), Message(USER, "b")],
    [Message(USER, "b"), Message(ASSISTANT, "c"), Message(USER, "d")],
)


def folder_files(
    source: Path, tokenizer: Any, template: ChatTemplate | None, sampling: dict[str, Any]
) -> dict[str, str]:
    """The texts of all files but weights, licence and card. `sampling`: temperature and top_p ({}: as the source)."""
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        fix = "save the tokenizer in its fast form (tokenizer.json) into the folder"
        raise InputError("the tokenizer has no fast form, which servers read", str(source), fix)
    text = portable_template(template) if template else None
    files = {
        "config.json": _json(portable_config(read_json(source / "config.json"))),
        "generation_config.json": _json(generation_config(source, tokenizer, template, sampling)),
        "tokenizer.json": tokenizer.backend_tokenizer.to_str(pretty=True) + "\n",
        "tokenizer_config.json": _json(tokenizer_config(tokenizer, text)),
    }
    return files | ({"chat_template.jinja": text} if text else {})


def portable_config(config: dict[str, Any]) -> dict[str, Any]:
    """A config.json in the words of transformers 4 and 5 alike."""
    theta, scaling = rope_of(config)
    kept = {k: v for k, v in config.items() if k not in ("auto_map", "_name_or_path", "_attn_implementation")}
    if "rope_parameters" in config or "rope_theta" in config:
        kept |= {"rope_theta": theta, "rope_scaling": scaling or None}
        kept["rope_parameters"] = {"rope_type": "default", "rope_theta": theta} | scaling
    if number_format := config.get("dtype") or config.get("torch_dtype"):
        kept |= {"dtype": number_format, "torch_dtype": number_format}
    return dict(sorted(kept.items()))


def generation_config(
    source: Path, tokenizer: Any, template: ChatTemplate | None, sampling: dict[str, Any]
) -> dict[str, Any]:
    """generation_config.json with every id that ends a reply, and how to sample, which vLLM takes as its default."""
    path = source / "generation_config.json"
    given = read_json(path) if path.is_file() else {}
    given = given if isinstance(given, dict) else {}
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "pad")}
    kept = {k: v for k, v in special.items() if v is not None} | given
    if template:
        stops = template.stop_ids(given.get("eos_token_id"))
        kept["eos_token_id"] = stops if len(stops) > 1 else stops[0]
    if sampling and sampling["temperature"] > 0:
        kept |= {"do_sample": True, "top_k": 0, **sampling}
    elif sampling:
        kept["do_sample"] = False
        for key in ("temperature", "top_p", "top_k"):
            kept.pop(key, None)
    return kept


def tokenizer_config(tokenizer: Any, template: str | None) -> dict[str, Any]:
    """tokenizer_config.json by hand: a class that transformers 4 knows, which takes tokenizer.json as it is."""
    added = sorted(tokenizer.added_tokens_decoder.items())
    limit = tokenizer.model_max_length
    special = {f"{name}_token": getattr(tokenizer, f"{name}_token") for name in ("bos", "eos", "pad", "unk")}
    return {
        "added_tokens_decoder": {str(i): _entry(token) for i, token in added},
        **({"chat_template": template} if template else {}),
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(limit) if limit < NO_LIMIT else NO_LIMIT,
        **special,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def _entry(token: Any) -> dict[str, Any]:
    flags = ("lstrip", "normalized", "rstrip", "single_word", "special")
    return {"content": str(token.content), **{name: bool(getattr(token, name)) for name in flags}}


def portable_template(template: ChatTemplate) -> str:
    """The chat template as every runtime reads it, printing what training saw.

    `{% generation %}`, which marks replies for trainers of others, is unknown to plain jinja (llama-cpp-python), so
    it becomes a comment; options that training gave to the template (such as no thinking) are set in it. Raises
    `MrpError` if the result does not print the same.
    """
    text = GENERATION_TAG.sub(r"{#\1 \2generation \3#}", template.text)
    options = template.traits.options
    settings = "".join(f"{{%- set {name} = {json.dumps(value)} %}}" for name, value in sorted(options.items()))
    text = settings + text
    if text == template.text:
        return text
    other = ChatTemplate(template.tokenizer, text, template.where)
    tried = TRIED if template.traits.own_system else TRIED[2:]
    if any(other.prompt(messages) != template.prompt(messages) for messages in tried):
        fix = "nothing was written; please report it, with the base model's name"
        raise MrpError("the chat template prints something else without its extensions", template.where, fix)
    return text


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"
