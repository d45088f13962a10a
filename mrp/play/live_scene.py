"""A scene played from a program: what `mrp scene` does at a terminal, turn by turn, for `for` and for `async for`.

    scene = troupe.scene("wukong", "bajie", persons=["Innkeeper"], scenario="An inn at dusk.", turns=12)
    for turn in scene: print(turn.speaker, turn.text)        # until it is over, or a person must speak
    scene.say("Innkeeper", "Rooms are two coins.")           # scene.waits_for told who

It stands on the same stage (`scene.py`), script steps (`scene_steps.py`) and files (`scene_file.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

import pydantic

from mrp.cast import Cast
from mrp.dialogue import Turn
from mrp.errors import InputError, raise_all
from mrp.play.lore import Used
from mrp.play.memory import Memory
from mrp.play.reply import Player
from mrp.play.scene import Stage
from mrp.play.scene_file import SceneFile, export
from mrp.play.scene_plan import ScenePlan, Strategy, load_script, settled
from mrp.play.scene_steps import Due, due, perform
from mrp.play.threaded import in_thread


class SceneOptions(TypedDict, total=False):
    """The keys of a script (docs/options.md), as arguments."""

    persons: Sequence[str]  # whom your program plays; they are there from the start
    scenario: str
    director: Strategy
    seed: int
    turns: int
    each: int
    tokens: int
    until: str
    talkativeness: Mapping[str, float]
    memory: int
    lore: int
    steps: Sequence[Mapping[str, Any]]


class Spoken:
    """A line on its way: iterate to get its pieces; then `turn` is there. Closed before its end, nothing was said."""

    def __init__(self, stage: Stage, speaker: str, pieces: Generator[str, None, None]) -> None:
        self.speaker = speaker
        self._stage, self._pieces, self._before = stage, pieces, len(stage.turns)

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def __aiter__(self) -> AsyncIterator[str]:
        return in_thread(self._pieces)

    @property
    def turn(self) -> Turn | None:
        """What was said; None while it is not whole, and where nothing was."""
        return self._stage.turns[self._before] if len(self._stage.turns) > self._before else None

    def close(self) -> None:
        self._pieces.close()


class LiveScene:
    """A scene in play. One task at a time may play it; several scenes of a troupe may play at once."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self._due: Due | None = None
        self._due_at = (-1, -1, -1)

    # -- going on -------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Turn]:
        """The turns to come (lines, entrances, exits), until the scene is over or a person must speak."""
        while (turn := self.next()) is not None:
            yield turn

    async def __aiter__(self) -> AsyncIterator[Turn]:
        """The same for asyncio; a task that is cancelled stops the line at its next token, unsaid."""
        while (turn := await self.anext()) is not None:
            yield turn

    def next(self, speaker: str | None = None) -> Turn | None:
        """The next turn; with `speaker` (a character), its line now, whoever the director would name.

        None: the scene is over (`over`), a person must speak (`waits_for`), or `speaker` said nothing.
        """
        while (spoken := self._begin(speaker)) is not None:
            for _ in spoken:
                pass
            if spoken.turn is not None or speaker is not None:
                return spoken.turn
        return None

    async def anext(self, speaker: str | None = None) -> Turn | None:
        """As `next`, for asyncio."""
        while (spoken := await asyncio.to_thread(self._begin, speaker)) is not None:
            async for _ in spoken:
                pass
            if spoken.turn is not None or speaker is not None:
                return spoken.turn
        return None

    def stream(self, speaker: str | None = None) -> Spoken:
        """As `next`, the next line piece by piece; entrances and exits before it happen at once.

        Raises `InputError` where the scene is over or a person must speak.
        """
        while (spoken := self._begin(speaker)) is not None:
            if spoken.speaker:
                return spoken
            for _ in spoken:
                pass
        if reason := self.over:
            raise InputError(f"the scene is over: {reason}", "stream", "begin another one, or allow more turns")
        who = self.waits_for
        what = f"it is {who}'s turn, whom no model plays" if who else "nobody decides who speaks (director: manual)"
        raise InputError(what, "stream", f"say({who!r}, ...), or skip it" if who else "name the speaker")

    @property
    def over(self) -> str:
        """Why the scene is at its end; "" while it is not."""
        return self.stage.over()

    @property
    def waits_for(self) -> str | None:
        """Who must speak before it goes on: a person; "" for whom you name (director "manual"); None for nobody."""
        if self.over:
            return None
        found = self._next_due()
        return found.who if not found.is_fixed and (not found.who or found.who in self.stage.plan.persons) else None

    # -- what you do ----------------------------------------------------------------------------------------------

    def say(self, speaker: str, text: str) -> Turn:
        """A line that you write, for anybody who is there.

        What somebody among `persons` says opens nobody else's turn. Raises `InputError` where there is no text, or no
        room for it.
        """
        who = self._id(speaker)
        self.stage.say(who, text, **self._step_of(who))
        return self.stage.turns[-1]

    def skip(self, person: str) -> None:
        """A turn of a person at which nothing is said."""
        who = self._id(person)
        self.stage.skip(who, **self._step_of(who))

    def enter(self, name: str) -> None:
        self.stage.enter(self._id(name))

    def leave(self, name: str) -> None:
        """Whoever leaves hears nothing more until it enters again."""
        self.stage.leave(self._id(name))

    def end(self, reason: str = "a person ended it") -> None:
        self.stage.end(reason)

    # -- what there is --------------------------------------------------------------------------------------------

    @property
    def turns(self) -> tuple[Turn, ...]:
        return tuple(self.stage.turns)

    @property
    def present(self) -> tuple[str, ...]:
        """Who is there now."""
        return tuple(self.stage.present)

    def lore(self, character: str) -> list[Used]:
        """What the character's next prompt would hold of its lore, and why each."""
        return self.stage.lore(self.stage.cast.find(character, "lore").id)

    def memory(self, character: str) -> Memory:
        """What the character remembers of what its prompt no longer shows."""
        return self.stage.memory(self.stage.cast.find(character, "memory").id)

    def remember(self, character: str, summary: str) -> None:
        """Your words for it; raises `InputError` while the character still sees everything it heard."""
        self.stage.remember(self.stage.cast.find(character, "remember").id, summary)

    def save(self, path: str | Path) -> list[Path]:
        """Write it as scene JSONL, which `mrp data build` reads, and as Markdown; gives back the two files."""
        return export(self.stage, Path(path))

    # -- inside ---------------------------------------------------------------------------------------------------

    def _begin(self, speaker: str | None) -> Spoken | None:
        """The next thing, begun; None where the scene is over or a person must speak."""
        stage = self.stage
        if reason := stage.over():
            if not stage.ended:
                stage.end(reason)
            return None
        found = self._next_due()
        if speaker is None and found.is_fixed:
            return Spoken(stage, found.who if found.step and found.step.speaker else "", self._fixed(found))
        who = found.who if speaker is None else self.stage.cast.find(speaker, "speaker").id
        if not who or (speaker is None and who in stage.plan.persons):
            return None
        return Spoken(stage, who, stage.reply(who, **({} if found.is_fixed else found.more)))

    def _fixed(self, found: Due) -> Generator[str, None, None]:
        turn = perform(self.stage, found)
        if turn is not None and turn.is_line:
            yield turn.text

    def _next_due(self) -> Due:
        """What comes next, worked out once: the model may have been asked for it."""
        now = (len(self.stage.turns), len(self.stage.silences), self.stage.step)
        if self._due is None or self._due_at != now:
            self._due, self._due_at = due(self.stage), now
        return self._due

    def _step_of(self, speaker: str) -> dict[str, int]:
        """The step of the script that a line of `speaker` takes up."""
        found = None if self.over else self._next_due()
        return found.more if found and not found.is_fixed and found.who in ("", speaker) else {}

    def _id(self, name: str) -> str:
        found = self.stage.cast.get(name)
        return found.id if found else name.strip()


