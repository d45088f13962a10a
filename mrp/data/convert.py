"""Dialogues of any format into one that other tools read.

    convert(["wukong.jsonl", "tang.csv"], Path("out.jsonl"), "sharegpt", cast)

    messages   {"id", "messages": [{"role", "content"}], "source"}                     OpenAI's
    sharegpt   {"id", "conversations": [{"from", "value"}], "source"}
    xtuner     {"conversation": [{"system", "input", "output"}]}
    parquet    columns id, character, source, messages (a list of role and content)
    scenes     our own format, with every speaker's name

All but `scenes` have one line for each character of a scene, from that character's side (`view.py`): reading such a
line gives the same turns as that view. Beside building, which makes samples for our own training.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from mrp.cast import OTHER, Cast, Character
from mrp.data.coser import ENVIRONMENT
from mrp.data.formats import REPEATED
from mrp.data.read import ReadLine, read_lines
from mrp.data.record import Names, Rejected
from mrp.data.view import ASSISTANT, SYSTEM, USER, Message, view
from mrp.dialogue import Scene
from mrp.errors import InputError, MrpError, nearest, need_extra, raise_all
from mrp.files import replacing_binary
from mrp.report import SILENT, Reporter

FORMATS_OUT = ("messages", "sharegpt", "xtuner", "parquet", "scenes")
NOBODY = str(ASSISTANT)  # whose the replies are where no cast, no name and no file says it
NARRATORS = (ENVIRONMENT.casefold(), "narrator", "旁白")  # who tells what happens is nobody to play, without a cast
SHAREGPT_ROLES = {SYSTEM: "system", USER: "human", ASSISTANT: "gpt"}
PARQUET_ROWS = 1024
SHOWN_REJECTED = 5
REJECTED_SUFFIX = ".rejected.jsonl"

_CHINESE = re.compile("[\u3400-\u9fff]")
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Side:
    """A scene from one character's side."""

    id: str
    character: str
    source: str
    messages: list[Message]


@dataclass(slots=True)
class Converted:
    """What became of the lines: `lines` is `scenes` plus all of `rejected`; a scene gives `written` lines for its
    characters, and none where only `other_side` characters speak (with `--as`)."""

    out: str
    lines: int = 0
    scenes: int = 0
    written: int = 0
    other_side: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    characters: Counter[str] = field(default_factory=Counter)
    rejected_file: str = ""

    def as_json(self) -> dict[str, Any]:
        return {
            "out": self.out,
            "written": self.written,
            "lines": self.lines,
            "scenes": self.scenes,
            "other_side": self.other_side,
            "rejected": dict(sorted(self.rejected.items())),
            "rejected_file": self.rejected_file,
            "dropped_turns": dict(sorted(self.dropped.items())),
            "formats": dict(sorted(self.formats.items())),
            "characters": dict(sorted(self.characters.items())),
        }


def convert(
    inputs: Sequence[str | Path],
    out: Path,
    to: str,
    cast: Cast | None = None,
    as_: str | None = None,
    columns: Mapping[str, str] | None = None,
    report: Reporter = SILENT,
) -> Converted:
    """Write `out`, whole or not at all, and beside it `OUT.rejected.jsonl` where lines cannot be used.

    Without a cast everybody who is named is a character. `as_` keeps this character's side alone, and gives it the
    replies of lines that name nobody. Raises `InputError` for an unknown format or name, for files that cannot be read
    (every one), where `out` is one of them, and where nothing is left to write.
    """
    from mrp.data.hub import local_files

    if to not in FORMATS_OUT:
        raise InputError(f"unknown format {to!r}", "--to", nearest(to, FORMATS_OUT))
    if cast and as_:
        as_ = cast.find(as_, "--as").id
    rejected_path = out.with_name(out.name + REJECTED_SUFFIX)
    files = local_files(inputs, report)
    _need_other_files(files, (out, rejected_path))
    done = Converted(str(out))
    sides = Sides(cast, as_, done)
    faults: list[MrpError] = []
    first: list[Rejected] = []
    with ExitStack() as stack:
        write = stack.enter_context(_writer(to, out))
        refuse: Callable[[Rejected], None] | None = None
        for name, path in files:
            try:
                for line in _counted(name, path, cast, as_, columns, done, report):
                    if isinstance(line.result, Rejected):
                        refuse = refuse or stack.enter_context(_json_lines(rejected_path))
                        refuse(line.result)
                        first += [line.result] if len(first) < SHOWN_REJECTED else []
                    elif to == "scenes":
                        sides.write_scene(line.result, write)
                    else:
                        sides.write_each(line.result, path.stem, write)
            except InputError as error:
                faults.append(error)
        raise_all("dialogue files", faults)
        if not done.written:
            what = "no dialogue is left to write" + (f" from the side of {as_!r}" if as_ else "")
            raise_all(what, [rejected.as_error() for rejected in first])
            raise InputError(what, str(out), "name files in which a character says something")
    if refuse:
        done.rejected_file = str(rejected_path)
    else:
        rejected_path.unlink(missing_ok=True)  # of an earlier conversion: it would now tell what is not so
    _tell(done, first, report)
    return done


