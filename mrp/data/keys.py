"""The keys of a scene: hashes by which deciding knows what repeats what, without reading a text again.

    writer = KeyWriter(folder, Wanted.by(options), options.similarity)
    writer.add(scene, {"wukong"})           # 128 bits: equal where every view of two scenes is
    writer.close()
    Keys(folder).question                   # uint64 of each scene, read from the disk

Some keys cost time, and are made only where the options ask for them: `normal` (dedupe `normalised` and `near`),
`bands` (MinHash, for `near` and a strict split), `question` and `long` (a strict split).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from mrp.config import DataOptions
from mrp.dialogue import Scene, Turn

LONG_KEY = np.dtype([("key", "<u8"), ("scene", "<u4")])
BATCH = 1024  # scenes whose texts are hashed at once, which is several times faster than one by one
QUESTION_TOKENS = 4  # "Hello?" is everybody's question
# Scenes that are so like must not be parted by a split. Measured on real pairs: from 0.7 on they are one exchange with
# some lines more on one side; strangers stay under 0.1.
ALIKE = 0.7
encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which of the costly keys the options need."""

    normal: bool
    bands: bool
    apart: bool  # question and long lines

    @classmethod
    def by(cls, options: DataOptions) -> Wanted:
        strict = options.split == "strict" and options.held_out > 0
        near = options.dedupe == "near"
        return cls(near or options.dedupe == "normalised", near or strict, strict)


class KeyWriter:
    """Makes the keys of a part's scenes, in batches."""

    def __init__(self, folder: Path, wanted: Wanted, similarity: float) -> None:
        from mrp.data.near import banding

        self.folder, self.wanted = folder, wanted
        self._cut = banding(ALIKE, margin=0) if wanted.apart else banding(similarity)
        self._number = 0  # of the next scene
        self._who: list[str] = []  # what is waiting for its batch
        self._texts: list[str] = []
        self._questions: list[str] = []
        self._lines: list[str] = []
        self._line_scenes: list[int] = []
        self._done: dict[str, list[NDArray[Any]]] = {"normal": [], "question": [], "long": [], "bands": [], "ends": []}
        self._texts_file = (folder / "texts.bin").open("wb") if self.wanted.bands else None
        self._texts_at = 0

    def add(self, scene: Scene, characters: set[str]) -> tuple[int, int]:
        """Take a scene in which `characters` of the cast speak; gives back its content key (two times 64 bits)."""
        if self.wanted.normal or self.wanted.bands or self.wanted.apart:
            self._texts.append("\n".join([turn.text for turn in scene.turns if turn.is_line]))
            if self.wanted.normal:
                self._who.append("\n".join([f"{turn.speaker} {turn.text}" for turn in scene.turns]))
            if self.wanted.apart:
                self._questions.append(_question(scene.turns, characters))
                lines = self._texts[-1].split("\n")
                self._lines += lines
                self._line_scenes += [self._number] * len(lines)
            if len(self._texts) == BATCH:
                self._flush()
        self._number += 1
        return content_key(scene)

    def close(self) -> None:
        """Write everything. Nothing is written for keys that are not wanted."""
        self._flush()
        if self._texts_file:
            self._texts_file.close()
        for name, arrays in self._done.items():
            if arrays:
                whole = np.concatenate(arrays)  # of bands, each is read alone later
                np.save(self.folder / f"{name}.npy", np.asfortranarray(whole) if name == "bands" else whole)

    def _flush(self) -> None:
        from mrp.data.near import band_keys, line_keys, signatures, text_keys

        if self.wanted.normal:
            self._done["normal"].append(text_keys(self._who))
        if self.wanted.apart:
            has = np.array([bool(question) for question in self._questions], bool)
            self._done["question"].append(np.where(has, text_keys(self._questions), np.uint64(0)))
            keys, places = line_keys(self._lines)
            table = np.empty(len(keys), LONG_KEY)
            table["key"], table["scene"] = keys, np.array(self._line_scenes, np.uint32)[places]
            self._done["long"].append(table)
        if self.wanted.bands and self._texts_file:
            self._done["bands"].append(band_keys(signatures(self._texts), self._cut))
            ends = []
            for text in self._texts:
                self._texts_at += self._texts_file.write(text.encode("utf-8"))
                ends.append(self._texts_at)
            self._done["ends"].append(np.array(ends, np.uint64))
        self._who, self._texts, self._questions, self._lines, self._line_scenes = [], [], [], [], []


class Keys:
    """The keys of a part on the disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def array(self, name: str) -> NDArray[Any]:
        """`normal`, `question` (0: none), `bands` (scenes, bands): uint64; `long`: `LONG_KEY`; read by need."""
        found: NDArray[Any] = np.load(self.folder / f"{name}.npy", mmap_mode="r")
        return found

    def text(self, scene: int) -> str:
        """All that is said in a scene (only where `bands` were made)."""
        start = int(self._ends[scene - 1]) if scene else 0
        return self._texts[start : int(self._ends[scene])].tobytes().decode("utf-8")

    @cached_property
    def _texts(self) -> NDArray[np.uint8]:
        path = self.folder / "texts.bin"
        return np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)

    @cached_property
    def _ends(self) -> NDArray[np.uint64]:
        found: NDArray[np.uint64] = np.load(self.folder / "ends.npy", mmap_mode="r")
        return found


def content_key(scene: Scene) -> tuple[int, int]:
    """A hash of all that a view of the scene shows: participants in any order, adjacent lines of a speaker as one."""
    turns: list[list[Any]] = []
    for turn in scene.turns:
        if turns and turn.is_line and turns[-1][0] == turn.speaker and not turns[-1][1]:
            turns[-1][2] += "\n" + turn.text
        else:
            turns.append([turn.speaker, "leaves" if turn.leaves else turn.enters, turn.text])
    value = encode([sorted(scene.participants), scene.scenario, turns])
    digest = hashlib.blake2b(value, digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def id_key(scene_id: str) -> int:
    """64 bits of a scene's id."""
    return int.from_bytes(hashlib.blake2b(scene_id.encode(), digest_size=8).digest(), "little")


def _question(turns: tuple[Turn, ...], characters: set[str]) -> str:
    """What is said before the first line of any character; "" where that is nobody's, or too short to tell."""
    before: list[str] = []
    for turn in turns:
        if turn.speaker in characters and turn.is_line:
            break
        before.append(turn.text)
    text = "\n".join(before)
    return text if _weight(text) >= QUESTION_TOKENS else ""


def _weight(text: str) -> int:
    """About how many syllables or words: a CJK character counts one, others a quarter each."""
    wide = (len(text.encode("utf-8")) - len(text)) >> 1
    return wide + (len(text) - wide) // 4
