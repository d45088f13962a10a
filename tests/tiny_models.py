"""A tiny base model to train, merge and chat with."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def save_base(folder: Path, **config: Any) -> Path:
    """A random Llama of two layers in ChatML shape; wide weights, so that replies differ and logits can grow."""
    import torch
    import transformers
    from shapes import SHAPES

    tokenizer = SHAPES["chatml"].tokenizer()
    torch.manual_seed(7)
    shape = {
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.15,
        "max_position_embeddings": 1024,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=len(tokenizer), **(shape | config))
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
