"""InternLM2's tokenizer from its tokenizer.model: a fast one that loads without code from the model's folder.

    tokenizer = read_tokenizer(Path("internlm2-chat-7b"))
    write_tokenizer(tokenizer, out)                    # tokenizer.json, tokenizer_config.json

The file is a SentencePiece BPE with byte fallback that neither adds nor drops a space. In it the chat tokens are
unused pieces: their ids stand in `added_tokens_decoder` of tokenizer_config.json, else they are the last six
(<|im_start|> 92543 in the released file). Here they are special tokens, so that text never becomes one; text that
spells an unused piece ("[UNUSED_TOKEN_3]") stays text as well.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrp.errors import InputError, MrpError, need_extra, raise_all
from mrp.files import read_json, replacing, write_json

MODEL_FILE, CONFIG_FILE, FAST_FILE = "tokenizer.model", "tokenizer_config.json", "tokenizer.json"
UNK, BOS, EOS = "<unk>", "<s>", "</s>"
IM_START, IM_END = "<|im_start|>", "<|im_end|>"
CHAT_TOKENS = (IM_START, IM_END, "<|action_start|>", "<|action_end|>", "<|interpreter|>", "<|plugin|>")  # from the end
NORMAL, UNKNOWN, CONTROL, FIXED, BYTE = 1, 2, 3, 4, 6  # types of pieces in SentencePiece's file
BPE = 2  # the type of model
SPACE = "▁"
NO_LIMIT = int(1e30)  # as the releases have it: the config bounds the length
UNUSED = re.compile(r"\[UNUSED_TOKEN_\d+\]")

# What releases print; the markers say which part a person's trainer may learn.
RELEASED_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Pieces:
    """What a tokenizer.model says: (piece, score, type) by id."""

    pieces: list[tuple[str, float, int]]
    special: dict[int, str]  # id to text of every special token, the chat tokens too

    @property
    def count(self) -> int:
        return len(self.pieces)

    def whole(self) -> list[str]:
        """Pieces of several letters that are never cut ("——", "……"): they are found before anything is joined.

        Unused pieces are such too, but are left out: nobody means them by their names.
        """
        fixed = [name for i, (name, _, kind) in enumerate(self.pieces) if kind == FIXED and i not in self.special]
        return [name for name in fixed if len(name) > 1 and not UNUSED.fullmatch(name)]

    def id_of(self, name: str) -> int:
        return next(i for i, text in self.special.items() if text == name)


# -- reading ---------------------------------------------------------------------------------------------------------


def read_pieces(folder: Path) -> Pieces:
    """The pieces of `folder`/tokenizer.model. `InputError` for a file that is missing, broken or of another kind."""
    path = folder / MODEL_FILE
    if not path.is_file():
        fix = f"copy {MODEL_FILE} of the released model into the folder; it has about 1.5 MB"
        raise InputError(f"no tokenizer: there is no {MODEL_FILE}", str(folder), fix)
    pieces = _parsed(path)
    given = _given(folder / CONFIG_FILE).get("added_tokens_decoder")
    special = {i: name for i, (name, _, kind) in enumerate(pieces) if kind in (UNKNOWN, CONTROL)}
    chat = _chat_tokens(given, len(pieces), folder / CONFIG_FILE)
    return Pieces(pieces, special | chat)


def _parsed(path: Path) -> list[tuple[str, float, int]]:
    try:
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
        from sentencepiece import sentencepiece_model_pb2  # type: ignore[import-untyped]
    except ImportError as error:
        raise need_extra("train", error.name or "sentencepiece") from error
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    fix = "copy the file anew; where it is a Git LFS pointer, git lfs pull"
    try:
        model.ParseFromString(path.read_bytes())
    except (DecodeError, ValueError) as error:
        raise InputError(f"{path.name} is not a SentencePiece model", str(path), fix) from error
    pieces = [(piece.piece, piece.score, piece.type) for piece in model.pieces]
    faults = list(_faults_of(model, pieces, path))
    raise_all(f"{path.name} cannot be used", faults)
    return pieces


def _faults_of(model: Any, pieces: list[tuple[str, float, int]], path: Path) -> Iterator[MrpError]:
    """What sets a file apart from the tokenizers of the family."""
    fix = "copy tokenizer.model of the released model"
    names = [name for name, _, _ in pieces]
    if len(pieces) < 3 + 256 + len(CHAT_TOKENS) or names[:3] != [UNK, BOS, EOS]:
        yield InputError(f"it has {len(pieces)} pieces that begin with {names[:3]}", str(path), fix)
        return
    if model.trainer_spec.model_type != BPE:
        yield InputError("it is no BPE", str(path), fix)
    if sum(kind == BYTE for _, _, kind in pieces) != 256:
        yield InputError("it has no pieces for bytes", str(path), fix)
    spec = model.normalizer_spec
    if spec.precompiled_charsmap or spec.add_dummy_prefix or spec.remove_extra_whitespaces:
        yield InputError("it changes text or spaces before it cuts them", str(path), fix)


def _given(path: Path) -> dict[str, Any]:
    value = read_json(path) if path.is_file() else {}
    if not isinstance(value, dict):
        raise InputError(f"{path.name} is not a JSON object", str(path), "copy the file anew")
    return value


def _chat_tokens(given: Any, count: int, where: Path) -> dict[int, str]:
    """Id to text of the chat tokens: as `given`, the rest on the last ids."""
    chosen = {count - 1 - k: name for k, name in enumerate(CHAT_TOKENS)}
    if not isinstance(given, dict):
        return chosen
    try:
        named = {int(i): str(entry["content"]) for i, entry in given.items()}
    except (LookupError, TypeError, ValueError) as error:
        fix = "copy the file anew"
        raise InputError("the added tokens cannot be read", f"{where}: added_tokens_decoder", fix) from error
    told = {i: name for i, name in named.items() if name in CHAT_TOKENS}
    if beyond := sorted(i for i in told if not 3 <= i < count):
        what = f"{told[beyond[0]]} has id {beyond[0]}, outside the {count} pieces of {MODEL_FILE}"
        fix = f"delete added_tokens_decoder there: the chat tokens are then the last {len(CHAT_TOKENS)} pieces"
        raise InputError(what, f"{where}: added_tokens_decoder", fix)
    left = {i: name for i, name in chosen.items() if name not in told.values() and i not in told}
    return told | left


# -- the fast tokenizer ------------------------------------------------------------------------------------------------


def read_tokenizer(folder: Path) -> Any:
    """The fast tokenizer (a `PreTrainedTokenizerFast`) of an InternLM2 folder, with its chat template.

    A template of the folder's own that prints something else than the releases do is kept as it is.
    """
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=build_backend(read_pieces(folder)),
        clean_up_tokenization_spaces=False,
        **{"unk_token": UNK, "bos_token": BOS, "eos_token": EOS, "pad_token": EOS},
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    own = _own_template(folder)
    if own and not _prints_the_same(tokenizer, own):
        tokenizer.chat_template = own
    return tokenizer


def build_backend(pieces: Pieces) -> Any:
    """The `tokenizers.Tokenizer` that cuts text as SentencePiece does: the same ids, `<s>` put before them once."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    vocabulary = {pieces.special.get(i, _name(i, name)): i for i, (name, _, _) in enumerate(pieces.pieces)}
    model = models.BPE(vocabulary, list(_merges(pieces)), unk_token=UNK, byte_fallback=True, fuse_unk=True)
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Replace(" ", SPACE)
    backend.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    names = [pieces.special[i] for i in sorted(pieces.special)]
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    backend.add_tokens([AddedToken(name, special=False, normalized=False) for name in pieces.whole()])
    bos = [(BOS, pieces.id_of(BOS))]
    backend.post_processor = processors.TemplateProcessing(f"{BOS} $A", f"{BOS} $A {BOS} $B", bos)
    return backend


