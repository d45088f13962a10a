"""The field's formats for dialogues of one character with one person, told apart by their keys.

    {"conversation": [{"system", "input", "output"}, ...]}              xtuner
    {"messages": [{"role", "content", "name"}, ...]}                    messages    OpenAI's
    {"conversations": [{"from", "value"}, ...]}                         sharegpt
    {"instruction", "input", "output", "system", "history"}             alpaca
    {"prompt", "completion"}                                            prompt-completion

Their roles become speakers here, and are forgotten. All say in the same way who speaks: a system text that is a name or
the persona of a character (the scenario may stand below it, after an empty line) says whose replies follow, and else
they belong to the character that the file is listed under. Called by `read.py` for one line at a time.

General chat data is listed under nobody but the model itself (`cast.PLAIN`): all replies are its own, whatever names
stand there, and a system text is no identity but the scenario of the scene.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mrp.cast import OTHER, PLAIN
from mrp.data.record import BAD_CHARACTER, Faults, Names, ascii_name
from mrp.data.view import ASSISTANT, SYSTEM, USER
from mrp.dialogue import Scene, Turn
from mrp.errors import nearest

XTUNER_TURN_KEYS = ("system", "input", "output")
_XTUNER_KEYS = frozenset(XTUNER_TURN_KEYS)
MESSAGE_LISTS = ("messages", "conversations", "conversation", "dialog", "dialogue", "items")
REASONING_KEYS = ("reasoning_content", "reasoning")
NULL_KEYS = ("refusal", "audio", "annotations")  # OpenAI's, which hold nothing in a dialogue of texts
MESSAGE_TEXT_KEYS = ("content", "value", "text")
MESSAGE_KEYS = (
    *("role", "from", *MESSAGE_TEXT_KEYS, "name", "weight", "loss", "tool_calls", "function_call", "tool_call_id"),
    *(*REASONING_KEYS, *NULL_KEYS),
)
PROMPT_KEYS = ("instruction", "prompt", "query")
MORE_PROMPT_KEYS = ("input", "context")
REPLY_KEYS = ("output", "completion", "response")
EXCHANGE_KEYS = (*PROMPT_KEYS, *MORE_PROMPT_KEYS, *REPLY_KEYS, "system", "history")
# What data sets keep beside a dialogue, for people and programs; read past.
NOTE_KEYS = (
    *("id", "prompt_id", "conversation_id", "uuid", "idx", "index", "source", "dataset", "category", "topic", "tags"),
    *("language", "lang", "model", "score", "metadata", "meta"),
)
REPEATED = "repeated_system"  # counted: a system text that stands before every turn; one is read
TOOL = "tool"
ROLES = {  # as the formats write them -> what is meant
    **dict.fromkeys((SYSTEM, "developer"), SYSTEM),
    **dict.fromkeys((USER, "human"), USER),
    **dict.fromkeys((ASSISTANT, "gpt", "chatgpt", "model", "bot", "ai", "bing", "bard", "palm", "claude"), ASSISTANT),
    **dict.fromkeys((TOOL, "function", "function_call", "function_response", "observation", "ipython"), TOOL),
}


@dataclass(slots=True)
class Talk:
    """A dialogue that is being read: its lines so far, and whose the next reply is."""

    names: Names
    owner: str | None  # the character that the file is listed under, or PLAIN
    faults: Faults
    dropped: Counter[str]
    character: str | None = field(init=False)
    turns: list[Turn] = field(default_factory=list)
    scenario: str = ""
    _unnamed: tuple[str, str] = field(init=False, default=("", ""))  # the last system text that names nobody, and where
    _system: str = field(init=False, default="")  # the last system text
    _known: tuple[str, str | None, str] = field(init=False, default=("", None, ""))  # it, and what it says
    _is_told: bool = field(init=False, default=False)  # that nobody is known to reply: said once, not for each reply

    def __post_init__(self) -> None:
        self.character = self.owner or self.names.nobody or None

    def text(self, value: Any, at: str) -> str:
        """A text, which may be missing or null ("")."""
        return self.faults.text(value, at, optional=True)

    def system(self, text: str, at: str) -> None:
        """A system text: who replies from here on. A prompt that is no character's persona is left out and counted."""
        if not text:
            return
        if text == self._system:
            self.dropped[REPEATED] += 1
        self._system = text
        if self.owner == PLAIN:
            self.scenario = self.scenario or text
            if text != self.scenario:  # a scene has one
                self.dropped["system_text"] += 1
            return
        if text != self._known[0]:
            self._known = (text, *self.names.identity_and_scenario(text))
        _, named, scenario = self._known
        if scenario:
            self.scenario = self.scenario or scenario
        if (named is None and not scenario) or scenario not in ("", self.scenario):
            self.dropped["system_text"] += 1
        if self.owner is None:
            self.character = named or self.names.nobody or None
            self._unnamed = (at, text) if named is None else self._unnamed
        elif named not in (None, self.owner):
            self._other_character(text, at)

    def prompt(self, text: str, name: str = "") -> None:
        if text:
            speaker = self.names.speaker(name) if name else OTHER
            self.turns.append(Turn(OTHER if speaker == PLAIN else speaker, text))
        else:
            self.dropped["empty_prompt"] += 1

    def reply(self, text: str, at: str, name: str = "") -> None:
        if not text:
            self.dropped["empty_reply"] += 1
            return
        speaker = self._named(name, at) if name and self.owner != PLAIN else self.character
        if speaker is None and not name and not self._is_told:
            where, system = self._unnamed
            detail = f"{at} has no system text before it, and the file is listed under no character"
            if where:
                detail = f"{where} is {ascii_name(system)}: {nearest(system, self.names.known)}"
            self.faults.add("unknown-character", detail)
            self._is_told = True
        self.turns.append(Turn(speaker or OTHER, text))

    def scene(self, source: str) -> Scene:
        """Everybody who speaks is there from the start, and always a second one."""
        speakers = dict.fromkeys(turn.speaker for turn in self.turns if turn.speaker != OTHER)
        others = (OTHER,) if len(speakers) < 2 or any(turn.speaker == OTHER for turn in self.turns) else ()
        return Scene("", (*speakers, *others), tuple(self.turns), self.scenario, source)

    def _named(self, name: str, at: str) -> str | None:
        """The character whose name stands beside a reply."""
        named = self.names.character(name)
        if named is None:
            self.faults.add("unknown-character", f"{at}: {ascii_name(name)}: {nearest(name, self.names.known)}")
        elif self.owner not in (None, named):
            self._other_character(name, at)
        return named

    def _other_character(self, name: str, at: str) -> None:
        self.faults.add("other-character", f"{at} is {ascii_name(name)}, but the file is listed under {self.owner!r}")


