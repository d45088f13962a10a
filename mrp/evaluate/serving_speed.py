"""How fast a run answers several chats at once, and what lies on the disk for it: as trained, merged, and merged apart.

    serving(run)      # {"tokens_per_second": 61.2, "merged": 66.0, "apart": 31.5, "chats": 4, "base_bytes": ..., ...}

By the product's own engine in this process: greedy replies of a fixed length to short questions, each to another
character. As trained: base, adapter and voices beside, as `mrp serve` loads them. A merged model computes what the base
computes, so the base is measured for it: all chats in common steps for one merged model; one chat after the other for a
merged model of each character, which share no step (and share the machine).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mrp.cast import OTHER, Cast
from mrp.config import Run
from mrp.data.view import view_for_reply
from mrp.dialogue import Turn
from mrp.models.bases import find_base
from mrp.models.run_voices import voices_of
from mrp.play.engine import Request, Sampling
from mrp.play.open import load_player, open_player
from mrp.play.reply import Player

CHATS, TOKENS = 4, 32
WARM, ASKED = "Good day.", "What do you see from where you stand?"


def serving(run: Run, bits: str = "auto") -> dict[str, Any]:
    """Tokens of replies a second, prompts read within the time; and bytes of weights: of the base, and of what the run
    has beside it. `merged` is None where voices forbid to merge all into one."""
    base = find_base(run.config.base, run.path.parent)
    precision, can_merge = run.config.train.precision, voices_of(run) is None
    (speed,) = _measured(lambda: open_player(run.folder, bits=bits, chats=CHATS), run.cast, [CHATS])
    *one, apart = _measured(
        lambda: load_player(base, None, run.cast, run.config.chat, precision, bits=bits, chats=CHATS),
        run.cast,
        [CHATS, 1] if can_merge else [1],
    )
    own = [file for part in (run.adapter, run.voices) for file in part.rglob("*.safetensors")]
    return {
        "tokens_per_second": speed,
        "merged": one[0] if can_merge else None,
        "apart": apart,
        "chats": CHATS,
        "bits": bits,
        "base_bytes": sum(file.stat().st_size for file in base.glob("*.safetensors")),
        "own_bytes": sum(file.stat().st_size for file in own),
    }


def _measured(opened: Callable[[], Player], cast: Cast, at_once: list[int]) -> list[float]:
    """Tokens a second with so many chats at once each; the model is gone afterwards."""
    player = opened()
    found = []
    for count in at_once:
        _tokens_per_second(player, cast, WARM, count)
        found.append(round(_tokens_per_second(player, cast, ASKED, count), 1))
    player.engine.close()
    del player
    gc.collect()
    return found


def _tokens_per_second(player: Player, cast: Cast, question: str, at_once: int) -> float:
    ids = [character.id for character in cast]
    requests = []
    for number in range(CHATS):
        who = ids[number % len(ids)]
        messages = view_for_reply([Turn(OTHER, f"{question} {number}")], (who, OTHER), who, cast)
        prompt, _ = player.template.prompt_within(messages, player.options.context_tokens - TOKENS)
        requests.append(Request(prompt, Sampling(0, max_new_tokens=TOKENS), voice=who))
    began = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        said = sum(pool.map(lambda request: len(list(player.engine.stream(request))), requests))
    return said / (time.perf_counter() - began)
