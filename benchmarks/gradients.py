"""Whose gradients are nearer to fp32's: transformers and PEFT under bf16 autocast, or the fast path in bf16?

    python benchmarks/gradients.py                # the default base, on the CPU or a GPU

Packed rows through the same base and the same LoRA weights (B drawn at random, as if trained). Printed: the relative
error of the losses and of all LoRA gradients, |g - g32| / |g32|, the median over rows and each row's. The last line is
JSON.
"""

from __future__ import annotations

import json
import random
import statistics
from pathlib import Path
from typing import Any

import torch

from mrp.config import TrainOptions
from mrp.models.bases import find_base
from mrp.models.load import Hardware, load_model
from mrp.models.loss import make_batch, token_losses
from mrp.render import Rendered
from mrp.train.fast.engine import Engine
from mrp.train.fast.rows import flatten, shape_of
from mrp.train.lora import adapter_parameters, add_adapter

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Found = tuple[torch.Tensor, dict[str, torch.Tensor]]


def model_in(dtype: torch.dtype) -> Any:
    """The base in `dtype` with the same fp32 LoRA each time."""
    base = load_model(find_base("smollm2-135m-instruct", Path.cwd()), Hardware(DEVICE, dtype, None))
    model = add_adapter(base, TrainOptions(rank=16, alpha=16), 0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in adapter_parameters(model).items():
        if "lora_B" in name:
            parameter.data = (0.02 * torch.randn(parameter.shape, generator=generator)).to(DEVICE)
    return model.train()


def row(seed: int) -> list[Rendered]:
    chosen = random.Random(seed)
    lengths = (60, 90, 42)
    return [Rendered([chosen.randrange(20, 40000) for _ in range(n)], [i > n // 2 for i in range(n)]) for n in lengths]


def by_autograd(model: Any, dtype: torch.dtype | None, packed: list[Rendered]) -> Found:
    batch = make_batch([packed]).to(DEVICE)
    with torch.autocast(DEVICE, dtype=dtype, enabled=dtype is not None):
        losses = token_losses(model, batch)
    losses.mean().backward()
    return losses.detach(), {n: p.grad for n, p in adapter_parameters(model).items()}


def by_hand(model: Any, packed: list[Rendered]) -> Found:
    batch = make_batch([packed])
    engine = Engine(model, shape_of([[[(len(s.input_ids), s.labelled) for s in packed]]], 1))
    engine.begin_step()
    losses = engine.learn(flatten(batch, engine.shape, 1 / len(batch.target), 0))[: len(batch.target)]
    return losses, {n: p.grad for n, p in adapter_parameters(model).items()}


def errors(found: Found, exact: Found) -> dict[str, float]:
    def flat(grads: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([grads[name].flatten().double() for name in sorted(grads)])

    def relative(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a.double() - b.double()).norm() / b.double().norm())

    return {"losses": relative(found[0], exact[0]), "gradients": relative(flat(found[1]), flat(exact[1]))}


def main() -> None:
    results: dict[str, list[dict[str, float]]] = {"transformers and PEFT, bf16 autocast": [], "fast path, bf16": []}
    for seed in range(8):
        packed = row(seed)
        exact = by_autograd(model_in(torch.float32), None, packed)
        found = by_autograd(model_in(torch.bfloat16), torch.bfloat16, packed), by_hand(model_in(torch.bfloat16), packed)
        for rows, one in zip(results.values(), found, strict=True):
            rows.append(errors(one, exact))
    for name, rows in results.items():
        middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        each = " ".join(f"{row['gradients']:.4f}" for row in rows)
        print(f"{name:38} losses {middle['losses']:.4f}  gradients {middle['gradients']:.4f} ({each})")
    print(json.dumps({"device": DEVICE, "torch": torch.__version__, "results": results}))


if __name__ == "__main__":
    main()