def read_xtuner(value: Mapping[str, Any], talk: Talk) -> None:
    """XTuner's format: `system` names the character, or holds a prompt, or is missing; texts may be empty or null."""
    talk.faults.mapping(value, "", ("conversation",))
    for index, item in enumerate(talk.faults.items(value["conversation"], "conversation")):
        at = f"conversation[{index}]"
        texts = _good_texts(item)
        if texts is None:
            pair = talk.faults.mapping(item, at, XTUNER_TURN_KEYS)
            texts = [talk.text(pair.get(key), f"{at}.{key}") for key in XTUNER_TURN_KEYS]
        system, prompt, reply = texts
        talk.system(system, f"{at}.system")
        talk.prompt(prompt)
        talk.reply(reply, f"{at}.output")


def _good_texts(pair: Any) -> list[str] | None:
    """The three texts of a pair, or None where anything has to be looked at closely. For speed: most have no fault."""
    if type(pair) is not dict or not pair.keys() <= _XTUNER_KEYS:
        return None
    texts = [pair.get(key, "") for key in XTUNER_TURN_KEYS]
    for text in texts:
        if type(text) is not str:
            return None
    if BAD_CHARACTER.search("".join(texts)):
        return None
    return [text.strip() for text in texts]


def read_messages(value: Mapping[str, Any], talk: Talk) -> None:
    """OpenAI's format, and ShareGPT's: a list of messages, each with a role and a text, by the keys of either."""
    key = next(key for key in MESSAGE_LISTS if key in value)
    # Some sets repeat the first prompt beside its messages.
    known = (key, "system", "tools", "functions", *NOTE_KEYS, *(["prompt"] if key == "messages" else []))
    talk.faults.mapping(value, "", known)
    if value.get("tools") or value.get("functions"):
        talk.faults.add("tool-message", "tools are offered here")
    talk.system(talk.text(value.get("system"), "system"), "system")
    _read_message_list(value[key], key, talk)


def _read_message_list(value: Any, key: str, talk: Talk) -> None:
    for index, item in enumerate(talk.faults.items(value, key)):
        at = f"{key}[{index}]"
        message = talk.faults.mapping(item, at, MESSAGE_KEYS)
        if message:
            _read_message(message, at, talk)
        elif item == {}:
            talk.faults.add("wrong-type", f"{at} is empty")


