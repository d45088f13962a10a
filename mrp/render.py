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
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import jinja2

from mrp.cast import Cast
from mrp.data.samples import Sample
from mrp.data.view import Message, opening_text, view
from mrp.errors import InputError

PINNED_DATE = "2026-01-01"  # what a template that prints today's date is told: the same in training and in play
SLOT = re.compile(r"QXSLOT(\d+)Q")
THINKING_OFF: tuple[dict[str, Any], ...] = ({}, {"enable_thinking": False}, {"thinking": False})
TAG_LIKE = re.compile(r"<[^\s<>]+>|\[[^\s\[\]]+\]")  # added tokens of this shape are taken apart in texts too


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
        self.text: str = template or tokenizer.chat_template or ""
        if not isinstance(self.text, str) or not self.text:
            raise InputError(
                "the base model has no chat template",
                where,
                "take an instruct or chat model, or put a chat_template.jinja into its folder",
            )
        added = tokenizer.added_tokens_decoder
        special = {str(t) for t in added.values() if t.special} | set(tokenizer.all_special_tokens)
        self._control = {name: int(tokenizer.convert_tokens_to_ids(name)) for name in special}
        self._control_at = _any_of(special)
        self._never_in_text = _any_of(special | {str(t) for t in added.values() if TAG_LIKE.fullmatch(str(t))})
        self._bare_frame = functools.lru_cache(maxsize=4096)(self._find_frame)
        self._frame = functools.lru_cache(maxsize=4096)(self._with_reply_starts)
        self.traits = self._probe()

    @property
    def end_of_turn_id(self) -> int:
        return self._control[self.traits.end_of_turn]

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
        """The ids that ask for the reply after `messages`; `opening` is said first where the template wants a user."""
        adapted = self._adapted(messages, opening)
        frame = self._frame(_roles(adapted), True)
        return [i for ids, _ in self._encode(frame, adapted, {}) for i in ids]

    def prompt_within(self, messages: Sequence[Message], max_tokens: int, opening: str = "") -> tuple[list[int], int]:
        """As `prompt`, with the oldest messages (never the system message) dropped until it fits; and how many."""
        for kept, dropped in self._without_old(messages):
            ids = self.prompt(kept, opening)
            if len(ids) <= max_tokens:
                return ids, dropped
        raise InputError(
            f"the persona and the last message need {len(ids)} tokens, and only {max_tokens} are allowed",
            "chat.context_tokens less chat.max_new_tokens",
            "raise chat.context_tokens, or shorten the persona or the message",
        )

    def sample(self, messages: Sequence[Message], max_tokens: int | None = None, opening: str = "") -> list[Rendered]:
        """A dialogue for training: usually one `Rendered`.

        Several where the template rewrites history (one for each learnt reply) or the dialogue is longer than
        `max_tokens` (windows: each learnt reply is in exactly one, with as many whole turns before it as fit).
        Replies that do not fit even alone are in none (`render_sample` counts them).
        """
        if not self.traits.append_only:
            learnt = [k for k, m in enumerate(messages) if m.loss]
            alone = [[replace(m, loss=m.loss and i == k) for i, m in enumerate(messages[: k + 1])] for k in learnt]
            return [r for one in alone for r in self._windows(one, max_tokens, opening)]
        return self._windows(list(messages), max_tokens, opening)

    def texts(self, rendered: Rendered) -> list[tuple[str, bool]]:
        """A rendered sample as text again, in stretches that are learnt or not: for the eye."""
        stretches: list[tuple[list[int], bool]] = []
        for token, learnt in zip(rendered.input_ids, rendered.loss, strict=True):
            if not stretches or stretches[-1][1] != learnt:
                stretches.append(([], learnt))
            stretches[-1][0].append(token)
        return [(str(self.tokenizer.decode(ids)), learnt) for ids, learnt in stretches]

    # -- windows --------------------------------------------------------------------------------------------------

    def _windows(self, messages: list[Message], max_tokens: int | None, opening: str) -> list[Rendered]:
        last = max((k for k, m in enumerate(messages) if m.loss), default=-1)
        messages = messages[: last + 1]
        if last < 0:
            return []
        whole = self._rendered(messages, opening)
        if max_tokens is None or len(whole.input_ids) <= max_tokens:
            return [whole]
        head = 1 if messages[0].role == "system" else 0
        windows: list[Rendered] = []
        done = head  # messages before this one are learnt already
        while True:
            reply = next((k for k in range(done, len(messages)) if messages[k].loss), None)
            if reply is None:
                return windows
            found = self._window_with(messages, head, done, reply, max_tokens, opening)
            if found is None:
                done = reply + 1  # does not fit even alone
                continue
            window, done = found
            windows.append(window)

    def _window_with(
        self, messages: list[Message], head: int, done: int, reply: int, max_tokens: int, opening: str
    ) -> tuple[Rendered, int] | None:
        """The window that learns `reply` and the replies after it that still fit; and the message after its last."""

        def window(start: int, end: int) -> Rendered:
            taken = messages[:head] + [replace(m, loss=m.loss and k >= done) for k, m in enumerate(messages)][start:end]
            return replace(self._rendered(taken, opening), dropped_turns=start - head)

        half = max_tokens // 2  # old turns may fill this much, so that new replies find room
        start = next((s for s in range(head, reply) if len(window(s, reply + 1).input_ids) <= half), None)
        if start is None:
            start = next((s for s in range(head, reply + 1) if len(window(s, reply + 1).input_ids) <= max_tokens), None)
        if start is None:
            return None
        best, end = window(start, reply + 1), reply + 1
        for k in range(reply + 1, len(messages)):
            if messages[k].loss:
                longer = window(start, k + 1)
                if len(longer.input_ids) > max_tokens:
                    break
                best, end = longer, k + 1
        return best, end

    def _rendered(self, messages: Sequence[Message], opening: str) -> Rendered:
        adapted = self._adapted(messages, opening)
        if not self.traits.append_only:
            last = len(adapted) - 1
            adapted = [m if k == last else replace(m, loss=False) for k, m in enumerate(adapted)]
        frame = self._frame(_roles(adapted), False)
        loss_of = {k: m.loss for k, m in enumerate(adapted)}
        ids: list[int] = []
        loss: list[bool] = []
        for piece, supervised in self._encode(frame, adapted, loss_of):
            ids += piece
            loss += [supervised] * len(piece)
        return Rendered(ids, loss)

    def _without_old(self, messages: Sequence[Message]) -> Iterator[tuple[list[Message], int]]:
        head = 1 if messages and messages[0].role == "system" else 0
        system, rest = list(messages[:head]), list(messages[head:])
        for dropped in range(max(len(rest), 1)):
            first = rest[dropped] if dropped < len(rest) else None
            if dropped and first and first.role != "user" and not self.traits.opens_with_reply:
                continue
            yield system + rest[dropped:], dropped

    def _adapted(self, messages: Sequence[Message], opening: str) -> list[Message]:
        """The messages in the form that this template takes."""
        adapted = list(messages)
        head = 1 if adapted and adapted[0].role == "system" else 0
        first = adapted[head].role if len(adapted) > head else "assistant"
        if first == "assistant" and not self.traits.opens_with_reply:
            adapted.insert(head, Message("user", opening or "...", False))
        if head and not self.traits.own_system:
            system, user = adapted[0], adapted[1]
            adapted[:2] = [replace(user, text=f"{system.text}\n\n{user.text}")]
        return adapted

    # -- the template, rendered with slots ------------------------------------------------------------------------

    def _apply(self, roles: Sequence[str], generation: bool, options: dict[str, Any]) -> str:
        day = datetime.datetime.fromisoformat(PINNED_DATE)
        messages = [{"role": role, "content": f"QXSLOT{k}Q"} for k, role in enumerate(roles)]
        try:
            text = self.tokenizer.apply_chat_template(
                messages,
                chat_template=self.text,
                tokenize=False,
                add_generation_prompt=generation,
                strftime_now=day.strftime,
                date_string=day.strftime("%d %b %Y"),
                **options,
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            raise _UnusableTemplate(f"it refuses {'/'.join(roles)}: {error}") from error
        return str(text)

    def _find_frame(self, roles: tuple[str, ...], generation: bool) -> tuple[str | int, ...]:
        parts = SLOT.split(self._apply(roles, generation, self._options))
        frame = tuple(int(part) if k % 2 else part for k, part in enumerate(parts))
        slots = frame[1::2]
        if sorted(slots, key=int) != list(range(len(roles))):
            printed = f"it prints the messages {list(slots)} of {len(roles)}"
            raise _UnusableTemplate(f"it loses or repeats a message of {'/'.join(roles)}: {printed}")
        return frame

    def _with_reply_starts(self, roles: tuple[str, ...], generation: bool) -> _Frame:
        """The frame of `roles` with the end of each generation prompt in it, for the replies where there is one.

        The last reply must have one; earlier ones too if the template is append-only.
        """
        parts = self._bare_frame(roles, generation)
        starts: dict[int, tuple[int, int]] = {}
        for k, role in enumerate(roles):
            if role != "assistant":
                continue
            asked = self._bare_frame(roles[:k], True) if k else ("",)
            at = len(asked) - 1
            same = parts[:at] == asked[:at] and at + 1 < len(parts) and parts[at + 1] == k
            if same and str(parts[at]).startswith(str(asked[at])):
                starts[k] = (at, len(str(asked[at])))
            elif k == len(roles) - 1 or self._must_append:
                raise _UnusableTemplate(f"its generation prompt is not how it begins reply {k} of {'/'.join(roles)}")
        return _Frame(parts, starts)

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
        own_system = self._works(("system", "user", "assistant"), ("system", "user"))
        system = ("system",) if own_system else ()
        one = (*system, "user", "assistant")
        if not own_system:
            self._frame(one, False)  # raises with the reason if this does not work either
        many = (*one, "user", "assistant")
        self._frame(many, False)
        opens = own_system and self._works(("system", "assistant", "user"), ("system", "assistant", "user"))
        opens = opens and self._works(("system", "assistant"), ("system",))
        self._must_append = True
        self._frame.cache_clear()
        append_only = self._works(many) and self._works((*many, "user", "assistant"))
        self._must_append = append_only
        self._frame.cache_clear()
        end_of_turn = self._find_end_of_turn(one)
        return Traits(own_system, opens, append_only, options, end_of_turn)

    def _works(self, roles: tuple[str, ...], asked: tuple[str, ...] | None = None) -> bool:
        try:
            self._frame(roles, False)
            if asked is not None:
                self._frame(asked, True)
        except _UnusableTemplate:
            return False
        return True

    def _find_end_of_turn(self, roles: tuple[str, ...]) -> str:
        """The control token with which the template ends the last reply of `roles`."""
        frame = self._frame(roles, False)
        reply = len(roles) - 1
        part, offset = frame.reply_starts[reply]
        extra = str(frame.parts[part])[offset:]
        if self._never_in_text.search(extra):
            raise _UnusableTemplate(f"it puts {extra.strip()!r} between the generation prompt and the reply")
        tail = "".join(str(p) for p in frame.parts[part + 2 :])
        found = self._control_at.search(tail)
        if found is None or tail[: found.start()].strip():
            raise _UnusableTemplate("no special token ends a reply, so a model could not learn to stop")
        return found.group()

    # -- text to ids ----------------------------------------------------------------------------------------------

    def _encode(
        self, frame: _Frame, messages: Sequence[Message], loss_of: dict[int, bool]
    ) -> Iterator[tuple[list[int], bool]]:
        """(ids, supervised) pieces of a whole frame with the texts of `messages` in its slots."""
        run = _Run(self)
        starts = {part: (offset, k) for k, (part, offset) in frame.reply_starts.items()}
        supervised = False
        for index, part in enumerate(frame.parts):
            if isinstance(part, int):
                run.add(messages[part].text, is_text=True)
                continue
            offset, reply = starts.get(index, (len(part), -1))
            for piece, is_control in self._cut(part[:offset]):
                if not is_control:
                    run.add(piece)
                    continue
                yield from run.flush(supervised, before=piece)
                yield [self._control[piece]], supervised
                supervised = supervised and piece != self.traits.end_of_turn
            if reply >= 0:
                yield from run.flush(False, cut_here=True)
                supervised = loss_of.get(reply, False)
                run.add(part[offset:])
        yield from run.flush(supervised)

    def _cut(self, text: str) -> Iterator[tuple[str, bool]]:
        """Template text as pieces: (control token, True) and the text between them."""
        at = 0
        for found in self._control_at.finditer(text):
            if found.start() > at:
                yield text[at : found.start()], False
            yield found.group(), True
            at = found.end()
        if at < len(text):
            yield text[at:], False

    def apart(self, text: str) -> list[str]:
        """`text` cut inside every control token in it, so that none of the pieces is one."""
        pieces, at = [], 0
        for found in self._never_in_text.finditer(text):
            pieces.append(text[at : found.start() + 1])
            at = found.start() + 1
        rest = text[at:]
        if at and self._never_in_text.search(rest):
            return [*pieces, *self.apart(rest)]
        return [*pieces, rest]

    def plain_ids(self, text: str, after: str = "") -> list[int]:
        """The ids of `text` as the tokenizer makes them after the control token `after` ("": at the very start)."""
        if not text:
            return []
        ids: list[int] = list(self.tokenizer.encode(after + text, add_special_tokens=False))
        return ids[1:] if after else ids


def render_sample(
    template: ChatTemplate, cast: Cast, sample: Sample, max_tokens: int | None = None
) -> tuple[list[Rendered], int]:
    """A sample of the data as token ids and loss mask (usually one piece), and how many replies were too long."""
    character = sample.character
    messages = view(sample.turns, sample.loss, sample.participants, character, cast, sample.scenario)
    pieces = template.sample(messages, max_tokens, opening_text(cast, sample.scenario))
    learnt = sum(_runs(piece.loss) for piece in pieces)
    return pieces, sum(m.loss for m in messages) - learnt


class _UnusableTemplate(Exception):
    """Why a template (with the options tried) cannot be used."""


class _Run:
    """A stretch of text between two control tokens, collected and then tokenised in one go.

    The stretch is cut where the generation prompt ends: that part's ids are what play sends, and the rest must go on
    from there. Where a tokenizer would merge over the cut, the rest is tokenised by itself.
    """

    def __init__(self, template: ChatTemplate) -> None:
        self.template = template
        self.after = ""  # the control token before the stretch
        self.pieces: list[str] = []  # no control token in any of them, nor over a border that must hold
        self.sent = ""  # the part of the stretch that was given out at a cut
        self.sent_ids: list[int] = []

    def add(self, text: str, is_text: bool = False) -> None:
        pieces = self.template.apart(text) if is_text else [text]
        if self.pieces:
            self.pieces[-1] += pieces[0]  # template text and the text beside it are tokenised together
            self.pieces += pieces[1:]
        else:
            self.pieces = pieces

    def flush(self, supervised: bool, before: str = "", cut_here: bool = False) -> Iterator[tuple[list[int], bool]]:
        """Give out the ids collected; `before` is the control token that ends the stretch."""
        for k, piece in enumerate(self.pieces):
            ids = self._ids_of(piece) if k == 0 else self.template.plain_ids(piece, self.after)
            if ids:
                yield ids, supervised
        if cut_here:
            self.sent = self.pieces[-1] if self.pieces else ""
            self.sent_ids = self.template.plain_ids(self.sent, self.after)
        else:
            self.sent, self.sent_ids, self.after = "", [], before
        self.pieces = []

    def _ids_of(self, piece: str) -> list[int]:
        if self.sent:
            together = self.template.plain_ids(self.sent + piece, self.after)
            if together[: len(self.sent_ids)] == self.sent_ids:
                return together[len(self.sent_ids) :]
        return self.template.plain_ids(piece, self.after)


def _runs(loss: Sequence[bool]) -> int:
    """How many replies a loss mask marks."""
    return sum(now and not before for before, now in zip([False, *loss], loss, strict=False))


def _roles(messages: Sequence[Message]) -> tuple[str, ...]:
    return tuple(m.role for m in messages)


def _any_of(names: set[str]) -> re.Pattern[str]:
    """A pattern for any of the names, the longest first; one that never matches for none."""
    ordered = sorted((n for n in names if n), key=lambda n: (-len(n), n))
    return re.compile("|".join(re.escape(n) for n in ordered) if ordered else r"(?!)")
