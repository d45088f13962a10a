"""Unsloth's training steps on one GPU, on the rows and settings of gpu_train.py.

    python benchmarks/gpu_unsloth.py [--shape 1.8B]         # then gpu_train.py --only ours

Random weights in the true shape are written as a folder, which Unsloth loads in 4 bit; its LoRA (r=64 on all linear
layers) is trained by TRL's SFTTrainer, 16 passes of a 2048-token row a step. Each arm runs in a process of its own, as
Unsloth patches transformers. Dropout 0.1 is the recipe's; its own kernels are for dropout 0: both are measured.
Prints a JSON line for each arm.
"""

from __future__ import annotations

import os

os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ARMS = (("0", "true"), ("0.1", "true"), ("0", "unsloth"), ("0.1", "false"), ("0", "false"))  # dropout, checkpointing
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def write_base(folder: Path, shape: str) -> None:
    """A Llama of the shape with random numbers, and a tokenizer."""
    import torch
    from gpu_train import COMMON, SHAPES, bare_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = SHAPES[shape] | COMMON | {"rope_theta": 1e6}
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        model = LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=False))
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(str(folder))
    bare_tokenizer().save_pretrained(str(folder))


def measure(folder: Path, dropout: float, checkpointing: bool | str, steps: int) -> dict[str, Any]:
    """Tokens a second and memory of one arm."""
    began = time.perf_counter()
    import unsloth  # first, as it patches what comes after
    from unsloth import FastLanguageModel

    del unsloth
    import torch
    from gpu_train import MIB, rows, trl_steps

    model, _ = FastLanguageModel.from_pretrained(
        str(folder), max_seq_length=2048, dtype=torch.bfloat16, load_in_4bit=True
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=64,
        lora_alpha=16,
        lora_dropout=dropout,
        target_modules=TARGETS,
        use_gradient_checkpointing=checkpointing,
        random_state=0,
    )
    times = trl_steps(model, rows(2048, 16), bool(checkpointing), steps)
    free, total = torch.cuda.mem_get_info()
    most = torch.cuda.max_memory_reserved()
    return {
        "tokens_per_second": round(16 * 2048 / statistics.median(times)),
        "allocated_mib": round(torch.cuda.max_memory_allocated() / MIB),
        "in_all_mib": round((total - free - torch.cuda.memory_reserved() + most) / MIB),
        "seconds": round(time.perf_counter() - began),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="1.8B")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/unsloth-base"))
    parser.add_argument("--steps", type=int, default=2, help="timed steps")
    parser.add_argument("--arm", nargs=2, metavar=("DROPOUT", "CHECKPOINTING"), help="this one, in this process")
    options = parser.parse_args()
    if options.arm:
        dropout, checkpointing = float(options.arm[0]), options.arm[1]
        how = checkpointing if checkpointing == "unsloth" else checkpointing == "true"
        print(json.dumps(measure(options.folder, dropout, how, options.steps)))
        return
    write_base(options.folder, options.shape)
    for dropout, checkpointing in ARMS:
        again = [sys.executable, __file__, "--folder", str(options.folder), "--steps", str(options.steps)]
        done = subprocess.run([*again, "--arm", dropout, checkpointing], capture_output=True, text=True, check=False)
        row = {"shape": options.shape, "dropout": dropout, "checkpointing": checkpointing}
        if done.returncode:
            row["error"] = " | ".join(done.stderr.strip().splitlines()[-4:])[-900:]
        else:
            row |= json.loads(done.stdout.strip().splitlines()[-1])
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
