"""A LoRA adapter in PEFT's format as a GGUF file: for llama.cpp's --lora, and ADAPTER in an Ollama Modelfile.

    lora_to_gguf(Path("run/adapter"), base, Path("wukong.gguf"))

llama.cpp adds `alpha / rank * B @ A` to the weight of the same name; so B's rows change places wherever the weight's
do (q and k of `llama`). The format has one alpha for all layers: a layer whose scale differs has it in its B.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from mrp.errors import InputError, raise_all
from mrp.files import need_space, replacing_binary
from mrp.models.adapter_file import read_adapter
from mrp.models.gguf_layout import gguf_layout
from mrp.models.gguf_write import in_pairs, write_arrays
from mrp.models.shards import read_weights


def lora_to_gguf(adapter: Path, base: Path, out: Path, name: str = "") -> dict[str, Any]:
    """Write the adapter as the GGUF file `out` (float32); returns its alpha and the number of layers.

    Raises `InputError` with every reason that keeps the adapter from being plain LoRA on `base` (as merging does).
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False).to_dict()
    layout = gguf_layout(config, str(base / "config.json"))
    pairs = read_adapter(adapter, base, read_weights(base))
    unknown = [layer for layer in pairs if not layout.gguf_name(f"{layer}.weight")]
    what = "has no name in GGUF"
    raise_all(adapter.name, [InputError(f"{layer} {what}", str(adapter), "train without it") for layer in unknown])
    first = next(iter(pairs.values()))
    alpha = first.scale * first.a.shape[0]
    arrays: dict[str, Any] = {}
    for layer, pair in pairs.items():
        a, b = pair.factors()  # (rank, in), (out, rank)
        b = b * (pair.scale * a.shape[0] / alpha)
        if heads := layout.paired_heads(f"{layer}.weight"):
            b = in_pairs(b, heads)
        weight = layout.gguf_name(f"{layer}.weight")
        arrays |= {f"{weight}.lora_a": a.contiguous().numpy(), f"{weight}.lora_b": b.contiguous().numpy()}
    need_space(out.parent, sum(array.nbytes for array in arrays.values()) + 2**20, "the adapter")
    with tempfile.TemporaryDirectory() as place, replacing_binary(out) as file:
        whole = Path(place) / out.name
        write_arrays(whole, layout.architecture, _fields(alpha, name or out.stem), arrays)
        file.write(whole.read_bytes())
    return {"file": str(out), "alpha": alpha, "layers": len(pairs), "architecture": layout.architecture}


def _fields(alpha: float, name: str) -> dict[str, Any]:
    return {
        "general.type": "adapter",
        "general.name": name,
        "adapter.type": "lora",
        "adapter.lora.alpha": float(alpha),
    }