def open_scene(
    player: Player,
    characters: Sequence[str],
    script: Path | None = None,
    out: Path | None = None,
    **options: Unpack[SceneOptions],
) -> LiveScene:
    """A scene of `characters` (nobody: the script's, or the whole cast); `out` keeps it, and goes on if it is there.

    Raises `InputError` or `ManyFaults` with every fault of script and options, and where `out` holds another scene.
    """
    if player.cast is None:
        raise InputError("this model has no cast, and a scene needs characters", "scene", "load it with `cast=`")
    asked = _plan(player.cast, characters, script, options)
    if out is None:
        return LiveScene(Stage(player, asked))
    if not out.exists():
        return LiveScene(SceneFile.begin(out, asked).stage(player))
    file = SceneFile.resume(out)
    if (characters or script or options) and asked != file.plan:
        raise InputError("here is another scene", str(out), "name another file, or ask for this one as it was begun")
    return LiveScene(file.stage(player))


def _plan(cast: Cast, characters: Sequence[str], script: Path | None, options: SceneOptions) -> ScenePlan:
    value: dict[str, Any] = {"participants": [c.id for c in cast]}
    if script is not None:
        value = load_script(script, cast).model_dump()
    if characters:
        value["participants"] = list(characters)
    value |= options
    value |= {key: list(value[key]) for key in ("persons", "steps") if key in value}
    there = {name.casefold() for known in value["participants"] for name in _names(cast, known)}
    value["participants"] += [
        p for p in value.get("persons", []) if not {n.casefold() for n in _names(cast, p)} & there
    ]
    try:
        plan = ScenePlan.model_validate(value)
    except pydantic.ValidationError as error:
        faults = [(e["msg"].removeprefix("Value error, ").partition("|"), e["loc"]) for e in error.errors()]
        raise_all(
            "the scene cannot be played as it is asked for",
            [InputError(what, _place(*at), fix or "docs/options.md") for (what, _, fix), at in faults],
        )
        raise
    return settled(plan, cast, _place)


def _names(cast: Cast, name: str) -> tuple[str, ...]:
    found = cast.get(name)
    return found.names if found else (name.strip(),)


def _place(*at: str | int) -> str:
    return ".".join(map(str, at)) or "scene"
