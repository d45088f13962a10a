"""Does a character know its lore? Questions with known answers, made of the cast's lore entries.

    questions = lore_questions(cast)                 # one for each entry and key
    recalled(questions[0].facts, answer)             # share of the entry's own words that the answer has

Recall of words is no understanding: so beside it stands what the same answer recalls of the other entries, which
chance and the cast's common words alone give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mrp.cast import Cast
from mrp.evaluate.intervals import difference, estimate
from mrp.evaluate.words import words

ASK = {"en": "What can you tell me about {key}?", "zh": "说说{key}吧。"}
_COMMON = set(
    words(
        "the a an and or of to in on at by for with from his her its their he she it they is are was were be been "
        "has have had that this these those as who which what when where now not no do does did can will would "
        "him them into out up "
        "的 了 是 在 和 与 他 她 它 们 这 那 一 有 不 也 就 都 之 而 其 于 以"
    )
)


@dataclass(frozen=True)
class LoreQuestion:
    """A question to `character`, and the `facts`: words of the entry's text that the question does not give away."""

    character: str
    question: str
    facts: frozenset[str]


def lore_questions(cast: Cast) -> list[LoreQuestion]:
    """One for each key of each entry that has words of its own; entries known always have no key and none."""
    names = {word for c in cast for name in c.names for word in words(name)}
    found = []
    for character in cast:
        for entry in character.lore:
            for key in entry.keys:
                question = ASK[cast.language].format(key=key)
                facts = frozenset(words(entry.text)) - _COMMON - names - set(words(question))
                if facts:
                    found.append(LoreQuestion(character.id, question, facts))
    return found


def recalled(facts: frozenset[str], answer: str) -> float:
    return len(facts & set(words(answer))) / len(facts)


def lore_figures(questions: Sequence[LoreQuestion], answers: Sequence[str], seed: int) -> dict[str, Any] | None:
    """`recall` of the asked entry, `others`: of the entries of other characters, and `gain`, the paired difference.

    None for a cast without lore.
    """
    if not questions:
        return None
    own = [recalled(q.facts, a) for q, a in zip(questions, answers, strict=True)]
    elsewhere = []
    for q, a in zip(questions, answers, strict=True):
        rest = [recalled(o.facts - q.facts, a) for o in questions if o.character != q.character and o.facts - q.facts]
        elsewhere.append(sum(rest) / len(rest) if rest else 0.0)
    units = [f"{q.character} {sorted(q.facts)}" for q in questions]
    found: dict[str, Any] = {"questions": len(questions)}
    for name, values in (("recall", own), ("others", elsewhere), ("gain", difference(own, elsewhere))):
        figure = estimate(values, units, seed)
        found[name] = figure.as_json() if figure else None
    return found
