"""The GPU memory of a chat: weights in 16, 8 or 4 bit, keys and values of the context, CUDA's context.

    predict_chat(shape, bits=4, context_tokens=4096).in_all / 2**30
    choose_chat(shape, 4096, 7 * 2**30, chats=4)          # bits and chats whose keys and values stay in memory

Arithmetic; `benchmarks/chat_memory.py` holds it against a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from mrp.errors import InputError
from mrp.plan.choose import SPARE, usable
from mrp.plan.shapes import ModelShape
from mrp.plan.training import CONTEXT, MIB, WORKSPACE, quant_state_bytes

SHORTEST = 256  # tokens of context
SCORING = 400 * MIB  # of an evaluation: what CUDA loads to compute losses of packed rows, and logits of likelihoods
PIECE = 512  # tokens of a prompt that the embedded engine reads at once
GRAPH = 3 * MIB  # of a layer in the CUDA graph of a step: what CUDA keeps of its kernels
MORE_GRAPHS = 9  # for other numbers of rows, with and without voices (`mrp.play.graphs.SIZES`)
WORKING = (
    "reading the prompt",
    "attention mask",
    "keys and values that grow",
    "a matrix in 16 bit",
    "CUDA graph",
    "workspace",
)


@dataclass(frozen=True)
class ChatPrediction:
    """Bytes by part, for weights of `bits` and `chats` of `context_tokens` whose keys and values are kept."""

    parts: dict[str, int]
    bits: int
    context_tokens: int
    chats: int = 1

    @property
    def in_all(self) -> int:
        return sum(self.parts.values())

    @property
    def working(self) -> int:
        """Bytes that come and go while the model computes, beside its weights and what is kept of the chats."""
        return sum(size for name, size in self.parts.items() if name in WORKING)


def predict_chat(shape: ModelShape, bits: int, context_tokens: int, chats: int = 1) -> ChatPrediction:
    """What a merged model takes; embedding and head stay in 16 bit, as bitsandbytes leaves them."""
    numbers = shape.layers * shape.block_weights
    table = 2 * shape.vocabulary * shape.hidden
    parts = {f"{bits}-bit weights": numbers * bits // 8}
    if bits == 8:  # an fp32 scale for each output
        parts["quantisation state"] = 4 * shape.layers * sum(out for out, _ in shape.linears)
    if bits == 4:
        parts["quantisation state"] = shape.layers * sum(quant_state_bytes(out * into) for out, into in shape.linears)
    parts["embedding and head"] = table if shape.tied else 2 * table
    parts["norms and biases"] = 2 * shape.small_weights
    parts["keys and values"] = 2 * 2 * shape.layers * shape.key * context_tokens * chats
    # pieces of the prompt go through a block: stream, norm in fp32, gate, up and their product; then what each token
    # sees, as yes and no, in 16 bit twice, and repeated for the heads that share keys; a matrix written out
    piece = min(context_tokens, PIECE)
    parts["reading the prompt"] = 2 * piece * (4 * shape.hidden + 3 * shape.inner)
    parts["attention mask"] = piece * context_tokens * (5 + 2 * shape.heads // shape.kv_heads)
    # a layer's keys and values stand twice while they grow
    parts["keys and values that grow"] = 2 * 2 * shape.key * context_tokens
    if bits != 16:
        parts["a matrix in 16 bit"] = 2 * max(out * into for out, into in shape.linears)
    parts["CUDA graph"] = GRAPH * shape.layers  # of steps of one row; more are made only where memory is left
    parts |= {"workspace": WORKSPACE, "CUDA context": CONTEXT}
    return ChatPrediction(parts, bits, context_tokens, chats)


def choose_chat(shape: ModelShape, context_tokens: int, budget: int, chats: int = 1) -> ChatPrediction:
    """The most bits that fit with the context and the chats asked for; else 4 bit with fewer chats in memory (the
    others are read again, or wait), else with the longest context of one. `InputError` if nothing fits."""
    wanted = [(bits, context_tokens, chats) for bits in (16, 8, 4)]
    wanted += [(4, context_tokens, fewer) for fewer in range(chats - 1, 0, -1)]
    wanted += [(4, shorter, 1) for shorter in range((context_tokens - 1) // 64 * 64, SHORTEST - 1, -64)]
    for bits, tokens, count in wanted:
        found = predict_chat(shape, bits, tokens, count)
        if found.in_all <= usable(budget):
            return found
    need = predict_chat(shape, 4, SHORTEST).in_all / (1 - SPARE) / MIB
    what = f"{shape.name} cannot chat in {budget / MIB:,.0f} MiB: in 4 bit with {SHORTEST} tokens it takes {need:,.0f}"
    raise InputError(what, "--gpu-memory", "take a smaller base, or a GGUF on the CPU (`mrp export --to gguf`)")