def _name(number: int, piece: str) -> str:
    """The name of a piece; SentencePiece never uses the one that is a null character, but the byte."""
    return f"[UNUSED_PIECE_{number}]" if piece == "\0" else piece


def _merges(pieces: Pieces) -> Iterator[tuple[str, str]]:
    """Which two pieces become one, the first that SentencePiece would join first.

    It joins the two neighbours whose union is the best-scored piece, whatever the two are; so every cut of a piece
    into two pieces is a merge. Only ordinary pieces take part: others are never made from letters.
    """
    normal = {name: i for i, (name, _, kind) in enumerate(pieces.pieces) if kind == NORMAL}
    ordinary = {name: i for name, i in normal.items() if i not in pieces.special}
    by_score = sorted(ordinary, key=lambda name: (-pieces.pieces[ordinary[name]][1], ordinary[name]))
    for name in by_score:
        cuts = [(name[:k], name[k:]) for k in range(1, len(name)) if name[:k] in ordinary and name[k:] in ordinary]
        yield from sorted(cuts, key=lambda cut: (ordinary[cut[0]], ordinary[cut[1]]))


def _own_template(folder: Path) -> str:
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    own = _given(folder / CONFIG_FILE).get("chat_template")
    return own if isinstance(own, str) else ""


def _prints_the_same(tokenizer: Any, template: str) -> bool:
    """True if `template` prints what the released one prints (or cannot be used at all)."""
    turns = [{"role": role, "content": f"[{role}] 1 "} for role in ("system", "user", "assistant", "user")]
    for messages, asks in ((turns, True), (turns[:3], False), (turns[1:], True)):
        texts = []
        for text in (RELEASED_TEMPLATE, template):
            try:
                printed = tokenizer.apply_chat_template(
                    messages, chat_template=text, tokenize=False, add_generation_prompt=asks
                )
            except Exception:  # whatever a stranger's template raises: it is of no use
                return True
            texts.append(printed)
        if texts[0] != texts[1]:
            return False
    return True


