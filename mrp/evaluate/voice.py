"""Whose voice is it? A classifier of texts, trained on the characters' training lines, judges what a model says.

    voice = Voices(train_lines, cast)
    voice.judge(["Oof, my feet."], "as is")         # a Verdict: whom each text sounds like, and how surely

Character and word n-grams (TF-IDF) under logistic regression. It is tested on real held-out lines first: how often it
is right there is the ceiling for any model. Three ways of looking: texts as they are, with names, titles and signature
words masked (`words.py`), and the first ten words alone (so that length tells nothing).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mrp.cast import Cast
from mrp.errors import InputError, need_extra
from mrp.evaluate.intervals import Estimate, equal_shares, estimate
from mrp.evaluate.lines import Line
from mrp.evaluate.words import Masking, first_words, signature_words, words

VIEWS = ("as is", "masked", "ten words")
FIRST = 10
SURE = 0.5  # a leak: somebody else has more than this share of the probability
RUN = 8  # so many words in a row out of one training line are copied


@dataclass(frozen=True)
class Verdict:
    """Of N texts: whom each sounds like most, and whether another than `own` sounds out with certainty (a leak)."""

    picked: list[str]
    probability: list[dict[str, float]]

    def leaks(self, own: Sequence[str]) -> list[bool]:
        return [
            any(p > SURE for who, p in row.items() if who != mine)
            for row, mine in zip(self.probability, own, strict=True)
        ]


class Classifier:
    """Texts of characters, learnt; empty texts sound like nobody in particular."""

    def __init__(self, texts: Sequence[str], characters: Sequence[str], seed: int = 0) -> None:
        try:
            from sklearn.feature_extraction.text import TfidfVectorizer  # type: ignore[import-untyped]
            from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
            from sklearn.pipeline import FeatureUnion, make_pipeline  # type: ignore[import-untyped]
        except ImportError:
            raise need_extra("eval", "scikit-learn") from None
        features = FeatureUnion(
            [
                ("characters", TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True)),
                ("words", TfidfVectorizer(analyzer=_grams, sublinear_tf=True)),
            ]
        )
        regression = LogisticRegression(C=10.0, class_weight="balanced", max_iter=2000, random_state=seed)
        self._model: Any = make_pipeline(features, regression).fit(list(texts), list(characters))

    def __call__(self, texts: Sequence[str]) -> Verdict:
        if not texts:
            return Verdict([], [])
        names = [str(name) for name in self._model.classes_]
        rows = [[float(p) for p in row] for row in self._model.predict_proba(list(texts))]
        picked = [names[max(range(len(names)), key=row.__getitem__)] for row in rows]
        return Verdict(picked, [dict(zip(names, row, strict=True)) for row in rows])


def _grams(text: str) -> list[str]:
    found = words(text)
    return [*found, *(" ".join(pair) for pair in itertools.pairwise(found))]


class Voices:
    """The voices of a cast, learnt from its training lines.

    Raises `InputError` where there are not two characters with lines: then there is nobody to mistake one for.
    """

    def __init__(self, train: Sequence[Line], cast: Cast, seed: int = 0) -> None:
        self.cast = cast
        own: dict[str, list[str]] = {}
        for line in train:
            own.setdefault(line.character, []).append(line.text)
        if len(own) < 2:
            what = f"only {len(own)} of the characters have training lines, and a voice is told from another one's"
            raise InputError(what, "train.jsonl", "add dialogues of a second character to the cast")
        self.signature = signature_words(own)
        self.look: dict[str, Callable[[str], str]] = {
            "as is": lambda text: text,
            "masked": Masking(cast, self.signature),
            "ten words": lambda text: first_words(text, FIRST),
        }
        characters = [line.character for line in train]
        self._classifiers = {
            view: Classifier([look(line.text) for line in train], characters, seed) for view, look in self.look.items()
        }
        asked = [line for line in train if words(line.question)]
        self._topics = (
            Classifier([line.question for line in asked], [line.character for line in asked], seed)
            if len({line.character for line in asked}) > 1
            else None
        )
        self._copied = Copies([line.text for line in train])

    def judge(self, texts: Sequence[str], view: str) -> Verdict:
        return self._classifiers[view]([self.look[view](text) for text in texts])

    def judge_questions(self, questions: Sequence[str]) -> Verdict | None:
        """Whom the question alone gives away; None where training has no questions of two characters."""
        return self._topics(questions) if self._topics else None

    def is_copied(self, text: str) -> bool:
        return self._copied.is_copied(text)


class Copies:
    """Knows texts by their runs of `RUN` words, and short ones whole."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._runs: set[tuple[str, ...]] = set()
        self._short: set[tuple[str, ...]] = set()
        for text in texts:
            found = tuple(words(text))
            self._short.add(found)
            self._runs.update(found[k : k + RUN] for k in range(len(found) - RUN + 1))

    def is_copied(self, text: str) -> bool:
        """True if `text` has `RUN` words in a row out of one known text, or is one that is shorter than that."""
        found = tuple(words(text))
        if len(found) < RUN:
            return bool(found) and found in self._short
        return any(found[k : k + RUN] in self._runs for k in range(len(found) - RUN + 1))


@dataclass(frozen=True)
class Said:
    """A text that should sound like `character`; `unit`: the scene or question it belongs to."""

    character: str
    text: str
    unit: str


