"""The GPU memory of a training by parts, before anything is loaded.

    found = predict_training(shape, options, RowShape.typical(options))
    found.parts["4-bit weights"], found.in_all          # bytes

Everything is counted from what the code allocates; only the constants below are measured, on an H100
(docs/memory.md): on three of the fast path's trainings and one of transformers and PEFT, the others being held out.
"""

from __future__ import annotations

from dataclasses import dataclass

from mrp.config import TrainOptions
from mrp.plan.passes import PassPeak, RowShape, fast_pass, plain_pass
from mrp.plan.shapes import FAST_FAMILIES, ModelShape

MIB = 2**20
CONTEXT = 767 * MIB  # CUDA's own, with the modules of kernels (an H100's; smaller GPUs take less)
GRAPHS = 16 * MIB  # what the driver keeps for two captured passes
WORKSPACE = 32 * MIB  # of the library of products
# What torch reserves beyond what is in use, with segments that grow: of everything in the fast path; of a pass, where
# copies to host memory delay what is freed; and of eager passes, whose tensors come in many sizes.
SLACK, OFFLOAD_SLACK, PLAIN_SLACK = 0.015, 0.15, 460 * MIB
QUANT_BLOCK, NESTED_BLOCK = 64, 256  # weights with one scale, scales with one of their own (bitsandbytes' NF4)
STATE_BLOCK, SMALL_STATE = 256, 4096  # 8-bit AdamW: numbers with one scale; smaller tensors keep fp32


@dataclass(frozen=True)
class Prediction:
    """Bytes on the GPU at the peak of a training, by part."""

    parts: dict[str, int]  # in the order in which they are printed
    kernels: str  # "fast" or "plain"
    moment: str  # of a pass, at which it is highest

    @property
    def in_all(self) -> int:
        """Everything that the card loses."""
        return sum(self.parts.values())

    @property
    def reserved(self) -> int:
        """What torch holds."""
        return self.in_all - self.parts["CUDA context"]

    @property
    def allocated(self) -> int:
        """torch's `max_memory_allocated`. A captured pass counts while it is captured, when AdamW's state is not yet
        there: the larger of the two."""
        passing = sum(self.parts[name] for name in PASSING)
        used = self.reserved - self.parts["allocator slack"]
        if self.kernels == "fast":
            return used - min(passing, self.parts["optimizer"])
        return used


PASSING = ("activations kept for the way back", "working memory of a block", "logits")


def predict_training(
    shape: ModelShape, options: TrainOptions, rows: RowShape, kernels: str | None = None
) -> Prediction:
    """The parts of one GPU's memory; `kernels` "fast" or "plain" instead of what the options lead to.

    Of a training with voices, the stage that takes more: the adapter's or theirs.
    """
    kernels = kernels or kernels_of(shape, options)
    adapter = _predict_adapter(shape, options, rows, kernels)
    if not options.voices:
        return adapter
    voices = predict_voices(shape, options, rows, kernels)
    return max(adapter, voices, key=lambda found: found.in_all)