def _read_message(message: Mapping[str, Any], at: str, talk: Talk) -> None:
    faults = talk.faults
    role_key = _one_of(message, ("role", "from"), f"{at} has", talk)
    role = faults.name(message[role_key], f"{at}.{role_key}") if role_key else ""
    meant = ROLES.get(role.casefold())
    if meant == TOOL or message.get("tool_calls") or message.get("function_call"):
        faults.add("tool-message", f"{at} calls a tool or is its answer")
        return
    text_key = _one_of(message, MESSAGE_TEXT_KEYS, f"{at} has", talk)
    text = _content(message.get(text_key), f"{at}.{text_key}", talk)
    name = faults.name(message.get("name"), f"{at}.name", optional=True)
    if len(message) > 2:
        _look_at_more(message, at, talk)
    if message.get("loss") not in (None, True):
        faults.add("wrong-type", f"{at}.loss is not true: a reply is learnt, or it is not there")
    if message.get("weight") not in (None, 1):
        faults.add("wrong-type", f"{at}.weight is not 1: a reply is learnt, or it is not there")
    if meant == SYSTEM:
        talk.system(text, f"{at}.{text_key}")
    elif meant == USER:
        talk.prompt(text, name)
    elif meant == ASSISTANT:
        talk.reply(text, at, name)
    elif role and talk.names.known and talk.names.character(role):  # role-play sets write the character's name there
        talk.reply(text, at, role)
    elif role:
        faults.add("wrong-type", f"{at}.{role_key} is {ascii_name(role)}: {nearest(role, ROLES)}")


def _look_at_more(message: Mapping[str, Any], at: str, talk: Talk) -> None:
    """What a message has beside its role and text: thoughts are counted, pictures and sounds are refused."""
    if thoughts := sum(1 for key in REASONING_KEYS if message.get(key)):
        talk.dropped["inner_thought"] += thoughts
    if more := [key for key in NULL_KEYS if message.get(key)]:
        talk.faults.add("wrong-type", f"{at} has more than text: {', '.join(more)}")


def _one_of(value: Mapping[str, Any], keys: tuple[str, ...], who_has: str, talk: Talk) -> str:
    """Which of `keys` is there; "" and a fault for none and for several."""
    found = [key for key in keys if key in value]
    if len(found) == 1:
        return found[0]
    what = f"both {found[0]} and {found[1]}" if found else f"none of {', '.join(keys)}"
    talk.faults.add("wrong-type", f"{who_has} {what}")
    return ""


def _content(value: Any, at: str, talk: Talk) -> str:
    """A text, or a list of parts of which each is a text."""
    if not isinstance(value, list):
        return talk.text(value, at)
    texts = []
    for index, item in enumerate(value):
        part = talk.faults.mapping(item, f"{at}[{index}]", ("type", "text"))
        texts.append(talk.faults.text(part.get("text"), f"{at}[{index}].text"))
    return "\n".join(text for text in texts if text)


def read_exchange(value: Mapping[str, Any], talk: Talk) -> None:
    """Alpaca's format and its kin: a prompt (instruction and input), a reply, and what was said before."""
    talk.faults.mapping(value, "", (*EXCHANGE_KEYS, *NOTE_KEYS))
    talk.system(talk.text(value.get("system"), "system"), "system")
    history = value.get("history")
    for index, item in enumerate(talk.faults.items([] if history is None else history, "history")):
        pair = talk.faults.items(item, f"history[{index}]")
        if len(pair) == 2:
            talk.prompt(talk.text(pair[0], f"history[{index}][0]"))
            talk.reply(talk.text(pair[1], f"history[{index}][1]"), f"history[{index}]")
        elif isinstance(item, list):
            talk.faults.add("wrong-type", f"history[{index}] is not a pair of prompt and reply")
    prompt_key = _one_of(value, PROMPT_KEYS, "the line has", talk)
    reply_key = _one_of(value, REPLY_KEYS, "the line has", talk)
    prompt, reply = value.get(prompt_key), value.get(reply_key)
    if isinstance(prompt, list):  # messages on both sides, as trl writes them
        _read_message_list(prompt, prompt_key, talk)
    else:
        more = [talk.text(value.get(key), key) for key in MORE_PROMPT_KEYS]
        talk.prompt("\n".join(text for text in (talk.text(prompt, prompt_key), *more) if text))
    if isinstance(reply, list):
        _read_message_list(reply, reply_key, talk)
    else:
        talk.reply(talk.text(reply, reply_key), reply_key)


# The key that tells a format, its name, and who reads it.
FORMATS: dict[str, tuple[str, Callable[[Mapping[str, Any], Talk], None]]] = {
    "conversation": ("xtuner", read_xtuner),
    "messages": ("messages", read_messages),
    "conversations": ("sharegpt", read_messages),
    "dialog": ("sharegpt", read_messages),
    "dialogue": ("sharegpt", read_messages),
    "items": ("sharegpt", read_messages),
    "instruction": ("alpaca", read_exchange),
    "prompt": ("prompt-completion", read_exchange),
    "query": ("prompt-completion", read_exchange),
}


def format_of(value: Mapping[str, Any], key: str) -> tuple[str, Callable[[Mapping[str, Any], Talk], None]]:
    """The format (its name, and who reads it) that the key of a line tells; some ShareGPT sets use XTuner's key."""
    if key == "conversation":
        items = value[key]
        first = items[0] if isinstance(items, list) and items else None
        if isinstance(first, dict) and ("from" in first or "role" in first):
            return FORMATS["conversations"]
    return FORMATS[key]
