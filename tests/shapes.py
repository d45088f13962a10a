"""Tokenizers and chat templates in the shapes of the models that people take as a base, small enough for every test.

    shape = SHAPES["qwen3"]
    shape.tokenizer()       # trained here on a few Chinese and English lines, once a process
    shape.template()        # tests/templates/qwen3.jinja

The templates have the shape of the real ones (what they print, refuse and rewrite), in words of our own.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AddedToken, PreTrainedTokenizerFast

TEMPLATES = Path(__file__).parent / "templates"
LINES = [
    "Old Monkey fears nothing under heaven! Who are you, and what do you want most of all?",
    "Master, the road is long and the night is cold. Is there nothing to eat?",
    "Amitabha. Patience, my disciple: the mountains will still be there tomorrow.",
    "I carry the luggage. I say little. The horse is fed; the rope is tied.",
    "You are the system, the user, the assistant and the model, speaking in turns.",
    "俺老孙乃齐天大圣，何方妖怪，报上名来！",
    "师父，前面有座山，山里有妖怪，我们还是回高老庄去吧。",
    "阿弥陀佛，善哉善哉。悟空，不可伤人性命。",
    "大师兄，师父被妖怪抓走了！二师兄，你是谁？",
]
GPT4_LIKE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,DIGITS}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(
    control: list[str],
    plain: tuple[str, ...] = (),
    digits: int = 0,
    nfc: bool = False,
    adds_bos: bool = False,
    **special: str,
) -> PreTrainedTokenizerFast:
    """A byte-level BPE; `digits`: how many stand in one token in the way of GPT-4 (0: one, in the way of SmolLM2).

    `control` are special added tokens; `plain` are added tokens that are not special, such as "<think>" of Qwen3.
    """
    tokenizer = Tokenizer(models.BPE())
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    if digits:
        split = pre_tokenizers.Split(Regex(GPT4_LIKE.replace("DIGITS", str(digits))), "isolated")
        steps = [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    else:
        steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(LINES, trainer)
    return _wrapped(tokenizer, control, plain, adds_bos, special)


def sentencepiece_like(
    control: list[str], plain: tuple[str, ...] = (), space: str = "first", adds_bos: bool = True, **special: str
) -> PreTrainedTokenizerFast:
    """A BPE over "▁" with byte fallback; `space` says where one more "▁" goes.

    first: before a text that begins the input (Metaspace, Mistral v3). never: nowhere (Gemma, InternLM2).
    always: also after each control token (the older converted files of Llama 2 and Mistral v1).
    """
    learning = Tokenizer(models.BPE())
    learning.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    learning.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=260, show_progress=False))
    learnt = json.loads(learning.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *learnt["vocab"]]
    vocab = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    merges = [tuple(pair) for pair in learnt["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    to_space = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if space == "first":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        mark = normalizers.Replace(" ", "▁")
        prepend = [normalizers.Prepend("▁")] if space == "always" else []
        tokenizer.normalizer = normalizers.Sequence([*prepend, mark])
    tokenizer.decoder = decoders.Sequence(to_space)
    return _wrapped(tokenizer, ["<unk>", "<s>", "</s>", *control], plain, adds_bos, {"unk_token": "<unk>"} | special)


def _wrapped(
    tokenizer: Tokenizer, control: list[str], plain: tuple[str, ...], adds_bos: bool, special: dict[str, str]
) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in control])
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in plain])
    if adds_bos:  # what the tokenizer does by itself; a second BOS comes from relying on it beside a template
        bos = special["bos_token"]
        both = [(bos, tokenizer.token_to_id(bos))]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=both)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)


@dataclass(frozen=True)
class Shape:
    """A kind of chat model: how its tokenizer is made, and what a renderer must find out about its template."""

    name: str
    make: Callable[[], PreTrainedTokenizerFast]
    end_of_turn: str
    bos: str = ""  # what its prompts begin with, once
    own_system: bool = True
    opens_with_reply: bool = True
    append_only: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    before_reply: str = ""  # printed between generation prompt and reply,
    after_reply: str = ""  # and between reply and end-of-turn

    def template(self) -> str:
        return (TEMPLATES / f"{self.name}.jinja").read_text(encoding="utf-8")

    def tokenizer(self) -> PreTrainedTokenizerFast:
        return _tokenizer(self.name)

    def __str__(self) -> str:
        return self.name


@functools.cache
def _tokenizer(name: str) -> PreTrainedTokenizerFast:
    tokenizer = SHAPES[name].make()
    tokenizer.chat_template = SHAPES[name].template()
    return tokenizer


CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TURNS = ["<start_of_turn>", "<end_of_turn>"]
HEADERS = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        Shape(
            "chatml",  # pad equals eos, bos is a token that is no BOS, as in the default base
            lambda: byte_level(CHATML, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"),
            "<|im_end|>",
        ),
        Shape(
            "internlm2",
            lambda: sentencepiece_like(CHATML[1:], space="never", bos_token="<s>", eos_token="</s>", pad_token="</s>"),
            "<|im_end|>",
            bos="<s>",
        ),
        Shape(
            "qwen2_5",
            lambda: byte_level(CHATML, digits=1, nfc=True, eos_token="<|im_end|>", pad_token="<|endoftext|>"),
            "<|im_end|>",
        ),
        Shape(
            "qwen3",
            lambda: byte_level(
                CHATML, ("<think>", "</think>"), 1, True, eos_token="<|im_end|>", pad_token="<|endoftext|>"
            ),
            "<|im_end|>",
            append_only=False,
            options={"enable_thinking": False},
        ),
        Shape(
            "smollm3",
            lambda: byte_level(CHATML, ("<think>", "</think>"), 3, eos_token="<|im_end|>", pad_token="<|im_end|>"),
            "<|im_end|>",  # with thinking on as with thinking off its prompts are the beginnings of its samples
        ),
        Shape(
            "llama3",
            lambda: byte_level(HEADERS, digits=3, adds_bos=True, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"),
            "<|eot_id|>",
            bos="<|begin_of_text|>",
        ),
        Shape(
            "gemma3",
            lambda: sentencepiece_like(["<pad>", "<bos>", "<eos>", *TURNS], space="never", **GEMMA),
            "<end_of_turn>",
            bos="<bos>",
            opens_with_reply=False,
        ),
        Shape(
            "gemma2",
            lambda: sentencepiece_like(["<pad>", "<bos>", "<eos>", *TURNS], space="never", **GEMMA),
            "<end_of_turn>",
            bos="<bos>",
            own_system=False,
            opens_with_reply=False,
        ),
        Shape(
            "mistral3",
            lambda: sentencepiece_like(["[INST]", "[/INST]"], space="first", bos_token="<s>", eos_token="</s>"),
            "</s>",
            bos="<s>",
            opens_with_reply=False,
            append_only=False,
            before_reply=" ",
        ),
        Shape(
            "llama2",
            lambda: sentencepiece_like([], space="always", bos_token="<s>", eos_token="</s>"),
            "</s>",
            bos="<s>",
            opens_with_reply=False,
            before_reply=" ",
            after_reply=" ",
        ),
    )
}
GEMMA = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
