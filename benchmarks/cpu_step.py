"""Speed of a CPU training step on the demo's own data: with and without PEFT's input casts, in turns in one run.

    OMP_WAIT_POLICY=passive python benchmarks/cpu_step.py        # or GOMP_SPINCOUNT=10000, or neither

Prints tokens a second of each turn; the last line is JSON.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mrp.config import load_run
from mrp.data.build import build_data
from mrp.models.bases import find_base
from mrp.models.load import hardware, load_model, load_tokenizer, set_threads
from mrp.models.loss import make_batch, token_losses
from mrp.render import ChatTemplate
from mrp.train.lora import adapter_parameters, add_adapter
from mrp.train.steps import plan_training

STEPS, TURNS = 12, 3


def main() -> None:
    run = load_run(Path(__file__).parents[1] / "examples" / "pilgrims")
    base, on = find_base(run.config.base), hardware()
    with tempfile.TemporaryDirectory() as folder:
        run = replace(run, folder=Path(folder))
        build_data(run)
        plan = plan_training(run, ChatTemplate(load_tokenizer(base)))
    model = add_adapter(load_model(base, on), run.config.train, 0).train()
    optimizer = torch.optim.AdamW(adapter_parameters(model).values(), lr=1e-4, fused=True)
    batches = [make_batch([[item.rendered for item in row] for row in step.rows]) for step in plan.steps[:STEPS]]

    def turn(casts: bool) -> float:
        for layer in model.modules():
            if hasattr(layer, "cast_input_dtype_enabled"):
                layer.cast_input_dtype_enabled = casts
        began = time.monotonic()
        for batch in batches:
            with on.autocast_context():
                losses = token_losses(model, batch)
            losses.mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        return sum(batch.tokens for batch in batches) / (time.monotonic() - began)

    turn(False)  # warm up
    speeds: dict[str, list[float]] = {"without casts": [], "with casts": []}
    for _ in range(TURNS):
        for name, casts in (("without casts", False), ("with casts", True)):
            speeds[name].append(round(turn(casts), 1))
            print(f"{name}: {speeds[name][-1]} tokens/s")
    result: dict[str, Any] = {"threads": set_threads(0), "precision": on.precision, "tokens_per_second": speeds}
    result["waiting"] = {k: os.environ[k] for k in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT") if k in os.environ}
    result["ratio"] = round(max(speeds["without casts"]) / max(speeds["with casts"]), 2)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
