"""THE one place where a chat template is applied: messages become token ids, with the loss mask made together.

    template = ChatTemplate(tokenizer)
    template.prompt(messages)                  # ids that ask for the next reply
    template.sample(messages, max_tokens=512)  # ids and loss mask of a dialogue whose replies are learnt

A sample's ids are, by definition, the ids that play would send (generation prompt included), then the ids that the
model should answer with, up to and including end-of-turn. What the template prints after that carries no loss.

How: the template is rendered once for each pattern of roles, with slots for the texts; so the text of people or data
never passes through the template. The string is cut at the template's control tokens; each stretch between two of
them is tokenised as the tokenizer would there, cut once more where the generation prompt ends. A control token that
stands in a text is taken apart, so it stays text.

What a template can do is found by trying it, never by a model's name; see `Traits`.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import jinja2

from mrp.cast import Cast
from mrp.data.samples import Sample
from mrp.data.view import ASSISTANT, SYSTEM, USER, Message, opening_text, view
from mrp.errors import InputError
from mrp.plain_text import PlainText, Stretch

PINNED_DATE = "2026-01-01"  # what a template that prints today's date is told: the same in training and in play
# transformers lets no function through to a template, so its clock is covered by a macro over words that do pass.
PINNED_CLOCK = """{% macro strftime_now(format) %}{% set ns = namespace(text=format) %}
{%- for code, word in pinned_words.items() %}{% set ns.text = ns.text.replace(code, word) %}{% endfor %}
{{- ns.text }}{% endmacro %}
"""
SLOT = re.compile(r"QXSLOT(\d+)Q")
THINKING_OFF: tuple[dict[str, Any], ...] = ({}, {"enable_thinking": False}, {"thinking": False})


@dataclass(frozen=True)
class Traits:
    """What was found by trying a template. Recorded with every run."""

    own_system: bool  # False: it refuses a system message, so that text is put before the first user message
    opens_with_reply: bool  # False: a dialogue that a character opens gets the scenario as a user message first
    append_only: bool  # False: it rewrites history (thinking blocks), so each reply becomes a sample of its own
    options: dict[str, Any]  # given to the template, such as {"enable_thinking": False}
    end_of_turn: str
    date: str = PINNED_DATE


@dataclass(frozen=True)
class Rendered:
    """Token ids of a dialogue; `loss[i]` says whether the model learns to predict token i."""

    input_ids: list[int]
    loss: list[bool]
    dropped_turns: int = 0  # old messages left out to stay within the length

    @property
    def labelled(self) -> int:
        return sum(self.loss)

    @property
    def replies(self) -> int:
        """How many replies are learnt."""
        return sum(now and not before for before, now in zip([False, *self.loss], self.loss, strict=False))


@dataclass(frozen=True)
class _Frame:
    """A rendered pattern of roles: template text and slots (message numbers), in order.

    `reply_starts[k]`: where the generation prompt of assistant message k ends, as (part, offset in its text).
    """

    parts: tuple[str | int, ...]
    reply_starts: dict[int, tuple[int, int]]


class ChatTemplate:
    """A tokenizer's chat template (or another `template` text for it), tried out.

    Raises `InputError` with the reason if a template cannot be used for role-play training.
    """

    def __init__(self, tokenizer: Any, template: str | None = None, where: str = "the base model's tokenizer") -> None:
        self.tokenizer = tokenizer
        self.where = where
        named = tokenizer.chat_template  # one, or several by name
        self.text: str = template or (named.get("default") if isinstance(named, dict) else named) or ""
        if not self.text:
            raise InputError(
                "the base model has no chat template",
                where,
                "take an instruct or chat model, or put a chat_template.jinja into its folder",
            )
        self.plain = PlainText(tokenizer)
        self._bare_frame = functools.lru_cache(maxsize=1024)(self._find_frame)
        self._frame = functools.lru_cache(maxsize=1024)(self._with_reply_starts)
        self.traits = self._probe()

    @property
    def end_of_turn_id(self) -> int:
        return self.plain.control[self.traits.end_of_turn]

    def stop_ids(self, generation_eos: int | Sequence[int] | None = None) -> list[int]:
        """Every id that ends a reply: end-of-turn, the tokenizer's eos, and those of a generation config."""
        ids = {self.end_of_turn_id}
        if self.tokenizer.eos_token_id is not None:
            ids.add(self.tokenizer.eos_token_id)
        ids |= {generation_eos} if isinstance(generation_eos, int) else set(generation_eos or ())
        return sorted(ids)

    def record(self) -> dict[str, Any]:
        """What a run records of its template."""
        return {"template_sha256": hashlib.sha256(self.text.encode()).hexdigest()} | asdict(self.traits)

    # -- messages to ids ------------------------------------------------------------------------------------------

    def prompt(self, messages: Sequence[Message], opening: str = "") -> list[int]:
        """The ids that ask for the reply after `messages`; `opening` is said first where the template wants a user.

        If the last message is an assistant's, they ask for another line of the same turn, as `view` joins lines.
        """
        adapted = self.adapted(messages, opening)
        if adapted and adapted[-1].role == ASSISTANT:
            return self._begun(adapted)
        frame = self._frame_for(adapted, True)
        return [i for ids, _ in self._encode(frame, adapted, {}) for i in ids]

    def prompt_within(self, messages: Sequence[Message], max_tokens: int, opening: str = "") -> tuple[list[int], int]:
        """As `prompt`, with the oldest messages (never the system message) dropped until it fits; and how many."""
        head = _head(messages)
        starts = self._starts(messages, head, len(messages))

        def from_start(k: int) -> list[int]:
            return self.prompt([*messages[:head], *messages[starts[k] :]], opening)

        fitting = _last_fitting(len(starts), lambda k: len(from_start(k)) <= max_tokens)
        if fitting:
            return from_start(fitting - 1), starts[fitting - 1] - head
        raise InputError(
            f"the persona and the last message need {len(from_start(0))} tokens, and only {max_tokens} are allowed",
            "chat.context_tokens less chat.max_new_tokens",
            "raise chat.context_tokens, or shorten the persona or the message",
        )

    def sample(self, messages: Sequence[Message], max_tokens: int | None = None, opening: str = "") -> list[Rendered]:
        """A dialogue for training: usually one `Rendered`.

        Several where the template rewrites history (one for each learnt reply) or the dialogue is longer than
        `max_tokens` (windows: each learnt reply is in exactly one, with as many whole turns before it as fit).
        Replies that do not fit even alone are in none (`render_sample` counts them).
        """
        learnt = [k for k, m in enumerate(messages) if m.loss]
        groups = [learnt] if self.traits.append_only else [[k] for k in learnt]
        return [w for group in groups if group for w in self._windows(messages, group, max_tokens, opening)]

    def texts(self, rendered: Rendered) -> list[tuple[str, bool]]:
        """A rendered sample as text again, in stretches that are learnt or not: for the eye."""
        stretches: list[tuple[list[int], bool]] = []
        for token, learnt in zip(rendered.input_ids, rendered.loss, strict=True):
            if not stretches or stretches[-1][1] != learnt:
                stretches.append(([], learnt))
            stretches[-1][0].append(token)
        return [(str(self.tokenizer.decode(ids)), learnt) for ids, learnt in stretches]

    # -- windows --------------------------------------------------------------------------------------------------

    def _windows(
        self, messages: Sequence[Message], learnt: list[int], max_tokens: int | None, opening: str
    ) -> list[Rendered]:
        """The windows that learn the replies `learnt`."""
        if max_tokens is None or self.traits.append_only:  # else it is one reply, and its window may be the whole
            whole = self._part(messages, 0, learnt[-1] + 1, learnt, opening)
            if max_tokens is None or len(whole.input_ids) <= max_tokens:
                return [whole]
        windows: list[Rendered] = []
        while learnt:
            found = self._window(messages, learnt, max_tokens, opening)
            if found is None:
                learnt = learnt[1:]  # does not fit even alone
                continue
            window, count = found
            windows.append(window)
            learnt = learnt[count:]
        return windows

    def _window(
        self, messages: Sequence[Message], learnt: list[int], max_tokens: int, opening: str
    ) -> tuple[Rendered, int] | None:
        """The window that learns the first of `learnt` and those after it that still fit; and how many they are."""
        head, reply = _head(messages), learnt[0]

        def window(start: int, end: int) -> Rendered:
            return self._part(messages, start, end, learnt, opening)

        def fits(start: int, end: int, limit: int) -> bool:
            return len(window(start, end).input_ids) <= limit

        starts = self._starts(messages, head, reply)
        if not fits(starts[0], reply + 1, max_tokens):
            # Alone after the system message; where there is none, it would answer nothing that was said.
            return (window(reply, reply + 1), 1) if head and fits(reply, reply + 1, max_tokens) else None
        limit = max_tokens
        if len(learnt) > 1:  # old turns may fill half of the room, so that new replies find the other half
            identity = sum(len(self.plain.ids(m.text)) for m in messages[:head])
            limit = (max_tokens + identity) // 2
        start = starts[max(_last_fitting(len(starts), lambda k: fits(starts[k], reply + 1, limit)), 1) - 1]
        count = _last_fitting(len(learnt), lambda k: fits(start, learnt[k] + 1, max_tokens))
        return window(start, learnt[count - 1] + 1), count

    def _starts(self, messages: Sequence[Message], head: int, end: int) -> list[int]:
        """Where `messages[head:end]` may begin when old messages are dropped: the shortest choice first."""
        any_role = head and self.traits.opens_with_reply
        return [k for k in range(end - 1, head, -1) if any_role or messages[k].role == USER] + [head]

    def _part(self, messages: Sequence[Message], start: int, end: int, learnt: Sequence[int], opening: str) -> Rendered:
        """The system message and `messages[start:end]`, with the replies `learnt` learnt."""
        head, chosen = _head(messages), set(learnt)
        start = max(start, head)
        kept = [replace(m, loss=k in chosen) for k, m in enumerate(messages[start:end], start)]
        adapted = self.adapted([*messages[:head], *kept], opening)
        frame = self._frame_for(adapted, False)
        loss_of = {k: m.loss for k, m in enumerate(adapted)}
        ids: list[int] = []
        loss: list[bool] = []
        for piece, supervised in self._encode(frame, adapted, loss_of):
            ids += piece
            loss += [supervised] * len(piece)
        return Rendered(ids, loss, start - head)

    def _begun(self, adapted: list[Message]) -> list[int]:
        """The ids of a dialogue whose last reply goes on in a new line."""
        last = len(adapted) - 1
        adapted = [*adapted[:last], replace(adapted[last], text=f"{adapted[last].text}\n")]
        ids: list[int] = []
        for piece, in_reply in self._encode(self._frame_for(adapted, False), adapted, {last: True}):
            if in_reply and piece == [self.end_of_turn_id]:
                break
            ids += piece
        return ids

    def adapted(self, messages: Sequence[Message], opening: str) -> list[Message]:
        """The messages in the form that this template takes; what a server that renders them itself should get."""
        adapted = list(messages)
        head = _head(adapted)
        first = adapted[head].role if len(adapted) > head else ASSISTANT
        may_open = self.traits.opens_with_reply and (head or not adapted)  # a reply is never the first of all messages
        if first == ASSISTANT and not may_open:
            adapted.insert(head, Message(USER, opening or "...", False))
        if head and not self.traits.own_system:
            system, user = adapted[0], adapted[1]
            adapted[:2] = [replace(user, text=f"{system.text}\n\n{user.text}")]
        return adapted

    # -- the template, rendered with slots ------------------------------------------------------------------------

    def _apply(self, roles: Sequence[str], generation: bool, options: dict[str, Any]) -> str:
        day = datetime.datetime.fromisoformat(PINNED_DATE)
        words = {f"%{code}": day.strftime(f"%{code}") for code in "aAbBcdHIjmMpSUwWxXyYZ%"}
        clock = PINNED_CLOCK if "strftime_now" in self.text else ""
        messages = [{"role": role, "content": f"QXSLOT{k}Q"} for k, role in enumerate(roles)]
        try:
            text = self.tokenizer.apply_chat_template(
                messages,
                chat_template=clock + self.text,
                tokenize=False,
                add_generation_prompt=generation,
                pinned_words=words | {code.replace("%", "%-"): word.lstrip("0") or "0" for code, word in words.items()},
                date_string=day.strftime("%d %b %Y"),
                **options,
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise _UnusableTemplate(f"it refuses {_named(roles)}: {error}") from error
        return str(text)

    def _find_frame(self, roles: tuple[str, ...], generation: bool) -> tuple[str | int, ...]:
        parts = SLOT.split(self._apply(roles, generation, self._options))
        slots = [int(part) for part in parts[1::2]]
        if sorted(slots) != list(range(len(roles))):
            raise _UnusableTemplate(f"it loses or repeats a message: of {_named(roles)} it prints those of {slots}")
        return tuple(int(part) if k % 2 else sys.intern(part) for k, part in enumerate(parts))

    def _with_reply_starts(self, roles: tuple[str, ...], generation: bool) -> _Frame:
        """The frame of `roles` with the end of each generation prompt in it (of the last reply's, if not append-only).

        In an append-only template the text before a reply tells where: it is looked up for the first reply with that
        text and for the last reply, so that a long dialogue costs a few renderings, not one for each reply.
        """
        parts = self._bare_frame(roles, generation)
        slot_at = {part: k for k, part in enumerate(parts) if isinstance(part, int)}
        starts: dict[int, tuple[int, int]] = {}
        known: dict[str, int] = {}
        for k, role in enumerate(roles):
            is_last = k == len(roles) - 1
            if role != ASSISTANT or not (is_last or self._must_append):
                continue
            at = slot_at[k] - 1
            before = str(parts[at])
            if is_last or before not in known:
                asked = self._bare_frame(roles[:k], True) if k else ("",)
                if parts[:at] != asked[:-1] or not before.startswith(str(asked[-1])):
                    raise _UnusableTemplate(f"its generation prompt is not how it begins reply {k} of {_named(roles)}")
                known[before] = len(str(asked[-1]))
            starts[k] = (at, known[before])
        return _Frame(parts, starts)

    def _frame_for(self, messages: Sequence[Message], generation: bool) -> _Frame:
        """The frame of `messages`; `InputError` for roles in an order that the template refuses."""
        try:
            return self._frame(tuple(m.role for m in messages), generation)
        except _UnusableTemplate as error:
            fix = "begin with a system message and let user and assistant take turns"
            raise InputError(f"the chat template cannot show this dialogue: {error}", self.where, fix) from error

    # -- trying the template out ----------------------------------------------------------------------------------

    def _probe(self) -> Traits:
        reasons = []
        for options in THINKING_OFF:
            self._options: dict[str, Any] = options
            self._bare_frame.cache_clear()
            self._frame.cache_clear()
            try:
                return self._probe_with(options)
            except _UnusableTemplate as error:
                reasons.append(str(error))
        raise InputError(
            f"the chat template cannot be used: {reasons[0]}",
            self.where,
            "take another base model, or put a repaired chat_template.jinja into its folder",
        )

    def _probe_with(self, options: dict[str, Any]) -> Traits:
        self._must_append = False
        own_system = self._works((SYSTEM, USER, ASSISTANT), (SYSTEM, USER))
        one = (SYSTEM, USER, ASSISTANT) if own_system else (USER, ASSISTANT)
        many = (*one, USER, ASSISTANT)
        end_of_turn = self._end_of_turn(self._frame(one, False))  # raises with the reason, as the next line does
        self._frame(many, False)
        opened = (SYSTEM, ASSISTANT, USER, ASSISTANT)
        opens = own_system and all(self._works(opened[:k], opened[: k - 1]) for k in (2, 4))
        self._must_append = True
        self._frame.cache_clear()
        tried = (many, (*many, USER, ASSISTANT), *([opened] if opens else []))
        append_only = all(self._works(roles, end_of_turn=end_of_turn) for roles in tried)
        self._must_append = append_only
        self._frame.cache_clear()
        return Traits(own_system, opens, append_only, options, end_of_turn)

    def _works(self, roles: tuple[str, ...], asked: tuple[str, ...] | None = None, end_of_turn: str = "") -> bool:
        try:
            frame = self._frame(roles, False)
            if asked is not None:
                self._frame(asked, True)
            return not end_of_turn or self._end_of_turn(frame) == end_of_turn
        except _UnusableTemplate:
            return False

    def _end_of_turn(self, frame: _Frame) -> str:
        """The control token with which the template ends each reply of `frame`; "" if they differ."""
        ends = set()
        for part, offset in frame.reply_starts.values():
            extra = str(frame.parts[part])[offset:]
            if extra.strip():
                raise _UnusableTemplate(f"it puts {extra.strip()!r} between the generation prompt and the reply")
            tail = str(frame.parts[part + 2])
            found = self.plain.control_at.search(tail)
            if found is None or tail[: found.start()].strip():
                raise _UnusableTemplate("no control token ends a reply, so a model could not learn to stop")
            ends.add(found.group())
        return ends.pop() if len(ends) == 1 else ""

    # -- text to ids ----------------------------------------------------------------------------------------------

    def _encode(
        self, frame: _Frame, messages: Sequence[Message], loss_of: dict[int, bool]
    ) -> Iterator[tuple[list[int], bool]]:
        """(ids, supervised) pieces of a whole frame with the texts of `messages` in its slots."""
        run = Stretch(self.plain)
        starts = {part: (offset, k) for k, (part, offset) in frame.reply_starts.items()}
        supervised = False
        for index, part in enumerate(frame.parts):
            if isinstance(part, int):
                run.add(messages[part].text, is_text=True)
                continue
            offset, reply = starts.get(index, (len(part), -1))
            for piece, is_control in self.plain.cut(part[:offset]):
                if not is_control:
                    run.add(piece)
                    continue
                yield from run.flush(supervised, before=piece)
                yield [self.plain.control[piece]], supervised
                supervised = supervised and piece != self.traits.end_of_turn
            if reply >= 0:
                yield from run.flush(False, cut_here=True)
                supervised = loss_of.get(reply, False)
                run.add(part[offset:])
        yield from run.flush(supervised)


def render_sample(
    template: ChatTemplate, cast: Cast, sample: Sample, max_tokens: int | None = None, identity: str = ""
) -> tuple[list[Rendered], int]:
    """A sample of the data as token ids and loss mask (usually one piece), and how many replies were too long.

    With `identity` the same lines as if the model had been told that it is that character (`view`).
    """
    character = sample.character
    messages = view(sample.turns, sample.loss, sample.participants, character, cast, sample.scenario, identity)
    pieces = template.sample(messages, max_tokens, opening_text(cast, sample.scenario, character))
    learnt = sum(piece.replies for piece in pieces)
    return pieces, sum(m.loss for m in messages) - learnt


class _UnusableTemplate(Exception):
    """Why a template (with the options tried) cannot be used."""


def _head(messages: Sequence[Message]) -> int:
    """How many system messages there are at the head (0 or 1)."""
    return 1 if messages and messages[0].role == SYSTEM else 0


def _last_fitting(count: int, fits: Callable[[int], bool]) -> int:
    """How many of `count` tries fit, where each is longer than the one before it.

    The steps double until one is too long, then halve: what does not fit is looked at only a little.
    """
    low, high = 0, 1
    while high <= count and fits(high - 1):
        low, high = high, 2 * high
    high = min(high, count + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle - 1) else (low, middle)
    return low


def _named(roles: Sequence[str]) -> str:
    """Roles for a message: "system/user/assistant"."""
    return "/".join(roles) if len(roles) <= 6 else f"{'/'.join(roles[:5])}/... ({len(roles)} messages)"
