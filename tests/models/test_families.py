"""Each family that people take as a base, tiny and random: checked, loaded, rendered, trained a few steps, merged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("peft")

import torch
import transformers
from shapes import SHAPES

from mrp.config import TrainOptions
from mrp.data.view import ASSISTANT, SYSTEM, USER, Message
from mrp.models.bases import check_base_folder, find_base
from mrp.models.internlm2 import to_llama
from mrp.models.load import Hardware, load_model, load_tokenizer
from mrp.models.loss import keeps_apart, make_batch, token_losses
from mrp.models.merge import merge
from mrp.render import ChatTemplate
from mrp.train.lora import adapter_parameters, add_adapter, save_adapter

ON = Hardware("cpu", torch.float32, None)
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 8}
GEMMA3 = {"head_dim": 8, "sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]}
# What the released configs have and the plain Llama does not, and the shape of tokenizer and template.
FAMILIES: dict[str, tuple[str, Callable[..., Any]]] = {
    "qwen2": ("qwen2_5", lambda **size: transformers.Qwen2Config(**size)),
    "qwen2.5-tied": ("qwen2_5", lambda **size: transformers.Qwen2Config(**size, tie_word_embeddings=True)),
    "qwen3": ("qwen3", lambda **size: transformers.Qwen3Config(**size, head_dim=16)),
    "llama3": ("llama3", lambda **size: transformers.LlamaConfig(**size, rope_parameters=LLAMA3_ROPE)),
    "gemma3": ("gemma3", lambda **size: transformers.Gemma3TextConfig(**size, **GEMMA3, query_pre_attn_scalar=8)),
    "smollm2": ("chatml", lambda **size: transformers.LlamaConfig(**size, tie_word_embeddings=True)),
    "smollm3": ("smollm3", lambda **size: transformers.SmolLM3Config(**size, no_rope_layers=[1, 0])),
    "minicpm3": (
        "internlm2",
        lambda **size: transformers.MiniCPM3Config(**size | {"num_key_value_heads": 4}, **LATENT, dim_model_base=16),
    ),
    "mistral": ("mistral3", lambda **size: transformers.MistralConfig(**size, head_dim=16)),
}
MESSAGES = [
    Message(SYSTEM, "你是孙悟空。 You are Old Monkey.", False),
    Message(USER, "Who are you?", False),
    Message(ASSISTANT, "俺老孙乃齐天大圣！", True),
    Message(USER, "再说一遍。", False),
    Message(ASSISTANT, "Old Monkey fears nothing under heaven!", True),
]


def make_base(name: str, folder: Path) -> Path:
    shape, config = FAMILIES[name]
    tokenizer = SHAPES[shape].tokenizer()
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    made = config(**SMALL, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **special)
    model = transformers.AutoModelForCausalLM.from_config(made)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=[*FAMILIES, "internlm2", "internlm2.5"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base folder of each family; InternLM2 comes from its own layout (2.5 has dynamic scaling in its config)."""
    folder = tmp_path_factory.mktemp("families") / request.param
    if request.param not in FAMILIES:
        shared = request.getfixturevalue("shared")
        variant = {"internlm2": "mha-bin", "internlm2.5": "gqa"}[request.param]
        source = folder.with_name("source")
        shutil.copytree(shared / "golden" / "internlm2-tiny-a" / variant, source, copy_function=shutil.copyfile)
        to_llama(source, folder)
        return folder
    return make_base(request.param, folder)


def test_it_is_found_as_a_base(base: Path) -> None:
    check_base_folder(base)
    assert find_base(str(base)) == base


def test_its_prompts_are_the_beginnings_of_its_samples(base: Path) -> None:
    tokenizer = load_tokenizer(base)
    template = ChatTemplate(tokenizer)
    last = template.sample(MESSAGES)[-1]
    prompt = template.prompt(MESSAGES[:-1])
    assert last.input_ids[: len(prompt)] == prompt
    reply = tokenizer.decode(last.input_ids[len(prompt) :])
    assert MESSAGES[-1].text in reply
    assert max(last.input_ids) < load_model(base, ON).get_input_embeddings().num_embeddings


def test_it_learns_and_its_adapter_merges(base: Path, tmp_path: Path) -> None:
    template, model = ChatTemplate(load_tokenizer(base)), load_model(base, ON)
    assert keeps_apart(model)
    model = add_adapter(model, TrainOptions(rank=4, alpha=8), 0).train()
    optimizer = torch.optim.AdamW(adapter_parameters(model).values(), lr=1e-2)
    batch = make_batch([template.sample(MESSAGES)])
    losses = []
    for _ in range(4):
        loss = token_losses(model, batch).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.01, losses
    save_adapter(model, tmp_path / "adapter", str(base))
    record = merge(base, tmp_path / "adapter", tmp_path / "merged")  # held against base + adapter
    assert record["tensors"]["changed"] >= 2 * 5
    check_base_folder(tmp_path / "merged")
    merged = load_model(tmp_path / "merged", ON).train()
    assert token_losses(merged, batch).mean().item() == pytest.approx(
        token_losses(model, batch).mean().item(), abs=0.02
    )
