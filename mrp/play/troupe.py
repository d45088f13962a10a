"""The Python API: a model and its characters, to talk with from a program (docs/python.md).

    troupe = mrp.load("runs/pilgrims")
    print(troupe.reply("Pigsy, any buns left?"))                    # whoever is called answers
    answer = await troupe.areply("And you?", history=answer.history, as_="wukong")

`reply` and `areply` give an `Answer`; `stream` gives the pieces as they come, for `for` and for `async for`. Nothing is
remembered between these calls: what was said before is `history`. Several threads and tasks may ask at once. `scene`
lets characters play with each other (`live_scene.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

from mrp.cast import OTHER, PLAIN
from mrp.dialogue import Turn
from mrp.errors import InputError
from mrp.play.conversation import Conversation
from mrp.play.engine import Sampling
from mrp.play.live_scene import LiveScene, SceneOptions, open_scene
from mrp.play.recall import Recall
from mrp.play.reply import Player
from mrp.play.route import Route, Router
from mrp.play.threaded import in_thread

AUTO = "auto"
Said = Turn | tuple[str, str]  # who (an id, name or alias, or somebody else's name), and what


@dataclass(frozen=True)
class Answer:
    """A character's reply. `str(answer)` is its text."""

    character: str
    text: str
    history: tuple[Turn, ...]  # everything said, the message and this reply included: the next call's `history`
    route: Route | None = None  # why this character (None: it was asked for by `as_`)
    is_cut: bool = False  # whether it ended because it was too long

    def __str__(self) -> str:
        return self.text


class Stream:
    """A reply on its way: iterate to get its pieces; then `answer` is there. `close` stops it where it is."""

    def __init__(self, chat: Conversation, character: str, route: Route | None, sampling: Sampling | None) -> None:
        self.character, self.route = character, route
        self._chat = chat
        self._pieces: Generator[str, None, None] = chat.reply(character, sampling)
        self._before = len(chat.turns)

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def __aiter__(self) -> AsyncIterator[str]:
        """The pieces, read in a thread; a task that is cancelled stops the engine at its next token."""
        return in_thread(self._pieces)

    @property
    def answer(self) -> Answer:
        """What was said so far, as an answer."""
        said = self._chat.turns[self._before :]
        text = said[0].text if said else ""
        return Answer(self.character, text, tuple(self._chat.turns), self.route, self._chat.cut)

    def close(self) -> None:
        self._pieces.close()


