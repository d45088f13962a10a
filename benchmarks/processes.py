"""Several processes on one machine: tokens a second and memory of ddp, zero1, zero2 and fsdp2, in the same run.

    python benchmarks/processes.py                          # one process a GPU, LoRA and full, at the 1.8B shape
    python benchmarks/processes.py --shape tiny --processes 2 --steps 3 --only lora-zero2      # tries it on a CPU

Random weights in the shape of InternLM2-chat-1.8B (Llama layout, bf16; fp32 for full), packed rows of 60-300-token
documents with labels on the second half, plain passes with checkpointing, LoRA r=64, a step of 8 passes in each
process. Tokens/s over all processes, of the median step; memory of the first process, the most that torch had
allocated, and what its optimizer keeps. An arm a line, as JSON; an arm that fails says why, and the next one goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import socket
import statistics
import subprocess
import sys
import time
from typing import Any

STRATEGIES = ("ddp", "zero1", "zero2", "fsdp2")
ARMS = [f"{method}-{strategy}" for method in ("lora", "full") for strategy in STRATEGIES]
SHAPES = {
    "1.8B": {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 8192},
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128},
}
COMMON = {"num_key_value_heads": 4, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5}
PASSES = 8  # of a process in a step


def row_of(tokens: int, vocabulary: int, draw: random.Random) -> Any:
    """A full row of documents."""
    from mrp.render import Rendered

    samples, left = [], tokens
    while left:
        length = min(draw.randint(60, 300), left)
        ids = [draw.randrange(vocabulary) for _ in range(length)]
        samples.append(Rendered(ids, [place > length // 2 for place in range(length)]))
        left -= length
    return samples


def measure(arm: str, shape: str, tokens: int, steps: int) -> dict[str, Any] | None:
    """One arm, in this process of several; the first one returns what it measured."""
    import torch
    import transformers

    from mrp.config import TrainOptions
    from mrp.models.load import hardware
    from mrp.models.loss import make_batch, token_losses
    from mrp.train.full import unfreeze
    from mrp.train.lora import adapter_parameters, add_adapter
    from mrp.train.processes import joined
    from mrp.train.sharded_model import shard_model
    from mrp.train.sharding import ZeroUpdate
    from mrp.train.strategy import SHARDS_MODEL, make_update

    method, _, strategy = arm.partition("-")
    options = TrainOptions(method=method, rank=64, alpha=64)  # type: ignore[arg-type]
    with joined() as processes:
        on = hardware()
        torch.manual_seed(0)
        vocabulary = 92544 if shape != "tiny" else 512
        config = transformers.LlamaConfig(vocab_size=vocabulary, **SHAPES[shape], **COMMON)  # type: ignore[arg-type]
        held = "cpu" if strategy in SHARDS_MODEL else on.device
        with torch.device(held):
            dtype = torch.float32 if method == "full" else on.weights
            base = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).requires_grad_(False)
        model = unfreeze(base) if method == "full" else add_adapter(base, options, seed=0)
        if strategy in SHARDS_MODEL:
            shard_model(model, on.device)
        weights = adapter_parameters(model)
        inner = model.get_base_model() if method == "lora" else model
        inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        update = make_update(strategy, model, weights, processes, options, on)
        model.train()
        draw, seconds = random.Random(processes.rank), []
        for _ in range(steps):
            batches = [make_batch([row_of(tokens, vocabulary, draw)]).to(on.device) for _ in range(PASSES)]
            _wait(on.device)
            began = time.perf_counter()
            for parameter in weights.values():
                parameter.grad = None
            update.begin_step()
            for batch in batches:
                with on.autocast_context():
                    losses = token_losses(model, batch)
                (losses.sum() / (len(losses) * PASSES * processes.world)).backward()
                update.after_pass()
            norm = update.reduce(1.0)
            update.step()
            _wait(on.device)
            seconds.append(time.perf_counter() - began)
        peak = torch.cuda.max_memory_allocated() if on.device == "cuda" else 0
        typical = statistics.median(seconds[1:] or seconds)
        found = {
            "arm": arm,
            "processes": processes.world,
            "tokens_per_second": round(processes.world * PASSES * tokens / typical, 1),
            "step_seconds": round(typical, 4),
            "peak_gib": round(peak / 2**30, 2),
            "optimizer_mib": round(update.state_bytes() / 2**20, 1),
            "gradient_norm": norm,
            "rounds": len(update.rounds) if isinstance(update, ZeroUpdate) else None,
            "device": torch.cuda.get_device_name() if on.device == "cuda" else platform.machine(),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }
        return found if processes.is_first else None


def _wait(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def run_arm(arm: str, given: argparse.Namespace) -> dict[str, Any]:
    """The arm in processes of its own: what the first one measured, or why there is nothing."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    count = given.processes
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    place |= {"LOCAL_WORLD_SIZE": str(count)}
    command = [sys.executable, __file__, "--worker", arm, "--shape", given.shape, "--tokens", str(given.tokens)]
    command += ["--steps", str(given.steps)]
    started = []
    for rank in range(count):
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        started.append(
            subprocess.Popen(
                command,
                env={"OMP_NUM_THREADS": "4"} | os.environ | place | ranks,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        said = [process.communicate(timeout=given.limit) for process in started]
    except subprocess.TimeoutExpired:
        return {"arm": arm, "failed": f"no end after {given.limit} s"}
    finally:
        for process in started:
            process.kill()
    if any(process.returncode for process in started):
        words = [(err.strip().splitlines() or [""])[-1] for _, err in said]
        return {"arm": arm, "failed": words}
    return dict(json.loads(said[0][0].strip().splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1.8B")
    parser.add_argument("--processes", type=int, default=0, help="0: one a GPU")
    parser.add_argument("--tokens", type=int, default=2048, help="of a row")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--limit", type=float, default=240, help="seconds for an arm")
    parser.add_argument("--only", default="", help="arms that have this in their name")
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        found = measure(given.worker, given.shape, given.tokens, given.steps)
        if found:
            print(json.dumps(found))
        return
    if not given.processes:
        import torch

        given.processes = max(2, torch.cuda.device_count())
    for arm in ARMS:
        if given.only in arm:
            print(json.dumps(run_arm(arm, given)), flush=True)


if __name__ == "__main__":
    main()
