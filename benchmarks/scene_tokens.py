"""How many prompt tokens a scene costs: read anew for every line, and with each character's last prompt kept.

    python benchmarks/scene_tokens.py                    # the pilgrims, 4 characters x 20 lines, default base
    python benchmarks/scene_tokens.py --scripted         # lines of a fixed text instead of the model's

Exact arithmetic on the ids of the prompts that the scene sends: of each prompt, what is longer than the common prefix
with the same character's last prompt and reply must be computed. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import transformers

from mrp.cast import load_cast
from mrp.models.bases import find_base
from mrp.play.director import choose
from mrp.play.engine import Request, Token
from mrp.play.open import open_player
from mrp.play.scene import Stage
from mrp.play.scene_plan import ScenePlan

ROOT = Path(__file__).parent.parent
LINE = "The road is long, and the sun goes down behind the hills; let us find a fire, some rice, and a place to sleep."


class OneLine:
    """An engine that always says the same line."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    def stream(self, request: Request) -> Iterator[Token]:
        yield from (Token(token) for token in self.ids[: request.sampling.max_new_tokens])

    def score(
        self, ids: Sequence[int], continuations: Sequence[Sequence[int]], voice: str | None = None
    ) -> list[list[float]]:
        raise NotImplementedError

    def close(self) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lines", type=int, default=20, help="of each character")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--scripted", action="store_true")
    parser.add_argument("--memory", type=int, default=0, help="tokens of each character's summary")
    given = parser.parse_args()
    flags = {"chat.context_tokens": str(given.context), "chat.max_new_tokens": str(given.max_new_tokens)}
    cast_file = ROOT / "examples/pilgrims/cast.yaml"
    player = open_player(find_base("smollm2-135m-instruct", Path.cwd()), cast=cast_file, flags=flags)
    if given.scripted:
        player = replace(player, engine=OneLine(player.template.plain.ids(LINE, "")))
    cast = load_cast(cast_file)
    total = given.lines * len(cast.characters)
    plan = ScenePlan(
        participants=[c.id for c in cast],
        scenario="Evening on the road west.",
        director="round-robin",
        turns=total,
        memory=given.memory,
    )
    stage = Stage(player, plan)
    begin = time.monotonic()
    while not stage.over():
        choice = choose(stage)
        assert choice is not None
        for _ in stage.reply(choice.speaker):
            pass
    stats = stage.stats()
    ratio = stats["prompt_tokens"] / stats["computed_tokens"]
    print(f"{stats['lines']} lines by {len(cast.characters)} characters, {stats['reply_tokens']} tokens of reply")
    print(f"prompt tokens, every prompt read whole:      {stats['prompt_tokens']:,}")
    print(f"prompt tokens, last prompts and replies kept: {stats['computed_tokens']:,}  ({ratio:.1f} times fewer)")
    row = {
        "lines": stats["lines"],
        "naive": stats["prompt_tokens"],
        "computed": stats["computed_tokens"],
        "ratio": round(ratio, 2),
        "ended": stage.over(),
        "dropped": {name: stage.memory(name).dropped for name in sorted(stage.recall.memories)},
        "seconds": round(time.monotonic() - begin, 1),
        "scripted": given.scripted,
        "transformers": transformers.__version__,
        "machine": platform.platform(),
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