class Troupe:
    """The characters of a model. Free the model with `close`, or use it in a `with` block."""

    def __init__(self, player: Player, router: Router | None = None) -> None:
        self.player = player
        self.router = router or (Router(player.cast, None, player) if player.cast else None)

    @property
    def characters(self) -> list[str]:
        """The ids of the characters; none for a plain model."""
        return [c.id for c in self.player.cast] if self.player.cast else []

    def reply(
        self,
        text: str,
        as_: str = AUTO,
        *,
        history: Sequence[Said] = (),
        me: str | None = None,
        scenario: str = "",
        sampling: Sampling | None = None,
        seed: int | None = None,
    ) -> Answer:
        """The reply to `text`, said by `me` (a name, or a character that you play) after `history`.

        `as_`: an id, name or alias, or "auto": the router chooses. `seed`: equal seeds give equal replies. Raises
        `InputError` for unknown characters (with the nearest name), an empty message, and what no context holds.
        """
        stream = self.stream(text, as_, history=history, me=me, scenario=scenario, sampling=sampling, seed=seed)
        for _ in stream:
            pass
        return stream.answer

    async def areply(self, text: str, as_: str = AUTO, **given: Any) -> Answer:
        """As `reply`, for asyncio; takes the same arguments. Cancelling the task stops the reply."""
        stream = await asyncio.to_thread(self.stream, text, as_, **given)
        async for _ in stream:
            pass
        return stream.answer

    def stream(
        self,
        text: str,
        as_: str = AUTO,
        *,
        history: Sequence[Said] = (),
        me: str | None = None,
        scenario: str = "",
        sampling: Sampling | None = None,
        seed: int | None = None,
    ) -> Stream:
        """As `reply`, piece by piece; who answers (`character`, `route`) is known at once."""
        person = self._id(me) if me is not None else OTHER
        turns = [turn if isinstance(turn, Turn) else Turn(self._id(turn[0]), turn[1]) for turn in history]
        character, route = self._answers(text, as_, turns, person)
        if character == person:
            raise InputError(
                f"{character!r} cannot be you and the one who answers", "me", "choose another `as_` or `me`"
            )
        others = dict.fromkeys(t.speaker for t in turns if t.speaker not in (character, person))
        recall = Recall(self.player.cast, memory_tokens=None, seed=seed)
        chat = Conversation(self.player, [character, *others], person, scenario, recall)
        for turn in turns:
            chat.say(turn.text, turn.speaker) if turn.is_line else chat.turns.append(turn)
        chat.say(text)
        if not chat.turns[-1].text:
            raise InputError("the message is empty", "text", "write what you say")
        chat.prompt(character)  # what does not fit is told here, and not at the first piece
        sampling = sampling or Sampling.of(self.player.options)
        return Stream(chat, character, route, sampling if seed is None else replace(sampling, seed=seed))

    def scene(
        self,
        *characters: str,
        script: str | PathLike[str] | None = None,
        out: str | PathLike[str] | None = None,
        **options: Unpack[SceneOptions],
    ) -> LiveScene:
        """A scene of `characters` (nobody named: the script's, else the whole cast), which iterating plays.

        `script`: a YAML file (docs/scenes.md); `options`: its keys, which win. `out`: a file that keeps each turn as it
        happens, and goes on where it stopped if it is there. Raises `InputError` or `ManyFaults` with every fault.
        """
        paths = [Path(path) if path is not None else None for path in (script, out)]
        return open_scene(self.player, characters, paths[0], paths[1], **options)

    def route(self, text: str, current: str | None = None) -> Route:
        """Who would answer `text`, how sure that is, and why; `current` answered last."""
        if self.router is None:
            raise InputError("this model has no cast", "route", "load a run, or a model with `cast=`")
        return self.router.route(text, self._id(current) if current is not None else None)

    def close(self) -> None:
        self.player.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _answers(self, text: str, as_: str, turns: Sequence[Turn], person: str) -> tuple[str, Route | None]:
        cast = self.player.cast
        if cast is None or self.router is None:
            if as_ != AUTO:
                raise InputError("this model has no cast, so it answers as itself", "as_", "load it with `cast=`")
            return PLAIN, None
        if as_ != AUTO:
            return cast.find(as_, "as_").id, None
        allowed = [c.id for c in cast if c.id != person]
        spoke = [turn.speaker for turn in turns if turn.speaker in allowed]
        route = self.router.route(text, spoke[-1] if spoke else None, allowed)
        return route.character, route

    def _id(self, name: str) -> str:
        found = self.player.cast.get(name) if self.player.cast else None
        return found.id if found else name


def load(
    run: str | PathLike[str],
    *,
    base: str | None = None,
    cast: str | PathLike[str] | None = None,
    bits: str = "auto",
    base_url: str | None = None,
    model: str | None = None,
    options: Mapping[str, str] | None = None,
) -> Troupe:
    """Open a run file, a run folder or a model folder, as `mrp chat` does; `options` are those of `--set`.

    `base_url`: a server with the model (its `model`, where it has several) plays, and no weights are loaded here.
    Raises `InputError` if there is nothing to play in it, and for arguments that do not go together.
    """
    from mrp.play.remote_player import open_anywhere
    from mrp.play.room import room_of

    path, cast_path = Path(run), Path(cast) if cast is not None else None
    flags = dict(options or {})
    player = open_anywhere(path, url=base_url, model=model, base=base, cast=cast_path, flags=flags, bits=bits)
    return Troupe(player, room_of(path, player).router)
