"""The sizes of a model, as memory depends on them: from its config.json, or from the table of known bases.

    shape = shape_of_base("internlm2-chat-7b", near=Path())
    shape.block_weights * shape.layers + shape.vocabulary * shape.hidden      # 7.36e9 weights in matrix products

No weights are read, so a base need not be there to be planned for: the table holds what its config.json says.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrp.errors import InputError, MrpError, SetupError
from mrp.files import read_json
from mrp.models.bases import find_base
from mrp.models.hub_bases import parse_wanted

FAST_FAMILIES = ("llama", "mistral", "qwen2")  # what `mrp.train.fast.fit` takes; a test holds them equal


@dataclass(frozen=True)
class ModelShape:
    """A decoder of equal blocks: attention with q, k, v, o and a gated MLP. Counts of numbers, not bytes."""

    name: str
    family: str  # config.json's model_type
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    inner: int  # of the MLP
    vocabulary: int
    tied: bool  # head and embedding are one matrix
    qkv_bias: bool = False

    @property
    def query(self) -> int:
        return self.heads * self.head_size

    @property
    def key(self) -> int:
        return self.kv_heads * self.head_size

    @property
    def groups(self) -> dict[str, list[tuple[int, int]]]:
        """(out, in) of each linear layer of a block, by the input that they share."""
        return {
            "qkv": [(self.query, self.hidden), (self.key, self.hidden), (self.key, self.hidden)],
            "o": [(self.hidden, self.query)],
            "up": [(self.inner, self.hidden), (self.inner, self.hidden)],
            "down": [(self.hidden, self.inner)],
        }

    @property
    def linears(self) -> list[tuple[int, int]]:
        return [size for group in self.groups.values() for size in group]

    @property
    def block_weights(self) -> int:
        return sum(out * into for out, into in self.linears)

    @property
    def small_weights(self) -> int:
        """Norms and biases of the whole model."""
        bias = self.query + 2 * self.key if self.qkv_bias else 0
        return self.layers * (2 * self.hidden + bias) + self.hidden

    @property
    def weights(self) -> int:
        """All weights."""
        tables = 1 if self.tied else 2
        return self.layers * self.block_weights + tables * self.vocabulary * self.hidden + self.small_weights


KNOWN_SHAPES = {
    shape.name: shape
    for shape in (  # hidden, layers, heads, kv heads, head size, inner, vocabulary
        ModelShape("internlm2-chat-1_8b", "llama", 2048, 24, 16, 8, 128, 8192, 92544, tied=False),
        ModelShape("internlm2-chat-7b", "llama", 4096, 32, 32, 8, 128, 14336, 92544, tied=False),
        ModelShape("smollm2-135m-instruct", "llama", 576, 30, 9, 3, 64, 1536, 49152, tied=True),
        ModelShape("smollm2-360m-instruct", "llama", 960, 32, 15, 5, 64, 2560, 49152, tied=True),
        ModelShape("smollm2-1.7b-instruct", "llama", 2048, 24, 32, 32, 64, 8192, 49152, tied=True),
        ModelShape("qwen2.5-0.5b-instruct", "qwen2", 896, 24, 14, 2, 64, 4864, 151936, tied=True, qkv_bias=True),
        ModelShape("qwen2.5-1.5b-instruct", "qwen2", 1536, 28, 12, 2, 128, 8960, 151936, tied=True, qkv_bias=True),
        ModelShape("qwen2.5-7b-instruct", "qwen2", 3584, 28, 28, 4, 128, 18944, 152064, tied=False, qkv_bias=True),
        ModelShape("llama-3-8b-instruct", "llama", 4096, 32, 32, 8, 128, 14336, 128256, tied=False),
        ModelShape("llama-3.2-1b-instruct", "llama", 2048, 16, 32, 8, 64, 8192, 128256, tied=True),
        ModelShape("mistral-7b-instruct-v0.3", "mistral", 4096, 32, 32, 8, 128, 14336, 32768, tied=False),
    )
}


def shape_of_base(base: str, near: Path) -> ModelShape:
    """The shape of a run's base: its own config.json where it is there, else the table's.

    Raises `InputError` for a base that neither has, or that is no plain decoder.
    """
    try:
        return shape_of_folder(find_base(base, near))
    except SetupError as error:
        if shape := _from_table(base):
            return shape
        raise InputError(f"the shape of {base!r} is not known before it is pulled", "base", error.fix) from error
    except MrpError as error:
        folder = near / base
        if (folder / "config.json").is_file():  # an InternLM2 not converted yet, or weights still missing
            return shape_of_folder(folder)
        if shape := _from_table(base):
            return shape
        what = f"the base {base!r} is not there, so its shape is not known"
        fix = f"name one with --set base=NAME; known without their files: {', '.join(sorted(KNOWN_SHAPES))}"
        raise InputError(what, "base", fix) from error


def _from_table(base: str) -> ModelShape | None:
    wanted = parse_wanted(base)
    name = wanted.base.name if wanted and wanted.base else base.lower()
    return KNOWN_SHAPES.get(name)


def shape_of_folder(folder: Path) -> ModelShape:
    """The shape that a folder's config.json tells; `InputError` if it tells of something else than a plain decoder."""
    path = folder / "config.json"
    return shape_of_config(read_json(path), folder.name, str(path))


def shape_of_config(config: dict[str, Any], name: str, where: str) -> ModelShape:
    """The same from what is in config.json."""
    if isinstance(config.get("text_config"), dict):
        config = config["text_config"]
    needed = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    missing = [key for key in needed if not _is_count(config.get(key))]
    experts = [key for key in ("num_experts", "num_local_experts", "n_routed_experts") if config.get(key)]
    if missing or experts:
        what = f"not a decoder of equal dense blocks: {', '.join(experts or missing)}" + " missing" * (not experts)
        raise InputError(what, where, "`mrp plan` knows models like Llama, Mistral and Qwen; take one of these")
    heads = config["num_attention_heads"]
    family = str(config.get("model_type", ""))
    return ModelShape(
        name,
        "llama" if family == "internlm2" else family,  # which is converted before it is trained
        config["hidden_size"],
        config["num_hidden_layers"],
        heads,
        config.get("num_key_value_heads") or heads,
        config.get("head_dim") or config["hidden_size"] // heads,
        config["intermediate_size"],
        config["vocab_size"],
        bool(config.get("tie_word_embeddings", family.startswith("gemma"))),
        bool(config.get("attention_bias", family == "qwen2")),
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value > 0
