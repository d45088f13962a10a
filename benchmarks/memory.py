"""What fits which GPU: the table of docs/memory.md, from the planner alone (nothing is loaded).

    python benchmarks/memory.py

For each model, row length and GPU the first plan of `mrp plan` for the article's recipe (NF4, LoRA r=64 on all linear
layers, dropout 0.1, one row a pass). Then what the contrast and the voices' stage take of it, with checkpointing.
"""

from __future__ import annotations

from mrp.config import TrainOptions
from mrp.errors import InputError
from mrp.plan.choose import Chosen, choose_training
from mrp.plan.passes import RowShape
from mrp.plan.shapes import KNOWN_SHAPES, ModelShape
from mrp.plan.training import predict_training, predict_voices

GPUS = (6, 8, 12, 16, 24)
VOICES = (1, 4, 12)
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


def beside(shape: ModelShape, tokens: int) -> list[str]:
    """MiB in all of the adapter's stage, with a contrast, and of the stage of 1, 4 and 12 voices at once."""
    plain = {"bits": 4, "rank": 64, "dropout": 0.1, "checkpointing": True, "max_tokens": tokens}
    found = []
    for more in ({}, {"contrast": 0.5}):
        options = TrainOptions(**plain | more)  # type: ignore[arg-type]
        found.append(predict_training(shape, options, RowShape.typical(options)))
    for many in VOICES:
        options = TrainOptions(voices=True, voice_rows=many, **plain)  # type: ignore[arg-type]
        found.append(predict_voices(shape, options, RowShape.typical(options), "fast"))
    return [f"{each.in_all / 2**20:,.0f}" for each in found]


def main() -> None:
    for name in ("internlm2-chat-1_8b", "internlm2-chat-7b"):
        print(f"\n| {name}, tokens of a row | " + " | ".join(f"{gib} GB" for gib in GPUS) + " |")
        print("| --- " * (len(GPUS) + 1) + "|")
        for tokens in ROWS:
            cells = [cell(plan(KNOWN_SHAPES[name], tokens, gib)) for gib in GPUS]
            print(f"| {tokens} | " + " | ".join(cells) + " |")
    print(
        "\n| MiB in all | the adapter | with a contrast | voices: " + " | ".join(f"{n} at once" for n in VOICES) + " |"
    )
    print("| --- " * (len(VOICES) + 3) + "|")
    for name in ("smollm2-135m-instruct", "internlm2-chat-1_8b", "internlm2-chat-7b"):
        for tokens in (512, 2048):
            print(f"| {name}, {tokens} | " + " | ".join(beside(KNOWN_SHAPES[name], tokens)) + " |")


if __name__ == "__main__":
    main()