def _need_other_files(files: Sequence[tuple[str, Path]], written: Sequence[Path]) -> None:
    for _, path in files:
        for out in written:
            if out.exists() and path.exists() and out.samefile(path):
                what = f"{out.name} would be written over what is read"
                raise InputError(what, str(path), "choose another place for the result")


def _counted(
    name: str,
    path: Path,
    cast: Cast | None,
    as_: str | None,
    columns: Mapping[str, str] | None,
    done: Converted,
    report: Reporter,
) -> Iterator[ReadLine]:
    """The lines of a file, counted. Progress goes by lines: how far into a packed file they are, nobody knows."""
    nobody = as_ if cast or as_ else NOBODY
    with report.progress(f"reading {path.name}", path.stat().st_size if path.is_file() else 0, "B") as update:
        seen_bytes = 0
        for line in read_lines(path, cast, None, name, columns=columns, nobody=nobody):
            done.lines += 1
            if line.kind:
                done.formats[line.kind] += 1
            if isinstance(line.result, Rejected):
                done.rejected[line.result.reason] += 1
            else:
                done.scenes += 1
                done.dropped += line.dropped
                del done.dropped[REPEATED]  # nothing is lost by it
            seen_bytes += len(line.text)
            if done.lines % 1000 == 0:
                update(seen_bytes, lines=f"{done.lines:,}")
            yield line


class Sides:
    """Writes scenes, whole or from their characters' sides."""

    def __init__(self, cast: Cast | None, as_: str | None, done: Converted) -> None:
        self.cast, self.as_, self.done = cast, as_, done
        self.names = Names(cast)
        self._people: dict[tuple[str, ...], Cast] = {}

    def characters(self, scene: Scene) -> list[str]:
        """Whose sides are written."""
        found = [speaker for speaker in scene.speakers() if self.names.is_character(speaker)]
        if not self.cast:
            found = [speaker for speaker in found if speaker.casefold() not in NARRATORS]
        if self.as_:
            found = [speaker for speaker in found if speaker == self.as_]
        self.done.other_side += not found
        return found

    def write_scene(self, scene: Scene, write: Callable[[Any], None]) -> None:
        characters = self.characters(scene)
        if not characters:
            return
        turns = [turn.row() for turn in scene.turns]
        value: dict[str, Any] = {"id": scene.id} if scene.id else {}
        value["participants"] = scene.participants
        if scene.scenario:
            value["scenario"] = scene.scenario
        write(value | {"turns": turns, "source": scene.source})
        self.done.written += 1
        self.done.characters.update(characters)

    def write_each(self, scene: Scene, stem: str, write: Callable[[Any], None]) -> None:
        scene_id = scene.id or f"{stem}-{scene.source.rpartition(':')[2].replace('#', '.')}"
        for character in self.characters(scene):
            messages = self.messages(scene, character)
            # A view ends with the character's last line.
            write(Side(f"{scene_id}@{character}", character, scene.source, messages))
            self.done.written += 1
            self.done.characters[character] += 1
        ids = {speaker for speaker in scene.speakers() if self.names.is_character(speaker)}
        for turn in reversed(scene.turns):
            if turn.speaker in ids and turn.is_line:
                break
            self.done.dropped["after_last_reply"] += turn.is_line

    def messages(self, scene: Scene, character: str) -> list[Message]:
        own = [turn.speaker == character for turn in scene.turns]
        cast = self.cast or self._people_of(scene)
        messages = view(scene.turns, own, scene.participants, character, cast, scene.scenario)
        if self.cast is None and character == NOBODY:  # a name that nobody gave is no identity
            scenario = scene.scenario.strip()
            messages = [Message(SYSTEM, scenario), *messages[1:]] if scenario else messages[1:]
        return messages

    def _people_of(self, scene: Scene) -> Cast:
        """The speakers of a scene as a cast: each is told by the name alone. (Names need not be fit for ids here, so
        nothing is checked.)"""
        people = tuple(dict.fromkeys((*scene.participants, *scene.speakers())))
        if people not in self._people:
            if len(self._people) > 1000:
                self._people.clear()
            is_chinese = any(_CHINESE.search(name) for name in people) or bool(_CHINESE.search(scene.turns[0].text))
            characters = [
                Character.model_construct(id=name, name=name, aliases=[], persona=name)
                for name in people
                if name != OTHER
            ]
            self._people[people] = Cast.model_construct(
                language="zh" if is_chinese else "en", scenario="", characters=characters
            )
        return self._people[people]


