"""What was said, kept while it is said: an append-only file that a crash leaves whole; and chats for people to read.

    transcript = Transcript(run.folder / "chats")
    transcript.sync(chat, "wukong")        # whatever changed since the last call is appended, and on the disk
    load_chat(transcript.path, cast)       # Kept(turns, participants, ...), also from a saved scene

One JSON object a line: {"chat": 1, "participants", "person", "character", "scenario"} when one of them changes; each
turn as a scene has it; {"keep": N} where only the first N turns stay (after /undo, /edit, /retry); {"memory": WHO,
"summary", "dropped", "turns"} where the oldest turns no longer fit; and {"speaker", "begun"} while a reply is on its
way: the sentence that was shown now. Used by `terminal.py`.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from mrp.cast import PLAIN, Cast
from mrp.dialogue import JsonLine, Scene, Turn, read_json_lines
from mrp.errors import InputError
from mrp.files import disk_error
from mrp.play.conversation import Conversation
from mrp.play.memory import Memory, of_first_turns

SENTENCE_ENDS = ".!?。！？\n"
MODEL = "model"  # what the plain model is called on a screen


@dataclass(frozen=True)
class Kept:
    """A chat that was kept: who took part (the person last), what was said, and who answered."""

    turns: list[Turn]
    participants: list[str]
    person: str
    character: str
    scenario: str = ""
    memories: dict[str, list[Memory]] = field(default_factory=dict)


class Transcript:
    """A file in `folder`, made when the first line of the person comes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path: Path | None = None
        self._file: IO[bytes] | None = None
        self._head: dict[str, Any] = {}
        self._turns: list[Turn] = []
        self._memories: dict[str, list[Memory]] = {}
        self._begun = ""

    def sync(self, chat: Conversation, character: str) -> None:
        """Append what changed; raises `MrpError` if the disk does not take it."""
        if self.path is None and chat.last_said(chat.person) is None:
            return
        head = {"participants": list(chat.participants), "person": chat.person, "character": character}
        head["scenario"] = chat.scenario
        rows: list[dict[str, Any]] = [] if head == self._head else [{"chat": 1} | head]
        same = 0
        for old, new in zip(self._turns, chat.turns, strict=False):
            if old != new:
                break
            same += 1
        if same < len(self._turns):
            rows.append({"keep": same})
        rows += [turn.row() for turn in chat.turns[same:]]
        memories = of_first_turns(self._memories, same)  # those that the file has, read from its beginning
        for who, known in chat.memories().items():
            begun = memories.setdefault(who, [])
            at = next((k for k, memory in enumerate(known) if begun[k : k + 1] != [memory]), len(known))
            rows += [{"memory": who} | asdict(memory) for memory in known[at:]]
            begun += known[at:]
        self._write(rows)
        self._head, self._turns, self._memories, self._begun = head, list(chat.turns), memories, ""

    def piece(self, speaker: str, text: str) -> None:
        """A piece of a reply was shown; on the disk with the end of its sentence."""
        self._begun += text
        if self.path is not None and any(mark in text for mark in SENTENCE_ENDS):
            self._write([{"speaker": speaker, "begun": self._begun}])
            self._begun = ""

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, rows: Sequence[dict[str, Any]]) -> None:
        if not rows:
            return
        try:
            file = self._file or self._open()
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:
            raise disk_error(error, self.path or self.folder / "chat.jsonl") from error

    def _open(self) -> IO[bytes]:
        self.folder.mkdir(parents=True, exist_ok=True)
        name = datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
        number = 1
        while True:
            path = self.folder / (f"{name}.jsonl" if number == 1 else f"{name}-{number}.jsonl")
            try:
                self._file = path.open("xb")
            except FileExistsError:
                number += 1
                continue
            self.path = path
            return self._file


def latest_chat(folder: Path, but: Path | None = None) -> Path | None:
    """The chat in `folder` that was kept last, other than `but`."""
    paths = [path for path in folder.glob("*.jsonl") if path != but] if folder.is_dir() else []
    return max(paths, key=lambda path: (path.stat().st_mtime_ns, path.name), default=None)


