"""What an evaluation hands to a judge: each reply in its place, with all that a judge must know.

    write_said(folder / "said.json", said_of(material, played, found))

Called at the end of `mrp eval`; `mrp judge` reads it and loads no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mrp.evaluate.lines import by_character, spread
from mrp.evaluate.voice import Voices
from mrp.judge.said import EXAMPLES, KEPT_TURNS, Person, Place, Said

if TYPE_CHECKING:
    from mrp.cast import Cast
    from mrp.evaluate.lines import Line
    from mrp.evaluate.material import Material
    from mrp.evaluate.playing import Playing


def said_of(material: Material, played: Mapping[str, Playing], found: Mapping[str, Any]) -> Said:
    """The replies of all sides in the places of held-out lines. `found`: the figures of each side."""
    cast = material.cast
    own = by_character(material.train, cast)
    people = {
        c.id: Person(c.name, cast.persona(c.id), tuple(x.text for x in spread(own[c.id], EXAMPLES, material.seed)))
        for c in cast
    }
    lines = played["tuned"].own_lines
    sounds = {side: own_voice(material.voices, lines, [a.text for a in p.own]) for side, p in played.items()}
    seen: dict[str, int] = {}
    places = []
    for k, line in enumerate(lines):
        seen[line.id] = number = seen.get(line.id, -1) + 1
        said = {side: playing.own[k].text for side, playing in played.items()}
        heard = {side: values[k] for side, values in sounds.items()}
        places.append(place_of(line, f"{line.id}#{number}", cast, said, heard))
    identity = (found.get("tuned", {}).get("identity") or {}).get("characters", {})
    gaps = {who: entry["gap"]["value"] for who, entry in identity.items() if entry.get("gap")}
    models = {side: playing.side.name for side, playing in played.items()}
    return Said(cast.language, people, tuple(places), models, material.run.folder.name, gaps)


def place_of(line: Line, place_id: str, cast: Cast, said: dict[str, str], sounds: dict[str, float]) -> Place:
    """The place of a line, as a judge sees it."""
    sample = line.sample
    before = [(cast.display_name(t.speaker), t.text) for t in sample.turns[: line.start] if t.is_line]
    scenario = sample.scenario.strip() or cast.scenario.strip()
    shown = tuple(before[-KEPT_TURNS:])
    return Place(place_id, line.scene, line.character, scenario, shown, line.text, said, sounds)


def own_voice(voices: Voices, lines: list[Line], texts: list[str]) -> list[float]:
    """How likely each text is its character's, by the classifier of voices; 0 for an empty one."""
    verdict = voices.judge(texts, "as is")
    rows = zip(verdict.probability, lines, texts, strict=True)
    return [round(row.get(line.character, 0.0), 6) if text.strip() else 0.0 for row, line, text in rows]