# --- Writing ----------------------------------------------------------------------------------------------------------


@contextmanager
def _writer(to: str, out: Path) -> Iterator[Callable[[Any], None]]:
    if to == "parquet":
        with _parquet(out) as write:
            yield write
        return
    shape = {"messages": _as_messages, "sharegpt": _as_sharegpt, "xtuner": _as_xtuner}.get(to)
    with _json_lines(out) as write_value:
        yield (lambda side: write_value(shape(side))) if shape else write_value


@contextmanager
def _json_lines(path: Path) -> Iterator[Callable[[Any], None]]:
    with replacing_binary(path) as file:

        def write(value: Any) -> None:
            file.write(_encode(value.as_json() if isinstance(value, Rejected) else value) + b"\n")

        yield write


@contextmanager
def _parquet(out: Path) -> Iterator[Callable[[Side], None]]:
    try:
        import pyarrow as pa  # type: ignore[import-untyped]
        import pyarrow.parquet as pq  # type: ignore[import-untyped]
    except ImportError:
        raise need_extra("data", "pyarrow") from None
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    texts = [(name, pa.string()) for name in ("id", "character", "source")]
    schema = pa.schema([*texts, ("messages", pa.list_(message))])
    rows: list[dict[str, Any]] = []
    with replacing_binary(out) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(rows, schema))
            rows.clear()

        def write(side: Side) -> None:
            messages = [{"role": m.role, "content": m.text} for m in side.messages]
            rows.append({"id": side.id, "character": side.character, "source": side.source, "messages": messages})
            if len(rows) >= PARQUET_ROWS:
                flush()

        yield write
        flush()


def _as_messages(side: Side) -> dict[str, Any]:
    messages = [{"role": m.role, "content": m.text} for m in side.messages]
    return {"id": side.id, "messages": messages, "source": side.source}


def _as_sharegpt(side: Side) -> dict[str, Any]:
    messages = [{"from": SHAREGPT_ROLES[m.role], "value": m.text} for m in side.messages]
    return {"id": side.id, "conversations": messages, "source": side.source}


def _as_xtuner(side: Side) -> dict[str, Any]:
    """Pairs of input and output; the system text stands in the first, as XTuner wants it."""
    pairs: list[dict[str, str]] = []
    system = prompt = ""
    for message in side.messages:
        if message.role == SYSTEM:
            system = message.text
        elif message.role == USER:
            prompt = message.text
        else:
            pairs.append({"input": prompt, "output": message.text})
            prompt = ""
    if system:
        pairs[0] = {"system": system, **pairs[0]}
    return {"conversation": pairs}


def _tell(done: Converted, first: Sequence[Rejected], report: Reporter) -> None:
    for fault in first:
        report.warn(f"{fault.source} is left out: {fault.reason}, {fault.detail}")
    rejected = done.rejected.total()
    if rejected > len(first):
        report.warn(f"... and {rejected - len(first):,} more lines, all in {done.rejected_file}")
    report.line(f"read {done.lines:,} lines{_counts(done.formats, ': ')}")
    if rejected:
        report.line(f"left out {rejected:,} of them{_counts(done.rejected, ': ')}")
    if done.dropped:
        report.line(f"left out of the others{_counts(done.dropped, ': ')}")
    if done.other_side:
        report.line(f"{done.other_side:,} scenes have no line of a character that is wanted")
    count = len(done.characters)
    report.line(f"wrote {done.out}: {done.written:,} dialogues of {count:,} character{'s' if count != 1 else ''}")


def _counts(counts: Counter[str], before: str) -> str:
    return before + ", ".join(f"{kind} {count:,}" for kind, count in sorted(counts.items()) if count) if counts else ""
