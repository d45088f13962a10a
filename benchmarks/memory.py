"""What fits which GPU: the table of docs/memory.md, from the planner alone (nothing is loaded).

    python benchmarks/memory.py

For each model, row length and GPU the first plan of `mrp plan` for the article's recipe (NF4, LoRA r=64 on all linear
layers, dropout 0.1, one row a pass).
"""

from __future__ import annotations

from mrp.config import TrainOptions
from mrp.errors import InputError
from mrp.plan.choose import Chosen, choose_training
from mrp.plan.shapes import KNOWN_SHAPES, ModelShape

GPUS = (6, 8, 12, 16, 24)
ROWS = (1024, 2048, 4096, 8192, 16384)
SHORT = {
    "train.checkpointing": "checkpointing",
    "train.optimizer": "8-bit AdamW",
    "train.offload": "offload",
    "train.adapter_bits": "adapter 16",
}


def plan(shape: ModelShape, tokens: int, gib: int) -> Chosen | None:
    """The first plan with rows of that length, or None."""
    options = TrainOptions(bits=4, rank=64, alpha=16, dropout=0.1, max_tokens=tokens)
    try:
        chosen = choose_training(shape, options, gib * 2**30)
    except InputError:
        return None
    return chosen if chosen.options.max_tokens == tokens else None


def cell(chosen: Chosen | None) -> str:
    if chosen is None:
        return "-"
    given = [short for key, short in SHORT.items() if key in chosen.changes]
    return f"{', '.join(given) or 'nothing given up'} ({chosen.prediction.in_all / 2**20:,.0f} MiB)"


def main() -> None:
    for name in ("internlm2-chat-1_8b", "internlm2-chat-7b"):
        print(f"\n| {name}, tokens of a row | " + " | ".join(f"{gib} GB" for gib in GPUS) + " |")
        print("| --- " * (len(GPUS) + 1) + "|")
        for tokens in ROWS:
            cells = [cell(plan(KNOWN_SHAPES[name], tokens, gib)) for gib in GPUS]
            print(f"| {tokens} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
