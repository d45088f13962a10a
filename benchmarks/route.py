"""How often the router is right: `python benchmarks/route.py RUN... [--model] [--messages FILE] [--out FILE.json]`.

Each RUN (its data is built; with --model it is trained) is measured on the prompts of its held-out dialogues: whose
line comes next? Those that several characters were asked word for word fit anybody and are counted apart. `--messages`
adds messages written by hand (benchmarks/route_messages.jsonl fits the example cast; `character` null: fits anybody).
Ways: names outright; the classifier; the model's scores of the names; `auto` (names, then the classifier, and the one
who answered before stays unless another is clearly likelier); the original demo's scheme (the model is asked in free
text, sampled, and the names are searched in what it says in the order of the cast); majority class; keep the current.
The current character is the one who really answered the message before. Results: docs/route.md.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

from mrp.config import load_run
from mrp.data.samples import read_samples
from mrp.data.view import SYSTEM, USER, Message
from mrp.play.engine import Sampling
from mrp.play.open import open_player
from mrp.play.reply import Player, Reply
from mrp.play.route import Router, ensure_classifier
from mrp.play.route_classifier import Prompt, bare, fits_anybody, prompts_of
from mrp.play.route_model import NameScorer
from mrp.play.route_names import addressed

ASKED = {
    "en": "{people}\n\nWhich of them should answer this message? Say the name.",
    "zh": "{people}\n\n以下这句话应该由谁来回答？请说出名字。",
}


class FreeText:
    """The original demo's router: a second call of the model, its free text searched for names in a fixed order."""

    def __init__(self, player: Player, seed: int = 0) -> None:
        assert player.cast is not None
        self.player, self.cast, self.seed, self.tokens = player, player.cast, seed, 0

    def route(self, text: str) -> str:
        people = "\n".join(f"- {c.name}: {' '.join(c.persona.split())[:200]}" for c in self.cast)
        system = ASKED[self.cast.language].format(people=people)
        prompt = self.player.template.prompt([Message(SYSTEM, system), Message(USER, text)])
        self.seed += 1
        reply = Reply(self.player, "", prompt, Sampling(0.7, 0.9, 32, self.seed))
        said = "".join(reply)
        self.tokens += len(prompt) + len(reply.tokens)
        return next(
            (c.id for c in self.cast if any(n in said for n in (c.name, *c.aliases))), self.cast.characters[0].id
        )


def measure(name: str, cases: list[tuple[str, str, str]], choose: Any, tokens: Any = None) -> dict[str, Any]:
    """`cases`: text, who is right, who answered before. What was chosen, and the cost of a message."""
    seconds, chosen = [], []
    before = tokens() if tokens else 0
    for text, _, current in cases:
        began = time.perf_counter()
        chosen.append(choose(text, current))
        seconds.append(time.perf_counter() - began)
    right = sum(c == case[1] for c, case in zip(chosen, cases, strict=True))
    confusion = Counter((case[1], c) for c, case in zip(chosen, cases, strict=True))
    return {
        "way": name,
        "right": right,
        "of": len(cases),
        "interval": wilson(right, len(cases)),
        "ms": round(1000 * statistics.median(seconds), 3) if seconds else 0,
        "tokens": round(((tokens() if tokens else 0) - before) / max(len(cases), 1), 1),
        "confusion": {f"{a}>{b}": n for (a, b), n in sorted(confusion.items())},
    }


def wilson(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    if not total:
        return 0.0, 0.0
    share = right / total
    middle = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return round((middle - half) / (1 + z * z / total), 3), round((middle + half) / (1 + z * z / total), 3)


def cases_of(prompts: list[Prompt], seed: int) -> list[tuple[str, str, str]]:
    """Dialogues in a shuffled order, each whole; the current character is who answered the prompt before."""
    dialogues: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        dialogues.setdefault(prompt.dialogue, []).append(prompt)
    order = sorted(dialogues)
    random.Random(seed).shuffle(order)
    line = [prompt for name in order for prompt in dialogues[name]]
    return [(p.text, p.character, b.character) for p, b in zip(line, [line[0], *line[:-1]], strict=True)]


def ways_of(router: Router, majority: str, player: Player | None) -> list[tuple[str, Any, Any]]:
    ids = [c.id for c in router.cast]

    def by_name(text: str, current: str) -> str:
        found = addressed(text, router.cast, ids)
        return found.character if found else current

    def by_classifier(text: str, _: str) -> str:
        assert router.classifier is not None
        shares = router.classifier.probabilities(text)
        return max(shares, key=shares.__getitem__)

    ways: list[tuple[str, Any, Any]] = [
        ("majority class", lambda *_: majority, None),
        ("keep the current one", lambda _, current: current, None),
        ("names, else keep", by_name, None),
        ("classifier alone", by_classifier, None),
        ("names, else classifier", lambda text, _: router.route(text, None, ids, "classifier").character, None),
        ("auto", lambda text, current: router.route(text, current, ids).character, None),
    ]
    if player is not None:
        scorer, asked = NameScorer(player), FreeText(player)

        def by_model(text: str, _: str) -> str:
            shares = scorer.probabilities(text, ids)
            return max(shares, key=shares.__getitem__)

        ways.append(("model's scores alone", by_model, lambda: scorer.tokens))
        ways.append(("original demo's free text", lambda text, _: asked.route(text), lambda: asked.tokens))
    return ways


def groups_of(prompts: list[Prompt], anybody: set[str], messages: Path | None, seed: int, first: str) -> dict[str, Any]:
    cases = cases_of(prompts, seed)
    groups = {
        "held-out prompts": [case for case in cases if bare(case[0]) not in anybody],
        "held-out prompts that fit anybody": [case for case in cases if bare(case[0]) in anybody],
    }
    current = first
    rows = [json.loads(line) for line in messages.read_text(encoding="utf-8").splitlines()] if messages else []
    random.Random(seed).shuffle(rows)
    for row in rows:  # a message that fits anybody is right with whoever answered before
        right = row["character"] or current
        groups.setdefault(f"written: {row['kind']}", []).append((row["text"], right, current))
        current = right
    return groups


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--model", action="store_true")
    parser.add_argument("--messages", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    results: dict[str, Any] = {}
    for path in given.runs:
        run = load_run(path)
        train, held_out = (prompts_of(read_samples(run.data / f"{n}.jsonl")) for n in ("train", "held-out"))
        anybody = fits_anybody([*train, *held_out])
        majority = Counter(p.character for p in train).most_common(1)[0][0]
        player = open_player(path) if given.model else None
        router = Router(run.cast, ensure_classifier(run))
        print(f"\n{run.folder.name}: {len(train)} prompts to learn from, {len(held_out)} held out")
        for group, cases in groups_of(held_out, anybody, given.messages, given.seed, majority).items():
            print(f"\n| {group} ({len(cases)}) | right | 95 % | ms | tokens |\n| --- | --- | --- | --- | --- |")
            for name, choose, tokens in ways_of(router, majority, player):
                found = measure(name, cases, choose, tokens)
                results.setdefault(str(path), {}).setdefault(group, []).append(found)
                low, high = found["interval"]
                share = f"{found['right'] / max(found['of'], 1):.1%}"
                print(f"| {name} | {share} | {low:.0%}-{high:.0%} | {found['ms']} | {found['tokens']} |", flush=True)
    if given.out:
        given.out.write_text(json.dumps(results, ensure_ascii=False, indent=1), encoding="utf-8")
    print(json.dumps({p: {g: {w["way"]: w["right"] for w in ws} for g, ws in r.items()} for p, r in results.items()}))


if __name__ == "__main__":
    main()
