"""How fast a run answers several chats at once, and what lies on the disk for it: as trained, and merged.

    serving(run)      # {"tokens_per_second": 61.2, "chats": 4, "base_bytes": ..., "own_bytes": ...}

By the product's own engine in this process: greedy replies of a fixed length to short questions, each to another
character. It is loaded as `mrp serve` loads it: the merged model if there is one, else base and adapter; voices beside.
"""

from __future__ import annotations

import gc
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mrp.cast import OTHER, Cast
from mrp.config import Run
from mrp.data.view import view_for_reply
from mrp.dialogue import Turn
from mrp.models.bases import find_base
from mrp.play.engine import Request, Sampling
from mrp.play.open import open_player
from mrp.play.reply import Player

CHATS, TOKENS = 4, 32
WARM, ASKED = "Good day.", "What do you see from where you stand?"


def serving(run: Run) -> dict[str, Any]:
    """Tokens of replies a second, prompts read within the time; and bytes of weights: of the base, and of what the run
    has beside it."""
    player = open_player(run.folder, chats=CHATS)
    _tokens_per_second(player, run.cast, WARM)
    speed = _tokens_per_second(player, run.cast, ASKED)
    player.engine.close()
    del player
    gc.collect()
    base = find_base(run.config.base, run.path.parent)
    own = [file for part in (run.adapter, run.voices) for file in part.rglob("*.safetensors")]
    return {
        "tokens_per_second": round(speed, 1),
        "chats": CHATS,
        "base_bytes": sum(file.stat().st_size for file in base.glob("*.safetensors")),
        "own_bytes": sum(file.stat().st_size for file in own),
    }


def _tokens_per_second(player: Player, cast: Cast, question: str) -> float:
    ids = [character.id for character in cast]
    requests = []
    for number in range(CHATS):
        who = ids[number % len(ids)]
        messages = view_for_reply([Turn(OTHER, f"{question} {number}")], (who, OTHER), who, cast)
        prompt, _ = player.template.prompt_within(messages, player.options.context_tokens - TOKENS)
        requests.append(Request(prompt, Sampling(0, max_new_tokens=TOKENS), voice=who))
    began = time.perf_counter()
    with ThreadPoolExecutor(CHATS) as pool:
        said = sum(pool.map(lambda request: len(list(player.engine.stream(request))), requests))
    return said / (time.perf_counter() - began)
