"""The most memory that one forward and backward pass holds beside the weights: live tensors, counted from the code.

    fast_pass(shape, options, rows).total / 2**20        # MiB

T tokens, N labelled ones, H hidden, I of the MLP. Each moment that can be the highest is written out as what is alive
in it (`mrp.train.fast.engine` and `block`; for the plain pass transformers, PEFT and autograd); the largest counts.
"""

from __future__ import annotations

from dataclasses import dataclass

from mrp.config import TrainOptions
from mrp.plan.shapes import ModelShape

CHUNK, SMALL_CHUNK, TILE = 512, 256, 512  # of mrp.train.fast.engine; a test holds them equal
WIDTH = 64  # rows are widened to a multiple of it
FLASH_BLOCK = 128  # tokens: attention's way back fills up its fp32 sums by so many for each document


@dataclass(frozen=True)
class RowShape:
    """What a pass is made of."""

    tokens: int  # of all rows of a micro-batch
    documents: int
    labelled: int

    @classmethod
    def typical(cls, options: TrainOptions) -> RowShape:
        """Rows as those measured: documents of 60 to 300 tokens, half of each to be learnt."""
        rows = options.micro_batch * (2 if options.contrast else 1)  # with a contrast each row has a twin
        tokens = rows * (options.max_tokens + -options.max_tokens % WIDTH)
        return cls(tokens, tokens // 160 + 2, tokens // 2)


@dataclass(frozen=True)
class PassPeak:
    """Bytes at the highest moment of a pass."""

    kept: int  # for the way back, in all blocks
    working: int  # everything else of that moment
    moment: str
    logits: int = 0  # what of `working` the head's logits are

    @property
    def total(self) -> int:
        return self.kept + self.working


def fast_pass(shape: ModelShape, options: TrainOptions, rows: RowShape) -> PassPeak:
    """Of the fast path, with bf16 activations."""
    recomputes = options.checkpointing or options.offload
    stream = 2 * rows.tokens * shape.hidden
    block = _fast_block(shape, options, rows)
    if options.offload:
        kept, block_kept = 0, 0  # in host memory; the two rooms to which it comes back are counted with the weights
    elif recomputes:
        kept, block_kept = shape.layers * stream, 0
    else:
        block_kept = block["x"] + block["middle"] + block["attention"] + block["lows"] + block["mlp"]
        kept = shape.layers * block_kept
    head, logits = _fast_head(shape, options, rows)
    mlp = _fast_mlp_back(shape, options, rows, block, block_kept > 0)
    attention = _fast_attention_back(shape, options, rows, block)
    if block_kept:  # the block's own part of `kept` that the earlier moments hold, freed by then
        attention -= block["middle"] + block["mlp"] + block["attention"] + block["lows"]
    moments = {"the head": head, "an MLP backwards": mlp, "attention backwards": attention}
    moment = max(moments, key=lambda name: moments[name])
    return PassPeak(kept, moments[moment], moment, logits if moment == "the head" else 0)


def _fast_block(shape: ModelShape, options: TrainOptions, rows: RowShape) -> dict[str, int]:
    """Bytes of what a block finds on its way forwards."""
    tokens, rank = rows.tokens, options.rank
    return {
        "x": 2 * tokens * shape.hidden,
        "middle": 2 * tokens * shape.hidden,
        "attention": 2 * tokens * (2 * shape.query + 2 * shape.key) + 4 * tokens * shape.heads,  # q, k, v, out; sums
        "lows": 2 * tokens * 4 * rank,  # of q, k, v, and o
        "mlp": 2 * tokens * (2 * shape.inner + 2 * rank),  # gate and up, and their low-rank values
    }


def _fast_head(shape: ModelShape, options: TrainOptions, rows: RowShape) -> tuple[int, int]:
    """(bytes at the head, those of its logits): norm, logits in chunks and their gradients, of labelled tokens."""
    chunk = min(SMALL_CHUNK if options.offload else CHUNK, rows.labelled)
    stream, some = 2 * rows.tokens * shape.hidden, 2 * rows.labelled * shape.hidden
    logits = 2 * chunk * (shape.vocabulary + shape.hidden)
    return 2 * stream + 2 * some + max(some + logits, 3 * some + stream), logits


def _fast_mlp_back(
    shape: ModelShape, options: TrainOptions, rows: RowShape, block: dict[str, int], is_kept: bool
) -> int:
    """Bytes while a block's MLP goes backwards, in tiles with `offload`; `is_kept`: without what `kept` holds."""
    masks = 1 if options.dropout else 0
    tokens, stream = rows.tokens, 2 * rows.tokens * shape.hidden
    tile = min(TILE, tokens) if options.offload else tokens
    # gradient of the stream, the normed stream (and dropped), their gradients
    there = stream * (1 + 1 + masks + 1 + masks)
    grads = 2 * tile * (shape.inner * (2 + masks) + options.rank)  # of gate * up (and dropped), and the product again
    if is_kept:
        return there + grads
    again = block["middle"] + block["attention"] + block["lows"]
    return there + again + 2 * tile * (2 * shape.inner + 2 * options.rank) + grads


def _fast_attention_back(shape: ModelShape, options: TrainOptions, rows: RowShape, block: dict[str, int]) -> int:
    """Bytes while a block's attention goes backwards; the block's own tensors included."""
    masks = 1 if options.dropout else 0
    tokens, stream = rows.tokens, 2 * rows.tokens * shape.hidden
    query, key = 2 * tokens * shape.query, 2 * tokens * shape.key
    there = 2 * stream + block["attention"] + block["lows"]  # gradient after the block, and after attention
    ours = query * (1 + masks) + 2 * tokens * options.rank  # gradient of attention's output (and dropped)
    found = query + 2 * key  # dq, dk, dv; grouped keys get a gradient for each query head first
    wide = 2 * query if shape.kv_heads != shape.heads else 0
    filled = tokens + FLASH_BLOCK * rows.documents
    sums = 4 * filled * shape.heads * (_multiple(shape.head_size, 32) + 1)  # dq in fp32, and a number a row
    inside = there + ours + found + wide + sums
    after = there + found + found + max(ours, stream * (1 + masks)) + stream * (1 + masks)
    return max(inside, after)


def _multiple(count: int, of: int) -> int:
    return count + -count % of


def plain_pass(shape: ModelShape, options: TrainOptions, rows: RowShape) -> PassPeak:
    """Of transformers, PEFT and autograd under bf16 autocast. The logits are those of labelled tokens, at their
    highest on the way back: log-softmax, gradient of its sum, and gradient of the logits, each in fp32."""
    tokens = rows.tokens
    wide = 2 if options.precision == "fp32" else 1  # of what bf16 takes
    stream = wide * 2 * tokens * shape.hidden
    block = wide * _plain_block(shape, options, rows)
    logits = rows.labelled * shape.vocabulary * (4 + 4 + 4)
    dense = 2 * max(out * into for out, into in shape.linears) if options.bits == 4 else 0
    if options.checkpointing:
        kept, working = shape.layers * stream, {"the head": logits + 3 * stream, "a block": block + 3 * stream + dense}
    else:
        kept, working = shape.layers * block, {"the head": logits + 3 * stream, "a block": block // 2 + dense}
    moment = max(working, key=lambda name: working[name])
    return PassPeak(kept, working[moment], moment, logits if moment == "the head" else 0)


def _plain_block(shape: ModelShape, options: TrainOptions, rows: RowShape) -> int:
    """Bytes that autograd keeps of a block."""
    tokens = rows.tokens
    norms = 2 * 4 * shape.hidden  # two norms in fp32
    inputs = sum(into for _, into in shape.linears)
    if options.method == "full":
        lora = 2 * (3 * shape.hidden + shape.query + shape.inner)  # each shared input once
    else:  # dropped inputs with their masks, or the inputs, shared
        shared = 2 * (2 * shape.hidden + shape.query + shape.inner)
        lora = (3 * inputs if options.dropout else shared) + 2 * 2 * options.rank * len(shape.linears)
    attention = 2 * (2 * shape.query + 2 * shape.key)
    mlp = 2 * 3 * shape.inner  # gate, its silu, and up
    return tokens * (norms + lora + attention + mlp)
