"""The two models of every evaluation: the base with the persona prompt alone, and the tuned one.

    for side in sides(run, flags):
        with judging(side) as judge: ...          # its losses
        player = side.player()                    # its replies

A side's name is a hash of all that its answers depend on: weights, adapter, voices, numbers and machine.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrp.config import Run
from mrp.evaluate.identity import Judge
from mrp.files import fingerprint, sha256_file
from mrp.models.bases import find_base, model_identity
from mrp.models.load import Hardware, hardware, load_model
from mrp.models.run_voices import voices_of
from mrp.models.voices import load_voices, voices_in
from mrp.plan.chat import SCORING
from mrp.play.open import choose_bits, load_player, model_of, open_player
from mrp.play.reply import Player
from mrp.train.lora import WEIGHTS, load_adapter

BASE, TUNED = "base", "tuned"


@dataclass(frozen=True)
class Side:
    """One of the two. `player` loads it for play; `judging` loads it for its losses."""

    id: str
    name: str
    folder: Path
    adapter: Path | None
    voices: Path | None
    on: Hardware
    bits: int  # of the weights
    player: Callable[[], Player]


def sides(run: Run, flags: dict[str, str], bits: str = "auto", chats: int = 1) -> tuple[Side, Side]:
    """Base and tuned side of a run, both with weights in `bits` (see `choose_bits`), for so many replies at once.

    Raises `InputError` if nothing is trained in it yet.
    """
    on = hardware(run.config.train.precision)
    base = find_base(run.config.base, run.path.parent)
    folder, adapter = model_of(run)
    voices = voices_of(run)
    options = run.config.chat
    chosen, fitting = choose_bits(bits, on, folder, options.context_tokens, [adapter], voices, chats, SCORING)
    if fitting < options.context_tokens:
        options = options.model_copy(update={"context_tokens": fitting})
        flags = flags | {"chat.context_tokens": str(fitting)}
    machine = _machine(on) | ({"bits": str(chosen)} if chosen != 16 else {})
    play: dict[str, Any] = {"bits": str(chosen), "chats": chats}

    def base_player() -> Player:
        return load_player(base, None, run.cast, options, run.config.train.precision, **play)

    def tuned_player() -> Player:
        return open_player(run.path, flags=flags, **play)

    made_of: dict[str, Any] = {"model": model_identity(folder), "machine": machine}
    made_of["adapter"] = sha256_file(adapter / WEIGHTS) if adapter else None
    made_of["voices"] = {who: sha256_file(voices / who / WEIGHTS) for who in voices_in(voices)} if voices else {}
    name = fingerprint({"model": model_identity(base), "machine": machine})
    return (
        Side(BASE, name, base, None, None, on, chosen, base_player),
        Side(TUNED, fingerprint(made_of), folder, adapter, voices, on, chosen, tuned_player),
    )


@contextmanager
def judging(side: Side) -> Iterator[Judge]:
    """The side's model, loaded for its losses, for the length of the block."""
    model = load_model(side.folder, side.on, side.bits)
    longest = int(getattr(model.config, "max_position_embeddings", None) or 2048)
    if side.adapter:
        model = load_adapter(model, side.adapter)
    bank = load_voices(model, side.voices) if side.voices else None
    try:
        yield Judge(model, side.on, side.name, min(longest, 2048), bank)
    finally:
        del model, bank
        gc.collect()


def _machine(on: Hardware) -> dict[str, str]:
    import torch
    import transformers

    return {
        "precision": on.precision,
        "device": torch.cuda.get_device_name(0) if on.device == "cuda" else on.device,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