def predict_voices(shape: ModelShape, options: TrainOptions, rows: RowShape, kernels: str) -> Prediction:
    """The parts while a full group of voices learns over the frozen adapter; `rows` are the adapter's."""
    many = options.voice_rows * (2 if options.voice_contrast else 1)
    before = options.micro_batch * (2 if options.contrast else 1)
    together = RowShape(*(-(-count * many // before) for count in (rows.tokens, rows.documents, rows.labelled)))
    widened = options.model_copy(update={"rank": options.rank + options.voice_rank, "method": "lora"})
    fast = kernels == "fast"
    peak = (fast_pass if fast else plain_pass)(shape, widened, together)
    sizes = [options.voice_rank * n for size in shape.linears for n in size] * shape.layers * many
    count, lora, wide = sum(sizes), sum(trained_tensors(shape, options)), 4 if options.adapter_bits == 32 else 2
    copied = lora if wide == 4 else 0
    if fast and wide == 2:  # the A of layers that share an input, below one another
        copied = options.rank * shape.layers * sum(into for _, into in shape.linears)
    parts = base_parts(shape, options) | {"LoRA": wide * lora, "voices": 4 * count}
    if options.precision != "fp32":
        parts["voices and LoRA, bf16 copy"] = 2 * (count + copied)
    parts["gradients"] = 4 * count
    if fast:
        parts["gradients of a block, bf16"] = 2 * count // shape.layers
        parts["4-bit matrices written out"] = scratch_bytes(shape, options)
    parts["optimizer"] = state_bytes(sizes, options, wide=4)
    parts |= _pass_parts(peak)
    parts["workspace"] = WORKSPACE
    parts["allocator slack"] = _slack(sum(parts.values()), peak, options) if fast else PLAIN_SLACK
    parts["CUDA context"] = CONTEXT + (GRAPHS if fast else 0)
    moment = f"{peak.moment}, {many} voices at once"
    return Prediction({name: size for name, size in parts.items() if size or name in PASSING}, kernels, moment)


def _predict_adapter(shape: ModelShape, options: TrainOptions, rows: RowShape, kernels: str) -> Prediction:
    fast = kernels == "fast"
    peak = fast_pass(shape, options, rows) if fast else plain_pass(shape, options, rows)
    parts = base_parts(shape, options) | _adapter_parts(shape, options, fast)
    parts["optimizer"] = optimizer_bytes(shape, options)
    if fast:
        parts["4-bit matrices written out"] = scratch_bytes(shape, options)
        stream = 2 * rows.tokens * shape.hidden
        parts["rooms of offload"] = (2 if shape.tied else 3) * stream if options.offload else 0
    parts |= _pass_parts(peak)
    parts["workspace"] = WORKSPACE
    parts["allocator slack"] = _slack(sum(parts.values()), peak, options) if fast else PLAIN_SLACK
    parts["CUDA context"] = CONTEXT + (GRAPHS if fast else 0)
    return Prediction({name: size for name, size in parts.items() if size or name in PASSING}, kernels, peak.moment)


def _slack(used: int, peak: PassPeak, options: TrainOptions) -> int:
    return round(SLACK * used + (OFFLOAD_SLACK * peak.total if options.offload else 0))


def kernels_of(shape: ModelShape, options: TrainOptions) -> str:
    """The path that the run will take on a GPU with bf16, as far as options and model decide it."""
    is_fast = options.method == "lora" and options.precision != "fp32" and shape.family in FAST_FAMILIES
    fits = shape.head_size % 8 == 0 and shape.head_size <= 256
    return "fast" if is_fast and fits and options.kernels != "plain" else "plain"


def base_parts(shape: ModelShape, options: TrainOptions) -> dict[str, int]:
    """The base: blocks in 16 or 4 bit (full fine-tuning: all in fp32), embedding, head."""
    wide = 4 if options.method == "full" or options.precision == "fp32" else 2
    table = wide * shape.vocabulary * shape.hidden
    parts = {}
    if options.bits == 4:
        parts["4-bit weights"] = shape.layers * sum(out * into // 2 for out, into in shape.linears)
        parts["quantisation state"] = shape.layers * sum(quant_state_bytes(out * into) for out, into in shape.linears)
    else:
        parts[f"{8 * wide}-bit weights"] = wide * shape.layers * shape.block_weights
    parts["embedding"] = 0 if shape.tied or options.offload else table
    parts["embedding and head" if shape.tied else "head"] = table
    parts["norms and biases"] = wide * shape.small_weights
    return parts


def quant_state_bytes(count: int) -> int:
    """Beside a matrix of `count` NF4 numbers: scales in 8 bit, scales of these in fp32, and the two tables of codes."""
    blocks = -(-count // QUANT_BLOCK)
    return blocks + 4 * -(-blocks // NESTED_BLOCK) + 4 * (16 + 256 + 1)


def lora_weights(shape: ModelShape, rank: int) -> int:
    """Numbers of the adapter in one block."""
    return sum(rank * (out + into) for out, into in shape.linears)


def trained_tensors(shape: ModelShape, options: TrainOptions) -> list[int]:
    """The counts of numbers of the trained tensors."""
    if options.method == "lora":
        return [options.rank * n for size in shape.linears for n in size] * shape.layers
    tables = [shape.vocabulary * shape.hidden] * (1 if shape.tied else 2)
    matrices = [out * into for out, into in shape.linears] * shape.layers
    return [*tables, *matrices, *[shape.hidden] * (2 * shape.layers + 1)]


def _adapter_parts(shape: ModelShape, options: TrainOptions, fast: bool) -> dict[str, int]:
    count, wide = sum(trained_tensors(shape, options)), 4 if options.adapter_bits == 32 else 2
    if options.method == "full":
        return {"bf16 copies of autocast": 2 * shape.layers * shape.block_weights, "gradients": 4 * count}
    parts = {"LoRA": wide * count}
    if wide == 4:  # in the fast path beside it and kept; under autocast made anew for each pass
        parts["LoRA, bf16 copy"] = 2 * count
    parts["gradients"] = wide * count
    if fast and wide == 4:
        parts["gradients of a block, bf16"] = 2 * lora_weights(shape, options.rank)
    return parts


def optimizer_bytes(shape: ModelShape, options: TrainOptions) -> int:
    """AdamW's two running means: in the numbers of the weights, or in 8 bit with a scale for each 256 of them."""
    wide = 4 if options.adapter_bits == 32 or options.method == "full" else 2
    return state_bytes(trained_tensors(shape, options), options, wide)


def state_bytes(sizes: list[int], options: TrainOptions, wide: int) -> int:
    """The same for tensors of these many numbers, each of `wide` bytes."""
    if options.optimizer == "adamw":
        return sum(2 * wide * n + 4 for n in sizes)
    return sum(8 * n if n < SMALL_STATE else 2 * (n + 4 * -(-n // STATE_BLOCK)) for n in sizes)


def scratch_bytes(shape: ModelShape, options: TrainOptions) -> int:
    """The fast path's rooms for 4-bit matrices in 16 bit: one a group, with `offload` one for gate and up, one for all
    others."""
    if options.bits != 4:
        return 0
    sizes = {name: 2 * sum(out * into for out, into in group) for name, group in shape.groups.items()}
    if options.offload:
        return sizes["up"] + max(sizes["qkv"], sizes["o"], sizes["down"])
    return sum(sizes.values())


def _pass_parts(peak: PassPeak) -> dict[str, int]:
    sizes = (peak.kept, peak.working - peak.logits, peak.logits)
    return dict(zip(PASSING, sizes, strict=True))