# -- writing ---------------------------------------------------------------------------------------------------------


def write_tokenizer(tokenizer: Any, out: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, for plain `AutoTokenizer.from_pretrained`.

    By hand, since transformers 5 writes a class name that version 4 does not know, and the template into a file that
    older versions do not read.
    """
    with replacing(out / FAST_FILE) as file:
        file.write(tokenizer.backend_tokenizer.to_str(pretty=True) + "\n")
    added = sorted(tokenizer.added_tokens_decoder.items())
    write_json(
        out / CONFIG_FILE,
        {
            "added_tokens_decoder": {str(i): _entry(str(token), token.special) for i, token in added},
            "bos_token": BOS,
            "chat_template": tokenizer.chat_template,
            "clean_up_tokenization_spaces": False,
            "eos_token": EOS,
            "model_max_length": NO_LIMIT,
            "pad_token": EOS,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": UNK,
        },
    )


def write_released_form(folder: Path, out: Path) -> Pieces:
    """Write the tokenizer of `folder` as InternLM2's releases have it, for XTuner and LMDeploy; returns its pieces.

    `folder` must hold tokenizer.model: there is no way back to it from tokenizer.json.
    """
    pieces = read_pieces(folder)
    own = _own_template(folder)
    template = RELEASED_TEMPLATE if not own or _prints_the_same(read_tokenizer(folder), own) else own
    special = {"bos_token": BOS, "eos_token": EOS, "pad_token": EOS, "unk_token": UNK}
    names = {"additional_special_tokens": list(CHAT_TOKENS)}
    shutil.copyfile(folder / MODEL_FILE, out / MODEL_FILE)
    write_json(out / "special_tokens_map.json", names | special)
    code = ["tokenization_internlm2.InternLM2Tokenizer", "tokenization_internlm2_fast.InternLM2TokenizerFast"]
    write_json(
        out / CONFIG_FILE,
        {
            "added_tokens_decoder": {str(i): _entry(pieces.special[i]) for i in sorted(pieces.special)},
            **names,
            "auto_map": {"AutoTokenizer": code},
            "chat_template": template,
            "clean_up_tokenization_spaces": False,
            "decode_with_prefix_space": False,
            "model_max_length": NO_LIMIT,
            "sp_model_kwargs": None,
            "tokenizer_class": "InternLM2Tokenizer",
            **special,
        },
    )
    return pieces


def _entry(name: str, is_special: bool = True) -> dict[str, Any]:
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"content": name, **flags, "special": is_special}
