"""A scene in play: who is there, what was said, whose turn it is, and each character's own prompt.

    stage = Stage(player, ScenePlan(participants=["wukong", "bajie"], turns=8))
    while not stage.over():
        choice = choose(stage)
        for piece in stage.reply(choice.speaker): print(piece, end="")

Everything that happens is an event (a small dict: a row of the scene's file): `happen` applies it and hands it to
`record`, so a stage fed with the rows of a file is the stage that wrote them. Prompts come from the same view and
renderer as the training samples; a character's prompt holds what was said while it was there, and begins as its last
one did, so an engine that keeps prefixes reads only what is new.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any

from mrp.data.view import opening_text, view_for_reply, with_notes
from mrp.dialogue import Scene, Turn
from mrp.errors import InputError
from mrp.play.engine import Sampling, Token
from mrp.play.lore import Lore, Used
from mrp.play.memory import Memory, fit, summarise
from mrp.play.reply import NOT_TEXT, Player, Prompt, Reply, names_of_others
from mrp.play.scene_plan import ScenePlan, Step

MOST_SILENCES = 2  # in a row end the scene


class Stage:
    """A scene in the making."""

    def __init__(self, player: Player, plan: ScenePlan, record: Callable[[dict[str, Any]], None] | None = None) -> None:
        if player.cast is None:
            raise InputError("this model has no cast, and a scene needs characters", "", "add --cast cast.yaml")
        self.player, self.plan, self.cast = player, plan, player.cast
        self.record = record
        self.turns: list[Turn] = []
        self.present = list(plan.participants)
        self.silences: list[str] = []  # who said nothing since the last line
        self.memories: dict[str, Memory] = {}
        self.lore: dict[str, Lore] = {}
        self.lore_used: list[Used] = []  # in the last reply
        self.memory_fault = ""  # why the last summary is the one before
        self.ended = ""  # why, once it has
        self.steps = plan.flat_steps()
        self.step = 0  # the next one
        self.tokens = 0  # of all replies
        self.guarded: Counter[str] = Counter()  # replies that were cut where another speaker's line began (law 10)
        self.prompt_tokens = 0  # of all prompts of this process: what re-reading would cost
        self.computed_tokens = 0  # of these, those that a cache of each character's last prompt does not have
        self._read: dict[str, list[int]] = {}  # what such a cache holds

    # -- what happens ---------------------------------------------------------------------------------------------

    def happen(self, event: dict[str, Any]) -> None:
        """Write an event down, then let it count."""
        if self.record:
            self.record(event)
        self.apply(event)

    def apply(self, event: dict[str, Any]) -> None:
        """Let an event count that is written down already."""
        if "text" in event:
            speaker = event["speaker"]
            self.turns.append(Turn(speaker, event["text"]))
            self.silences.clear()
            self.tokens += event.get("tokens", 0)
            self.guarded[speaker] += bool(event.get("guarded"))
        elif "enter" in event:
            self.turns.append(Turn(event["enter"], enters=True))
            self.present.append(event["enter"])
        elif "leave" in event:
            self.turns.append(Turn(event["leave"], leaves=True))
            self.present.remove(event["leave"])
        elif "silent" in event:
            self.silences.append(event["silent"])
            self.guarded[event["silent"]] += bool(event.get("guarded"))
        elif "memory" in event:
            self.memories[event["memory"]] = Memory(event["summary"], event["dropped"])
        elif "end" in event:
            self.ended = event["end"]
        if "lore" in event:
            self._lore_of(event.get("speaker") or event["silent"]).told(event["lore"])
        self.step = event.get("step", self.step - 1) + 1

    def say(self, speaker: str, text: str, **more: Any) -> None:
        """A line that a person or the script says. Raises `InputError` where the speaker is not there."""
        self._need(speaker)
        text = NOT_TEXT.sub("", text).strip()
        if not text:
            raise InputError("this line has no text", speaker, "say something, or /skip")
        self.happen({"speaker": speaker, "text": text, **more})

    def enter(self, speaker: str, **more: Any) -> None:
        if speaker in self.present:
            raise InputError(f"{self.cast.display_name(speaker)} is there already", "", "name somebody else")
        self.happen({"enter": speaker, **more})

    def leave(self, speaker: str, **more: Any) -> None:
        self._need(speaker)
        self.happen({"leave": speaker, **more})

    def skip(self, speaker: str, **more: Any) -> None:
        """A turn at which nothing is said."""
        self.happen({"silent": speaker, **more})

    def end(self, reason: str) -> None:
        self.happen({"end": reason})

    def remember(self, character: str, summary: str) -> None:
        """A person's words for what the character remembers of what its prompt no longer shows."""
        if self.cast.get(character) is None or self.memory(character).dropped == 0:
            who = self.cast.display_name(character)
            raise InputError(f"{who} still sees everything it heard", "/memory", "wait until old lines are dropped")
        clean = " ".join(NOT_TEXT.sub("", summary).split())
        self.happen({"memory": character, "summary": clean, "dropped": self.memory(character).dropped})

    def _need(self, speaker: str) -> None:
        if speaker not in self.present:
            there = ", ".join(self.cast.display_name(p) for p in self.present)
            raise InputError(f"{self.cast.display_name(speaker)} is not there", "", f"there are: {there}")

    # -- whose turn it is -----------------------------------------------------------------------------------------

    @property
    def last_line(self) -> int:
        """The number of the last turn in which something is said; -1 where none is."""
        return next((k for k in range(len(self.turns) - 1, -1, -1) if self.turns[k].is_line), -1)

    @property
    def last_speaker(self) -> str | None:
        """Whoever had the last turn, said something or not."""
        if self.silences:
            return self.silences[-1]
        return self.turns[self.last_line].speaker if self.last_line >= 0 else None

    def candidates(self) -> list[str]:
        """Who is there, can speak freely (the model or a person plays them) and has lines left."""
        said = Counter(turn.speaker for turn in self.turns if turn.is_line)
        free = [p for p in self.present if p in self.plan.persons or self.cast.get(p)]
        return [p for p in free if self.plan.each is None or said[p] < self.plan.each]

    def upcoming(self) -> Step | None:
        """The script's next step; None where it has none left, and the director decides."""
        return self.steps[self.step] if self.step < len(self.steps) else None

    def over(self) -> str:
        """Why the scene is at its end, "" while it is not."""
        if self.ended:
            return self.ended
        plan, step = self.plan, self.upcoming()
        said = sum(turn.is_line for turn in self.turns)
        if plan.line_limit is not None and said >= plan.line_limit:
            return f"{said} lines were said"
        if plan.tokens is not None and self.tokens >= plan.tokens:
            return f"{self.tokens} tokens were spoken"
        if plan.until and self.last_line >= 0 and plan.until.casefold() in self.turns[self.last_line].text.casefold():
            return f"{plan.until!r} was said"
        if len(self.silences) >= MOST_SILENCES:
            return "silence"
        if self.steps and step is None and plan.turns is None:
            return "the script is at its end"
        if (step is None or step.free) and not self.candidates():
            return "nobody is left who could speak"
        return ""

    # -- a character speaks ---------------------------------------------------------------------------------------

    def reply(self, character: str, **more: Any) -> Generator[str, None, None]:
        """The character's next line, piece by piece; it counts when the stream ends.

        If the stream is closed before (Ctrl-C), or the engine fails, nothing was said: going on says it anew.
        """
        self._need(character)
        prompt = self.asked(character)
        used = self.lore_used
        others = self.names_of_others(character)
        reply = Reply(self.player, character, prompt.ids, self.sampling(), others, prompt.messages)
        yield from reply
        self.lore_used = used  # others may have been asked for meanwhile
        self.replied(character, prompt.ids, reply.text, reply.tokens, reply.guarded, **more)

    def sampling(self) -> Sampling:
        """That of the next reply; its seed comes from the scene's and from how much was said."""
        seed = random.Random(f"{self.plan.seed}/{len(self.turns)}/{len(self.silences)}").randrange(2**31)
        return replace(Sampling.of(self.player.options), seed=seed)

    def names_of_others(self, character: str) -> list[str]:
        """Names at which a reply of the character stops."""
        return names_of_others(self.cast, self.everybody(), character)

    def everybody(self) -> list[str]:
        """Who is there, or ever was."""
        return list(dict.fromkeys([*self.plan.participants, *(turn.speaker for turn in self.turns)]))

    def replied(
        self, character: str, ids: list[int], text: str, tokens: Sequence[Token], guarded: bool, **more: Any
    ) -> None:
        """Let a reply count that was made elsewhere, after `asked`: its text ("": silence) and what the engine gave."""
        self._count(character, ids, [token.id for token in tokens if token.id is not None])
        event: dict[str, Any] = {"speaker": character, "text": text} if text else {"silent": character}
        event["tokens"] = len(tokens)
        if guarded:
            event["guarded"] = True
        if self._lore_of(character).entries:
            event["lore"] = {u.place: u.why for u in self.lore_used}
        self.happen(event | more)

    def prompt(self, character: str) -> list[int]:
        """The ids that ask for the character's next line: those of `asked`."""
        return self.asked(character).ids

    def asked(self, character: str) -> Prompt:
        """What asks for the character's next line. May first fold what no longer fits into its memory."""
        messages = view_for_reply(self.turns, self.plan.participants, character, self.cast, self.plan.scenario)
        opening = opening_text(self.cast, self.plan.scenario)
        options = self.player.options
        room = options.context_tokens - options.max_new_tokens
        self.lore_used = self._choose_lore(character, [line for m in messages[1:] for line in m.text.split("\n")], room)
        known = self._lore_of(character).note(self.lore_used)
        while True:
            memory = self.memory(character)
            ids, dropped = fit(self.player, messages, memory, room, known, opening)
            if dropped <= memory.dropped:
                shown = with_notes(messages, memory.note(self.cast.language), known, dropped)
                return Prompt(ids, self.player.template.adapted(shown, opening), dropped)
            folded, summary = messages[1 + memory.dropped : 1 + dropped], memory.summary
            if budget := min(self.plan.memory, room // 4):
                name = self.cast.display_name(character)
                summary, self.memory_fault = summarise(self.player, summary, folded, name, budget)
            self.happen({"memory": character, "summary": summary, "dropped": dropped})

    def memory(self, character: str) -> Memory:
        return self.memories.setdefault(character, Memory())

    def _choose_lore(self, character: str, lines: list[str], room: int) -> list[Used]:
        ids = self.player.template.plain.ids
        budget = min(self.plan.lore, room // 4)
        return self._lore_of(character).choose(lines, lambda text: len(ids(text)), budget, self.plan.seed)

    def _lore_of(self, character: str) -> Lore:
        if character not in self.lore:
            self.lore[character] = Lore.of(self.cast, character)
        return self.lore[character]

    def _count(self, character: str, ids: list[int], reply: list[int]) -> None:
        """Count what was read, and what of it a cache of the character's last prompt and reply has not."""
        held = self._read.get(character, [])
        same = next((k for k, (a, b) in enumerate(zip(held, ids, strict=False)) if a != b), min(len(held), len(ids)))
        self.prompt_tokens += len(ids)
        self.computed_tokens += len(ids) - min(same, len(ids) - 1)  # the last one is always computed
        self._read[character] = [*ids, *reply]

    # -- what came of it ------------------------------------------------------------------------------------------

    def scene(self, scene_id: str) -> Scene:
        """The scene so far (the form that `mrp data build` reads)."""
        return Scene(scene_id, tuple(self.plan.participants), tuple(self.turns), self.plan.scenario)

    def stats(self) -> dict[str, Any]:
        """What was said and what it cost, in numbers."""
        lines = Counter(turn.speaker for turn in self.turns if turn.is_line)
        return {
            "lines": sum(lines.values()),
            "by_speaker": dict(sorted(lines.items())),
            "reply_tokens": self.tokens,
            "guarded": {name: count for name, count in sorted(self.guarded.items()) if count},
            "prompt_tokens": self.prompt_tokens,
            "computed_tokens": self.computed_tokens,
        }
