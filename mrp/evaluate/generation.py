"""What can be counted in generated replies: empty ones, repetition, length, variety, whether they end.

    generation_figures(answers, characters, units, real_lengths, seed=0)

No model judges here; each figure says in its name what is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mrp.data.assistant import assistant_phrase
from mrp.evaluate.asking import Answer
from mrp.evaluate.intervals import equal_shares, estimate
from mrp.evaluate.words import words

GRAM, TIMES = 4, 3  # a reply repeats itself if a run of four words stands in it three times


def repeats_itself(text: str) -> bool:
    found = words(text)
    grams = Counter(tuple(found[k : k + GRAM]) for k in range(len(found) - GRAM + 1))
    return max(grams.values(), default=0) >= TIMES


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Distinct-n (Li et al. 2016, arXiv 1510.03055): different n-grams of words over all of them; None for none."""
    grams = [tuple(found[k : k + n]) for found in map(words, texts) for k in range(len(found) - n + 1)]
    return round(len(set(grams)) / len(grams), 6) if grams else None


def generation_figures(
    answers: Sequence[Answer],
    characters: Sequence[str],
    units: Sequence[str],
    real_words: Mapping[str, float],
    seed: int,
) -> dict[str, Any]:
    """For each character and in all: rates of empty, repeating, unended and guarded replies and of an assistant's
    phrases, mean words over those of the character's real lines (`real_words`), distinct-1 and -2."""
    rows = {who: [k for k, c in enumerate(characters) if c == who] for who in dict.fromkeys(characters)}
    found = {who: _figures([answers[k] for k in ks], [who] * len(ks), [units[k] for k in ks], real_words, seed)
             for who, ks in rows.items()}  # fmt: skip
    return {"characters": found, "all": _figures(answers, characters, units, real_words, seed)}


def _figures(
    answers: Sequence[Answer], who: Sequence[str], units: Sequence[str], real_words: Mapping[str, float], seed: int
) -> dict[str, Any]:
    shares = equal_shares(who)
    rates: dict[str, list[float]] = {
        "empty": [float(not a.text.strip()) for a in answers],
        "repeats": [float(repeats_itself(a.text)) for a in answers],
        "stops": [float(not a.cut) for a in answers],
        "speaks_for_others": [float(a.guarded) for a in answers],
        "disclaims": [float(bool(assistant_phrase(a.text))) for a in answers],
    }
    found: dict[str, Any] = {}
    for name, values in rates.items():
        figure = estimate(values, units, seed, shares, is_rate=True)
        found[name] = figure.as_json() if figure else None
    lengths = [
        len(words(a.text)) / real_words[c] if real_words.get(c) else 0.0 for a, c in zip(answers, who, strict=True)
    ]
    figure = estimate(lengths, units, seed, shares)
    found["length"] = figure.as_json() if figure else None
    texts = [a.text for a in answers]
    return found | {"distinct_1": distinct(texts, 1), "distinct_2": distinct(texts, 2)}
