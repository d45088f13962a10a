"""How much is measured: few enough for a laptop by default, or all that a published figure wants.

    counts_for(cast, full=False)        # Counts(replies=12, swapped=6, ...) for four characters

Counts depend on the cast alone, never on the clock, so that the same evaluation is the same everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

from mrp.cast import Cast

PUBLISHED = 200  # generated replies a character, from which voice figures may be published


@dataclass(frozen=True)
class Counts:
    """Most of each thing, for each character unless said otherwise."""

    lines: int  # held-out lines scored under every identity; 0: as many as `line_tokens` allow
    line_tokens: int  # tokens of that scoring, of all characters together; 0: no limit
    replies: int  # generated in the place of held-out lines
    swapped: int  # the same, told to be another
    questions: int  # about who it is
    drift_turns: int
    drift_characters: int  # of the whole cast
    scenes: int  # of several characters, of the whole cast
    scene_lines: int
    plain: int  # everyday prompts, of the whole model
    plain_tokens: int  # longest reply of the base to one of them


def counts_for(cast: Cast, full: bool, replies: int = 0, lines: int = 0) -> Counts:
    """The default counts of a cast, or those of `full`; `replies` and `lines` (not 0) take their places."""
    people = len(cast.characters)
    if full:
        made = Counts(10**6, 0, PUBLISHED, PUBLISHED // 2, 10**6, 20, people, max(12, people), 16, 10**6, 384)
    else:
        made = Counts(0, 60_000, max(4, 48 // people), max(2, 24 // people), 8, 10, min(people, 4), 4, 6, 24, 128)
    return Counts(
        lines or made.lines,
        0 if lines else made.line_tokens,
        replies or made.replies,
        max(1, replies // 2) if replies else made.swapped,
        *(made.questions, made.drift_turns, made.drift_characters, made.scenes, made.scene_lines),
        *(made.plain, made.plain_tokens),
    )
