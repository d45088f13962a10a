"""Who should answer: how often the router is right on held-out prompts, beside what needs no thought.

    routing_figures(router, prompts, learnt, 0, scenes)["ways"]["auto"]      # accuracy with its interval
    router_part(run, seed=0)                                              # the same of a run's data

A prompt is what somebody said before a held-out line; right is whoever really said that line. Prompts that several
characters were asked word for word fit anybody and are left out. `auto` is what chat does (names, then the classifier;
whoever answers now stays unless another is clearly likelier), in shuffled dialogues of which each is whole. No model
is asked, so there is one answer and no base beside it; docs/route.md has more ways. Used by `evaluation.py`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mrp.config import Run
from mrp.data.manifest import HELD_OUT, TRAIN
from mrp.data.samples import read_samples
from mrp.evaluate.intervals import difference, equal_shares, estimate
from mrp.play.route import Router, open_router
from mrp.play.route_classifier import Prompt, bare, fits_anybody, prompts_of

AUTO, ALONE, KEEP, MAJORITY = "auto", "each for itself", "keep", "majority"


def router_part(run: Run, seed: int) -> dict[str, Any] | None:
    """The figures of a run's router; None where no held-out prompt tells who should answer."""
    ids = {c.id for c in run.cast}
    samples = {name: list(read_samples(run.data / name)) for name in (TRAIN, HELD_OUT)}
    learnt, held = (prompts_of(own) for own in samples.values())
    held, learnt = ([p for p in prompts if p.character in ids] for prompts in (held, learnt))
    return routing_figures(open_router(run, run.cast), held, learnt, seed, {s.id: s.scene for s in samples[HELD_OUT]})


def routing_figures(
    router: Router, prompts: Sequence[Prompt], learnt: Sequence[Prompt], seed: int, scenes: Mapping[str, str]
) -> dict[str, Any] | None:
    """Accuracy of each way with its interval over scenes, each character counting the same; `over_best`: the paired
    difference of `auto` to the better of the two that need no thought; the confusion of `auto`, rows who was meant.

    `learnt` are the training prompts, for the majority; `scenes` the scene of each dialogue, which is one for each
    character who speaks in it. None for no prompts.
    """
    ids = [c.id for c in router.cast]
    anybody = fits_anybody([*prompts, *learnt])
    counts = Counter(p.character for p in learnt)
    majority = max(ids, key=lambda who: counts[who])
    cases = [case for case in _in_turn(prompts, majority, seed) if bare(case[0].text) not in anybody]
    if not cases:
        return None
    choose: dict[str, Callable[[str, str], str]] = {
        AUTO: lambda text, now: router.route(text, now, ids).character,
        ALONE: lambda text, _: router.route(text, None, ids).character,
        KEEP: lambda _, now: now,
        MAJORITY: lambda *_: majority,
    }
    picked = {way: [pick(prompt.text, now) for prompt, now in cases] for way, pick in choose.items()}
    who, units = [p.character for p, _ in cases], [scenes[p.dialogue] for p, _ in cases]
    right = {way: [float(a == b) for a, b in zip(own, who, strict=True)] for way, own in picked.items()}
    shares = equal_shares(who)
    found = {way: estimate(own, units, seed, shares, is_rate=True) for way, own in right.items()}
    plain = max((KEEP, MAJORITY), key=lambda way: sum(a * b for a, b in zip(right[way], shares, strict=True)))
    ahead = estimate(difference(right[AUTO], right[plain]), units, seed, shares)
    return {
        "prompts": len(cases),
        "fit_anybody": len(prompts) - len(cases),
        "classifier": router.classifier is not None,
        "ways": {way: figure.as_json() if figure else None for way, figure in found.items()},
        "best_plain": plain,
        "over_best": ahead.as_json() if ahead else None,
        "characters": {c: _share(right[AUTO], who, units, c, seed) for c in ids},
        "confusion": _confusion(ids, who, picked[AUTO]),
    }


def _in_turn(prompts: Sequence[Prompt], first: str, seed: int) -> list[tuple[Prompt, str]]:
    """Each prompt with who answers when it comes: dialogues in a shuffled order, each whole; `first` answers
    when the first one comes."""
    dialogues: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        dialogues.setdefault(prompt.dialogue, []).append(prompt)
    names = sorted(dialogues)
    random.Random(seed).shuffle(names)
    line = [prompt for name in names for prompt in dialogues[name]]
    return list(zip(line, [first, *(p.character for p in line)], strict=False))


def _share(right: Sequence[float], who: Sequence[str], units: Sequence[str], one: str, seed: int) -> Any:
    rows = [k for k, character in enumerate(who) if character == one]
    figure = estimate([right[k] for k in rows], [units[k] for k in rows], seed, is_rate=True)
    return figure.as_json() if figure else None


def _confusion(ids: Sequence[str], who: Sequence[str], picked: Sequence[str]) -> list[list[float]]:
    """Shares of each row; a row of nobody's prompts is zero."""
    counts = Counter(zip(who, picked, strict=True))
    sums = Counter(who)
    return [[round(counts[a, b] / max(sums[a], 1), 6) for b in ids] for a in ids]