def load_chat(path: Path, cast: Cast | None) -> Kept:
    """A chat from a transcript, or from a file with one scene; raises `InputError` if it is neither.

    A last line that a crash cut in two is left out, and a reply that it interrupted ends where it was shown.
    """
    lines = list(read_json_lines(path))
    if isinstance(lines[0].value, dict) and "chat" in lines[0].value:
        return _replayed(lines, path)
    from mrp.data.read import read_dialogues

    results = list(read_dialogues(path, cast))
    if len(results) != 1:
        raise InputError(
            f"{len(results)} scenes are in this file", str(path), "put the one to go on with in a file alone"
        )
    (scene,) = results
    if not isinstance(scene, Scene):
        raise InputError(f"not a chat: {scene.detail or scene.reason}", str(path), "name a file that /save wrote")
    known = [s for s in scene.participants if cast and cast.get(s)]
    person = next((s for s in reversed(scene.participants) if s not in known and s != PLAIN), scene.participants[-1])
    spoke = [t.speaker for t in scene.turns if t.speaker != person and (t.speaker in known or t.speaker == PLAIN)]
    character = spoke[-1] if spoke else next((s for s in known if s != person), PLAIN)
    participants = [*(s for s in scene.participants if s != person), person]
    return Kept(list(scene.turns), participants, person, character, scene.scenario)


def _replayed(lines: Sequence[JsonLine], path: Path) -> Kept:
    head: dict[str, Any] = {}
    turns: list[Turn] = []
    begun: list[Turn] = []
    memories: dict[str, list[Memory]] = {}
    for line in lines:
        try:
            if line.fault:
                raise ValueError(line.fault)
            row = line.value
            if "chat" in row:
                head = row
            elif "keep" in row:
                turns, begun = turns[: int(row["keep"])], []
                memories = of_first_turns(memories, len(turns))
            elif "memory" in row:
                memory = Memory(str(row["summary"]), int(row["dropped"]), int(row["turns"]))
                memories.setdefault(row["memory"], []).append(memory)
            elif "begun" in row:
                begun.append(Turn(str(row["speaker"]), str(row["begun"])))
            else:
                turns.append(_turn(row))
                begun = []
        except (ValueError, KeyError, TypeError) as error:
            if line is lines[-1]:
                break
            raise InputError(f"not a line of a chat: {error}", f"{path}:{line.number}", "delete the line") from None
    if begun and (text := "".join(turn.text for turn in begun).strip()):
        turns.append(Turn(begun[0].speaker, text))
    kept = Kept(turns, list(head["participants"]), head["person"], head["character"], head.get("scenario", ""))
    return replace(kept, memories=memories)


def _turn(row: dict[str, Any]) -> Turn:
    """What `Turn.row` wrote."""
    if "enter" in row or "leave" in row:
        return Turn(row.get("enter") or row["leave"], enters="enter" in row, leaves="leave" in row)
    return Turn(row["speaker"], row["text"])


def scene_row(scene: Scene) -> dict[str, Any]:
    """A scene as a line of a dialogue file."""
    row: dict[str, Any] = {"participants": list(scene.participants), "turns": [turn.row() for turn in scene.turns]}
    return row | ({"scenario": scene.scenario} if scene.scenario else {})


def markdown(scene: Scene, cast: Cast | None) -> str:
    """A scene for people: the names bold, a paragraph for each line of text."""
    parts = [f"*{scene.scenario.strip()}*"] if scene.scenario.strip() else []
    for turn in scene.turns:
        name = speaker_name(cast, turn.speaker)
        if turn.is_line:
            parts.append(f"**{name}:** " + turn.text.replace("\n", "  \n"))
        else:
            parts.append(f"*{name} {'comes in' if turn.enters else 'leaves'}.*")
    return "\n\n".join(parts) + "\n"


def speaker_name(cast: Cast | None, speaker: str) -> str:
    """How a speaker is called on a screen."""
    if speaker == PLAIN:
        return MODEL
    return cast.display_name(speaker) if cast else speaker
