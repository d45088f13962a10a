"""Modelfiles for Ollama: one for each character over one GGUF file.

    files = modelfiles("cast-f16.gguf", template, cast, options)     # "Modelfile.wukong": text, ...

SYSTEM is the character's identity block as training saw it, TEMPLATE the chat template in Go's language, made from what
the template prints and held against it token for token; PARAMETER lines sample as `mrp chat` does. The rules are those
of Ollama's documentation (modelfile, template) and of its parser: a text stands between three double quotes, ends at
such quotes at the end of a line, and loses characters that do not print.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from mrp.cast import NEUTRAL_NAME, Cast, Character, fill_user
from mrp.config import ChatOptions
from mrp.data.view import ASSISTANT, NAME_MARK, SYSTEM, USER, Message, opening_text, system_text
from mrp.errors import InputError
from mrp.models.gguf_vocab import adds_bos
from mrp.render import ChatTemplate

QUOTES = '"""'
SLOTS = ("QXASLOTQ", "QXBSLOTQ", "QXCSLOTQ", "QXDSLOTQ")
TRIED = (
    [Message(SYSTEM, "a b"), Message(USER, "c\n1"), Message(ASSISTANT, "d."), Message(USER, "妖怪")],
    [Message(SYSTEM, "a"), Message(USER, "b")],
    [Message(SYSTEM, "a"), Message(ASSISTANT, "b"), Message(USER, "c")],
    [Message(USER, "b")],
    [Message(USER, "b"), Message(ASSISTANT, "c"), Message(USER, "d")],
)


@dataclass(frozen=True)
class GoTemplate:
    """What stands before and after a message of each role, before the first and where the reply begins."""

    before: dict[str, str]
    after: dict[str, str]
    without_system: str  # a system block that the template prints where there is none
    generation: str

    def text(self) -> str:
        """The template in Go's language (https://pkg.go.dev/text/template) with Ollama's variables."""
        roles = "".join(
            f'{{{{ {word} eq .Role "{role}" }}}}{self.before[role]}{{{{ .Content }}}}{self.after[role]}'
            for word, role in (("if", SYSTEM), ("else if", USER), ("else if", ASSISTANT))
        )
        default = f"{{{{ if not .System }}}}{self.without_system}{{{{ end }}}}" if self.without_system else ""
        return f"{default}{{{{ range .Messages }}}}{roles}{{{{ end }}}}{{{{ end }}}}{self.generation}"

    def prints(self, messages: Sequence[Message]) -> str:
        """What it prints for `messages`, as Go would."""
        text = "" if any(m.role == SYSTEM for m in messages) else self.without_system
        text += "".join(f"{self.before[m.role]}{m.text}{self.after[m.role]}" for m in messages)
        return text + self.generation


def go_template(template: ChatTemplate) -> GoTemplate:
    """The chat template in Ollama's form, without the BOS that llama.cpp puts there by itself.

    Raises `InputError` for a template that treats messages not one by one (no system role, other words at the end).
    """
    refused = InputError(
        "this chat template cannot be written in Ollama's form: what it prints is not one piece for each message",
        template.where,
        "export with --to gguf and use llama.cpp, which reads the template itself",
    )
    if not template.traits.own_system:
        raise refused
    end = template.traits.end_of_turn
    roles = (SYSTEM, USER, ASSISTANT, USER)
    printed = _printed(template, [Message(role, slot) for role, slot in zip(roles, SLOTS, strict=True)])
    parts = re.split("|".join(SLOTS), printed)
    if len(parts) != 5 or any(end not in part for part in parts[2:]):
        raise refused
    after_user, generation = _cut_after(parts[4], end)
    after_reply, before_user = _cut_after(parts[3], end)
    before_reply = parts[2].removeprefix(after_user)
    if not parts[1].endswith(before_user):
        raise refused
    alone = _printed(template, [Message(USER, SLOTS[1])]).partition(SLOTS[1])[0]
    found = GoTemplate(
        before={SYSTEM: parts[0], USER: before_user, ASSISTANT: before_reply},
        after={SYSTEM: parts[1].removesuffix(before_user), USER: after_user, ASSISTANT: after_reply},
        without_system=alone.removesuffix(before_user),
        generation=generation,
    )
    pieces = [*found.before.values(), *found.after.values(), found.without_system, found.generation]
    cannot_stand = any("{{" in piece or QUOTES in piece for piece in pieces)
    if cannot_stand or not all(_agree(found, template, tried) for tried in TRIED):
        raise refused
    return found


