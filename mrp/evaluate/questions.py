"""Who are you? Who is your master? Are you B? Are you an AI?  Asked of every character, and checked by rules.

    for probe in probes(cast, "wukong", ["en"], most=12): ...     # questions that training never holds
    check(cast, probe, "I am Sun Wukong!")                        # Checked(passed=True, claims=None, disclaims=False)

The questions are the probe half of `data/identity.py`. The rules look at plain words: a name, a yes, a no. They do not
understand, so an answer in a roundabout way fails.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from mrp.cast import Cast, Character
from mrp.data.assistant import assistant_phrase, plays_a_machine
from mrp.data.identity import Language, questions_of
from mrp.evaluate.intervals import equal_shares, estimate

KINDS = ("who", "name", "introduce", "self", "other", "greeted", "ai", "master")
_HAN = re.compile(r"[\u3400-\u9fff]")
_END = r"(?=\W*$|\s*[,.;:!?…—”\")-]|\s+(?:and|but|who)\b)"
_CLAIM_EN = r"\b(?:I\s+am|I['’]m|my\s+name\s+is|I\s+am\s+called|they\s+call\s+me|call\s+me)\s+(?:called\s+|the\s+)?"
_ADVERB = "(?:便|就|正|乃|才|可|确实|当然)?"
_I_ZH = "(?:我|俺|吾|咱|在下|贫僧|老衲|小僧)"
_CLAIM_ZH = rf"(?:{_I_ZH}{_ADVERB}(?:是|叫|乃)|我的名字(?:是|叫)|我名叫)(?:那)?"
_YES = re.compile(
    r"^\W*(?:yes|yeah|aye|indeed|of\s+course|certainly|correct|right|true|that(?:['’]s|\s+is)\s+(?:right|true|correct)|"
    r"so\s+I\s+am|I\s+am(?=\W*$|[,.!]))\b|^\W*(?:是的|正是|没错|不错|当然|对[，。！]|是[，。！]|嗯|确实)",
    re.IGNORECASE,
)
_NO = re.compile(
    r"^\W*(?:no|nay|not|never|wrong)\b|\bI(?:['’]m|\s+am)\s+(?:not|no)\b|^\W*(?:不|非也|否|错|哪里)|我(?:可)?不是|并非|俺不是",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Probe:
    """A question of one `kind` to a character; `other`: the one it is taken for; `master`: whom it should name."""

    character: str
    kind: str
    question: str
    other: str = ""
    master: str = ""


@dataclass(frozen=True)
class Checked:
    """Whether an answer passed; the other member that it `claims` to be, if any; and whether an assistant speaks."""

    passed: bool
    claims: str | None
    disclaims: bool


def probes(cast: Cast, character_id: str, languages: Sequence[Language], most: int) -> list[Probe]:
    """At most `most` questions for a character: the kinds take turns, so that the first few hold each kind.

    A character that is a machine by its persona is not asked whether it is one.
    """
    character = cast[character_id]
    kinds = []
    for language in languages:
        for kind, asked in questions_of(cast, character, language, "probe"):
            if kind == "ai" and plays_a_machine(cast.persona(character_id)):
                continue
            kinds.append([_probe(cast, character_id, kind, question, words) for question, words in asked])
    return [probe for row in zip_longest(*kinds) for probe in row if probe][:most]


def _probe(cast: Cast, character_id: str, kind: str, question: str, words: dict[str, str]) -> Probe:
    other, master = (found.id if (found := cast.get(words.get(key, ""))) else "" for key in ("other", "master"))
    return Probe(character_id, kind, question, other, master)


def check(cast: Cast, probe: Probe, answer: str) -> Checked:
    """Whether `answer` is what the character would say, by the rules of the question's kind.

    who, name, introduce: it says its own name. self: it says yes or its own name, and does not say no. other: it says
    no or its own name, and does not say yes. greeted: no more than below. ai: it does not say yes. master: it says a
    name of the master that the question does not. In every kind it fails if it claims to be another member, speaks
    as an assistant, or says nothing.
    """
    own = cast[probe.character]
    claims, disclaims = claimed(cast, probe.character, answer), bool(assistant_phrase(answer))
    disclaims = disclaims and not plays_a_machine(cast.persona(own.id))
    says_own = _says(answer, own.names)
    yes, no = bool(_YES.search(answer)), bool(_NO.search(answer))
    if probe.kind in ("who", "name", "introduce"):
        passed = says_own
    elif probe.kind == "self":
        passed = (yes or says_own) and not no
    elif probe.kind == "other":
        passed = (no or says_own) and not yes
    elif probe.kind == "ai":
        passed = not yes
    elif probe.kind == "master":
        names = [n for n in cast[probe.master].names if n.casefold() not in probe.question.casefold()]
        passed = _says(answer, names)
    else:
        passed = True
    return Checked(passed and bool(answer.strip()) and not claims and not disclaims, claims, disclaims)


def question_figures(cast: Cast, asked: Sequence[Probe], answers: Sequence[str], seed: int) -> dict[str, Any]:
    """How often an answer passes, claims another member or speaks as an assistant: in all, by kind and by character
    (each character counts the same); and every answer with its verdict."""
    checked = [check(cast, probe, answer) for probe, answer in zip(asked, answers, strict=True)]
    values = {
        "passed": [float(c.passed) for c in checked],
        "claims_another": [float(bool(c.claims)) for c in checked],
        "disclaims": [float(c.disclaims) for c in checked],
    }

    def rates(chosen: Sequence[int]) -> dict[str, Any]:
        shares = equal_shares([asked[k].character for k in chosen])
        units = [f"{asked[k].character} {asked[k].question}" for k in chosen]
        figures = {n: estimate([own[k] for k in chosen], units, seed, shares, True) for n, own in values.items()}
        return {name: figure.as_json() if figure else None for name, figure in figures.items()}

    def where(key: str, value: str) -> list[int]:
        return [k for k, probe in enumerate(asked) if getattr(probe, key) == value]

    return {
        "all": rates(range(len(asked))),
        "kinds": {kind: rates(ks)["passed"] for kind in KINDS if (ks := where("kind", kind))},
        "characters": {c.id: rates(ks) for c in cast if (ks := where("character", c.id))},
        "answers": [
            {"character": p.character, "kind": p.kind, "question": p.question, "answer": answer}
            | {"passed": c.passed, "claims": c.claims}
            for p, answer, c in zip(asked, answers, checked, strict=True)
        ],
    }


def claimed(cast: Cast, character_id: str, text: str) -> str | None:
    """The id of another member that the text, in the first person, claims to be; None for nobody else."""
    for other in cast:
        if other.id != character_id and any(re.search(pattern, text, re.IGNORECASE) for pattern in _claims(other)):
            return other.id
    return None


def _claims(character: Character) -> Iterator[str]:
    for name in sorted(character.names, key=len, reverse=True):
        escaped = re.escape(name)
        if _HAN.search(name):
            yield rf"{_CLAIM_ZH}{escaped}(?!的|之|家)"
        else:
            capital = re.escape(name[0].upper() + name[1:])
            as_a_name = rf"(?-i:{escaped}|{capital})"  # "I am the master" is no claim to be Master
            yield rf"{_CLAIM_EN}{as_a_name}\b(?!['’]s){_END}"
            yield rf"{_CLAIM_ZH}\s*{as_a_name}(?!\w)"


def _says(text: str, names: Sequence[str]) -> bool:
    for name in names:
        pattern = re.escape(name) if _HAN.search(name) else rf"(?<!\w){re.escape(name)}(?!\w)"
        if re.search(pattern, text, re.IGNORECASE):
            return True
    return False
