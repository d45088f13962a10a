"""A LoRA adapter as a GGUF file: what llama.cpp would add to each weight is what PEFT adds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mrp.errors import MrpError

torch = pytest.importorskip("torch")
gguf = pytest.importorskip("gguf")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from shapes import SHAPES  # noqa: E402
from test_export_gguf import save_model  # noqa: E402

from mrp.models.export import export  # noqa: E402
from mrp.models.gguf import read_fields  # noqa: E402
from mrp.models.gguf_lora import lora_to_gguf  # noqa: E402


def save_adapter(base: Path, folder: Path, **options: Any) -> Path:
    torch.manual_seed(5)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = peft.LoraConfig(**({"r": 4, "lora_alpha": 6, "target_modules": "all-linear"} | options))
    wrapped = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.1)
    wrapped.save_pretrained(folder)
    return folder


def arrays(path: Path) -> dict[str, Any]:
    return {t.name: torch.from_numpy(gguf.dequantize(t.data, t.tensor_type)) for t in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {}),
        ("qwen2", {}),
        ("llama", {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"up_proj": 9}}),
    ],
)
def test_base_and_adapter_in_gguf_are_the_merged_model_in_gguf(
    kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    tokenizer = SHAPES["chatml" if kind == "llama" else "qwen2_5"].tokenizer()
    base = save_model(tmp_path / "base", kind, tokenizer)
    adapter = save_adapter(base, tmp_path / "adapter", **options)
    record = lora_to_gguf(adapter, base, tmp_path / "lora.gguf")
    fields = read_fields(tmp_path / "lora.gguf")
    said = ("general.type", "adapter.type", "general.architecture", "adapter.lora.alpha")
    assert [fields[key] for key in said] == ["adapter", "lora", kind, pytest.approx(record["alpha"])]

    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "merged")
    # f16 on both sides, so the difference of two files is the adapter's part up to two roundings
    export(base, tmp_path / "a", "gguf", "f16")
    export(tmp_path / "merged", tmp_path / "b", "gguf", "f16")
    before, after = (arrays(next((tmp_path / place).glob("*.gguf"))) for place in ("a", "b"))
    halves = arrays(tmp_path / "lora.gguf")
    weights = {name.rpartition(".")[0] for name in halves}
    assert len(weights) == record["layers"] == 14 and len(halves) == 28
    for weight in weights:
        a, b = halves[f"{weight}.lora_a"], halves[f"{weight}.lora_b"]
        added = fields["adapter.lora.alpha"] / a.shape[0] * b @ a
        assert torch.allclose(before[weight] + added, after[weight], atol=1e-3), weight
        assert float(added.norm()) > 0.1


def test_an_adapter_that_is_more_than_lora_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", "llama", SHAPES["chatml"].tokenizer())
    adapter = save_adapter(base, tmp_path / "adapter", use_dora=True)
    with pytest.raises(MrpError, match="DoRA"):
        lora_to_gguf(adapter, base, tmp_path / "lora.gguf")
    assert not (tmp_path / "lora.gguf").exists()