def _printed(template: ChatTemplate, messages: Sequence[Message]) -> str:
    """The prompt of `messages` as text, without a BOS that the runtime adds."""
    ids = template.prompt(messages)
    if adds_bos(template.tokenizer, template):
        ids = ids[1:]
    return str(template.tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def _cut_after(text: str, end: str) -> tuple[str, str]:
    """`text` in two: up to the control token `end` and the white space behind it, and the rest."""
    at = text.index(end) + len(end)
    at += len(text[at:]) - len(text[at:].lstrip())
    return text[:at], text[at:]


def _agree(found: GoTemplate, template: ChatTemplate, messages: list[Message]) -> bool:
    """True if Ollama's prompt has the very tokens of ours (or the template refuses such a dialogue)."""
    if messages[1:2] and messages[1].role == ASSISTANT and not template.traits.opens_with_reply:
        return True
    ids = template.prompt(messages)
    ids = ids[1:] if adds_bos(template.tokenizer, template) else ids
    printed = found.prints(messages)
    same_ids = list(template.tokenizer(printed, add_special_tokens=False).input_ids) == ids
    return same_ids and printed == _printed(template, messages)


# -- the files -----------------------------------------------------------------------------------------------------


def modelfiles(
    gguf_name: str,
    template: ChatTemplate,
    cast: Cast | None,
    options: ChatOptions,
    stops: Sequence[str],
    voices: Mapping[str, str] = MappingProxyType({}),
) -> tuple[dict[str, str], list[str]]:
    """The Modelfiles by file name, and notes on what Ollama cannot keep. Without a cast there is one, "Modelfile".

    `voices`: GGUF LoRA files by character, as paths from the Modelfile.
    """
    head = [f"FROM ./{gguf_name}", f"TEMPLATE {_quoted(go_template(template).text())}"]
    parameters = {
        "temperature": options.temperature,
        "top_p": options.top_p,
        "top_k": 0,  # these three switch off what Ollama would add to the sampling of `mrp chat`
        "min_p": 0,
        "repeat_penalty": 1,
        "num_ctx": options.context_tokens,
        "num_predict": options.max_new_tokens,
    }
    head += [f"PARAMETER {name} {value}" for name, value in parameters.items()]
    head += [f"PARAMETER stop {_quoted_line(stop)}" for stop in stops]
    if cast is None:
        return {"Modelfile": "\n".join(head) + "\n"}, []
    files, notes = {}, []
    for character in cast:
        lines, said = _character_lines(character, cast, template)
        if character.id in voices:
            lines = [f"ADAPTER {voices[character.id]}", *lines]
        files[f"Modelfile.{character.id}"] = "\n".join([*head, *lines]) + "\n"
        notes += [f"{character.id}: {note}" for note in said]
    return files, notes


def _character_lines(character: Character, cast: Cast, template: ChatTemplate) -> tuple[list[str], list[str]]:
    """Identity, stops at the names of others (law 10), and greeting."""
    mark = NAME_MARK[cast.language].strip()
    others = [other.name for other in cast if other.id != character.id]
    lines = [f"PARAMETER stop {_quoted(chr(10) + name + mark)}" for name in others if not unprintable(name)]
    system, notes = holdable(system_text(cast, character.id))
    lines.append(f"SYSTEM {_quoted(system)}")
    greeting = fill_user(character.greeting, NEUTRAL_NAME[cast.language]).strip()
    if greeting:
        if not template.traits.opens_with_reply:
            lines.append(f"MESSAGE {USER} {_quoted(holdable(opening_text(cast, '', character.id))[0])}")
        said, more = holdable(greeting)
        lines.append(f"MESSAGE {ASSISTANT} {_quoted(said)}")
        notes += more
    return lines, list(dict.fromkeys(notes))


def holdable(text: str) -> tuple[str, list[str]]:
    """`text` as a Modelfile can hold it, and notes on what had to change."""
    notes = []
    held = text.replace("\r\n", "\n").replace("\r", "\n")
    if dropped := unprintable(held):
        codes = ", ".join(f"U+{ord(c):04X}" for c in dropped[:5])
        notes.append(f"Ollama drops characters that do not print ({codes})")
        held = "".join(" " if unicodedata.category(c) == "Zs" else "" if c in dropped else c for c in held)
    if QUOTES in held:
        held = re.sub('"{3,}', lambda found: "'" * len(found.group()), held)
        notes.append("three double quotes in a row would end the text, and stand there as single ones")
    return held, notes


def unprintable(text: str) -> list[str]:
    """The characters that Ollama's parser drops: all but what Go calls printable, line feed and tab."""
    kept_spaces = " \n\t"
    return sorted({c for c in text if c not in kept_spaces and unicodedata.category(c)[0] in "CZ"})


def _quoted(text: str) -> str:
    return f"{QUOTES}{text}{QUOTES}"


def _quoted_line(text: str) -> str:
    return f'"{text}"'


def usage(name: str, files: Sequence[str], cast: Cast | None) -> list[str]:
    """The commands for each character, for the card beside the files."""
    lines = ["Run these commands in this folder:", "", "```"]
    for file in files:
        model = f"{name}-{file.removeprefix('Modelfile.')}".lower() if cast else name.lower()
        lines += [f"ollama create {model} -f {file}", f"ollama run {model}"]
    lines += ["```", "", "All models share the one GGUF file; Ollama stores it once.", ""]
    lines.append(
        "What a person types reaches llama.cpp as it is: text that spells a control token of the chat template becomes "
        "one there, while `mrp chat` keeps it as text."
    )
    return lines