def voice_figures(voices: Voices, said: Sequence[Said], seed: int, ceiling: Sequence[Said] = ()) -> dict[str, Any]:
    """How much like themselves the characters sound in `said`, in each view; with real lines as the ceiling.

    For each view and character, and in all (each character counts the same): `consistency`, the share judged to be
    the character; `of_ceiling`, that over the ceiling's; `leak`, the share in which another is surer than `SURE`; and
    `confusion`. Empty texts sound like nobody: they are never right, and leak nothing.
    """
    found: dict[str, Any] = {}
    for view in VIEWS:
        found[view] = _in_view(voices, view, said, seed)
        if ceiling:
            best = _in_view(voices, view, ceiling, seed)
            for who, entry in {**found[view]["characters"], "all": found[view]["all"]}.items():
                top = (best["all"] if who == "all" else best["characters"].get(who) or {}).get("consistency")
                share = entry["consistency"]["value"] / top["value"] if top and top["value"] else None
                entry["of_ceiling"] = None if share is None else round(share, 6)
    copied = [float(voices.is_copied(one.text)) for one in said]
    found["copied"] = _json(
        estimate(copied, [s.unit for s in said], seed, equal_shares([s.character for s in said]), is_rate=True)
    )
    return found


def rows_of(voices: Voices, said: Sequence[Said]) -> list[list[Any]]:
    """For each text its unit, its character, and whether it sounds like that, in each of `VIEWS`."""
    verdicts = [voices.judge([one.text for one in said], view) for view in VIEWS]
    return [
        [one.unit, one.character, *(float(v.picked[k] == one.character and bool(one.text.strip())) for v in verdicts)]
        for k, one in enumerate(said)
    ]


def _in_view(voices: Voices, view: str, said: Sequence[Said], seed: int) -> dict[str, Any]:
    ids = [c.id for c in voices.cast]
    verdict = voices.judge([one.text for one in said], view)
    own = [one.character for one in said]
    spoke = [bool(one.text.strip()) for one in said]
    right = [float(p == mine and s) for p, mine, s in zip(verdict.picked, own, spoke, strict=True)]
    leaks = [float(leak and s) for leak, s in zip(verdict.leaks(own), spoke, strict=True)]

    def figures(chosen: Sequence[int]) -> dict[str, Any]:
        units, shares = [said[k].unit for k in chosen], equal_shares([own[k] for k in chosen])
        return {
            "consistency": _json(estimate([right[k] for k in chosen], units, seed, shares, is_rate=True)),
            "leak": _json(estimate([leaks[k] for k in chosen], units, seed, shares, is_rate=True)),
        }

    rows = {who: [k for k, mine in enumerate(own) if mine == who] for who in ids}
    return {
        "characters": {who: figures(chosen) for who, chosen in rows.items() if chosen},
        "all": figures(range(len(said))),
        "confusion": [_row(verdict, [k for k in rows[who] if spoke[k]], ids) for who in ids],
    }


def _row(verdict: Verdict, chosen: Sequence[int], ids: Sequence[str]) -> list[float]:
    return [round(sum(verdict.picked[k] == b for k in chosen) / len(chosen), 6) if chosen else 0.0 for b in ids]


def topic_leak(voices: Voices, lines: Sequence[Line], seed: int) -> dict[str, Any] | None:
    """How often the question alone gives away who is asked: what the voice's figures owe to the topic."""
    asked = [line for line in lines if words(line.question)]
    verdict = voices.judge_questions([line.question for line in asked])
    if verdict is None or not asked:
        return None
    right = [float(p == line.character) for p, line in zip(verdict.picked, asked, strict=True)]
    shares = equal_shares([line.character for line in asked])
    return _json(estimate(right, [line.scene for line in asked], seed, shares, is_rate=True))


def swapped_figures(
    voices: Voices, told: Sequence[Said], owners: Sequence[str], seed: int
) -> dict[str, dict[str, Any] | None]:
    """Told to be B in a scene of A: how often the reply sounds like B (`as_told`), and how often like A still."""
    found: dict[str, dict[str, Any] | None] = {}
    for view in VIEWS:
        verdict = voices.judge([one.text for one in told], view)
        pairs = list(zip(verdict.picked, told, owners, strict=True))
        units, shares = [one.unit for one in told], equal_shares([one.character for one in told])
        for name, hits in (
            ("as_told", [float(p == one.character and bool(one.text)) for p, one, _ in pairs]),
            ("as_owner", [float(p == owner and bool(one.text)) for p, one, owner in pairs]),
        ):
            found.setdefault(view, {})
            entry = found[view]
            assert entry is not None
            entry[name] = _json(estimate(hits, units, seed, shares, is_rate=True))
    return found


def signature_rates(voices: Voices, said: Sequence[Said]) -> dict[str, float | None]:
    """For each character the share of its texts with one of its signature words; None where it has no such words."""
    rates: dict[str, float | None] = {}
    for character in voices.cast:
        marks = voices.signature.get(character.id)
        own = [one.text for one in said if one.character == character.id]
        if not marks or not own:
            rates[character.id] = None
            continue
        rates[character.id] = round(sum(_has(text, marks) for text in own) / len(own), 6)
    return rates


def _has(text: str, marks: Sequence[str]) -> bool:
    from mrp.evaluate.words import terms

    return not set(marks).isdisjoint(terms(text))


def _json(figure: Estimate | None) -> dict[str, Any] | None:
    return figure.as_json() if figure else None
