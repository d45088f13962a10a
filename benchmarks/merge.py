"""Merging a 7B: how long against a plain copy of the same bytes, and in how much memory.

    python benchmarks/merge.py FOLDER                 # needs some 32 GB free in FOLDER, and gives them back
    python benchmarks/merge.py FOLDER --layers 2      # a small one, to try the script

A random checkpoint in bf16 (8 files, shape of Mistral-7B: 7.2 billion weights, 14.5 GB) gets a rank-64 adapter on all
linear layers. Each round copies the files plainly (and waits until they are on the disk), deletes the copy, then merges
and checks in a process of its own, whose peak of resident memory is what the system says; the next round the other way
round. Python's imports are not counted. The last line is JSON, with the medians.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HIDDEN, INNER, HEADS, KEY_HEADS, VOCABULARY, RANK = 4096, 14336, 32, 8, 32000, 64


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--merge-only", action="store_true", help="one merge of what is there (used by the script)")
    options = parser.parse_args()
    place = options.folder / "merge-benchmark"
    if options.merge_only:
        print(json.dumps(_merge(place)))
        return
    shutil.rmtree(place, ignore_errors=True)
    try:
        import torch

        count = _make(place, options.layers)
        print(f"made {count / 1e9:.2f} GB", flush=True)
        rounds = [_round(options.folder, place, k) for k in range(options.rounds)]
        middle = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
        print(f"medians of {len(rounds)}: {_told(middle)}")
        print(json.dumps({"bytes": count, "threads": torch.get_num_threads(), **middle}))
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _round(folder: Path, place: Path, k: int) -> dict[str, float]:
    """One copy and one merge; in every other round the merge goes first, since the first may find less in memory."""
    sides = [lambda: _copy(place), lambda: _merge_alone(folder, place)]
    found: dict[str, float] = {}
    for side in sides if k % 2 == 0 else sides[::-1]:
        found |= side()
    found["ratio"] = (found["write_s"] + found["check_s"]) / found["copy_s"]
    found["write_ratio"] = found["write_s"] / found["copy_s"]
    print(f"{_told(found)}, load {os.getloadavg()[0]:.1f}", flush=True)
    return found


def _told(found: dict[str, float]) -> str:
    return (
        f"plain copy {found['copy_s']:.1f} s (CPU {found['copy_cpu_s']:.1f}); merge and check "
        f"{found['write_s'] + found['check_s']:.1f} s (CPU {found['cpu_s']:.1f}), {found['ratio']:.2f} times the copy, "
        f"of it comparing the files {found['check_s']:.1f} s; peak {found['peak_gib']:.2f} GiB resident"
    )


def _merge_alone(folder: Path, place: Path) -> dict[str, float]:
    """A merge in a process of its own."""
    command = [sys.executable, __file__, str(folder), "--merge-only"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    shutil.rmtree(place / "out", ignore_errors=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"  {found.pop('verification')}\n  {found.pop('rounding')}")
    return dict(found)


def _merge(place: Path) -> dict[str, Any]:
    """Seconds until the files are written (the probes' passes are made meanwhile), and until they are compared."""
    from mrp.models.merge import merge
    from mrp.report import Reporter

    marks: list[float] = []

    class Clock(Reporter):
        def line(self, text: object = "") -> None:
            if str(text).startswith("checking"):
                marks.append(time.perf_counter())

    start, before = time.perf_counter(), time.process_time()
    record = merge(place / "base", place / "adapter", place / "out", max_shard_size="2GB", report=Clock())
    end, after = time.perf_counter(), time.process_time()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30  # Linux counts kibibytes
    return {
        "write_s": marks[0] - start,
        "check_s": end - marks[0],
        "cpu_s": after - before,
        "peak_gib": peak,
        "rounding": record["rounding"],
        "verification": record["verification"],
    }


def _copy(place: Path) -> dict[str, float]:
    """Seconds to copy the base's weights, down to the disk."""
    copy = place / "copy"
    copy.mkdir()
    start, before = time.perf_counter(), time.process_time()
    for path in sorted((place / "base").glob("*.safetensors")):
        shutil.copyfile(path, copy / path.name)
        with (copy / path.name).open("rb+") as file:
            os.fsync(file.fileno())
    seconds, cpu = time.perf_counter() - start, time.process_time() - before
    shutil.rmtree(copy)
    return {"copy_s": seconds, "copy_cpu_s": cpu}


# -- the model and the adapter -------------------------------------------------------------------------------------


def _make(place: Path, layers: int) -> int:
    """Write base and adapter; returns the bytes of the base's weights."""
    import torch
    from safetensors.torch import save_file

    from mrp.models.shards import StoredTensor, plan_shards, write_shards

    base, adapter = place / "base", place / "adapter"
    base.mkdir(parents=True)
    adapter.mkdir()
    _save_config(base, layers)
    _save_tokenizer(base)
    shapes = _shapes(layers)
    tensors = [
        StoredTensor(n, "BF16", s, base / "none", 0, 2 * s[0] * (s[1] if s[1:] else 1)) for n, s in shapes.items()
    ]
    torch.manual_seed(1)
    noise = memoryview((torch.randn(2**24) * 0.02).bfloat16().view(torch.uint8).numpy())  # 32 MiB, used again and again

    def pieces(tensor: StoredTensor) -> Iterator[memoryview | bytes]:
        if len(tensor.shape) == 1:
            yield torch.ones(tensor.shape).bfloat16().view(torch.uint8).numpy().tobytes()
            return
        left, at = tensor.nbytes, len(tensor.name) * 4096 + tensor.nbytes % 4093 * 2
        while left:
            piece = noise[at : at + left]
            left, at = left - len(piece), 0
            yield piece

    total = sum(t.nbytes for t in tensors)
    write_shards(base, plan_shards(tensors, -(-total // 8) + 2**27), pieces)
    halves = {}
    for name, shape in shapes.items():
        if "_proj" in name:
            key = f"base_model.model.{name.removesuffix('.weight')}"
            halves[f"{key}.lora_A.weight"] = (torch.randn(RANK, shape[1]) * shape[1] ** -0.5).bfloat16()
            halves[f"{key}.lora_B.weight"] = (torch.randn(shape[0], RANK) * 0.005).bfloat16()
    save_file(halves, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK}
    targets = sorted({n.split(".")[-2] for n in shapes if "_proj" in n})
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "target_modules": targets}), encoding="utf-8")
    return total


def _shapes(layers: int) -> dict[str, tuple[int, ...]]:
    small = HIDDEN // HEADS * KEY_HEADS
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for k in range(layers):
        at = f"model.layers.{k}"
        shapes |= {
            f"{at}.input_layernorm.weight": (HIDDEN,),
            f"{at}.self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            f"{at}.self_attn.k_proj.weight": (small, HIDDEN),
            f"{at}.self_attn.v_proj.weight": (small, HIDDEN),
            f"{at}.self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            f"{at}.post_attention_layernorm.weight": (HIDDEN,),
            f"{at}.mlp.gate_proj.weight": (INNER, HIDDEN),
            f"{at}.mlp.up_proj.weight": (INNER, HIDDEN),
            f"{at}.mlp.down_proj.weight": (HIDDEN, INNER),
        }
    return shapes | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}


def _save_config(base: Path, layers: int) -> None:
    import transformers

    transformers.LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        tie_word_embeddings=False,
        dtype="bfloat16",
    ).save_pretrained(base)


def _save_tokenizer(base: Path) -> None:
    """Bytes as tokens: the check needs a few ids, not a language."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={"<|im_end|>": 0} | {c: k for k, c in enumerate(alphabet, 1)}, merges=[]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>").save_pretrained(base)


if __name__ == "__main__":
    main()
