"""Tiny bases and adapters to merge, and what PEFT makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
PROBES = [[5, 9, 40, 33, 7, 60, 12], [90, 91, 17]]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_tokenizer(folder: Path) -> None:
    """Bytes as tokens, with ChatML."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: k for k, token in enumerate(["<|im_start|>", "<|im_end|>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"]
    )
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)


def widen(model: Any) -> None:
    """Draw a model's matrices so wide that its logits differ from token to token."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.15)


def make_base(folder: Path, dtype: torch.dtype = BF16, tied: bool = True, max_shard_size: str = "1GB") -> Path:
    """A two-layer Llama with weights wide enough that its logits differ from token to token."""
    config = transformers.LlamaConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        eos_token_id=1,
        pad_token_id=1,
    )
    torch.manual_seed(7)
    model = transformers.LlamaForCausalLM(config)
    widen(model)
    model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    save_tokenizer(folder)
    (folder / "LICENSE").write_text("Do as you like.\n", encoding="utf-8")
    (folder / "modeling_tiny.py").write_text("raise SystemExit\n", encoding="utf-8")
    return folder


def make_adapter(folder: Path, base: Path, strength: float = 0.1, **options: Any) -> Path:
    """A LoRA adapter whose B is drawn at random, as if it had been trained."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=FP32)
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    torch.manual_seed(3)
    adapted = peft.get_peft_model(model, peft.LoraConfig(**(settings | options)))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0, strength)
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


def change_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def merged_by_peft(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """PEFT's own merge in float32, by name of the weight."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=FP32)
    merged = peft.PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    return dict(merged.state_dict())
