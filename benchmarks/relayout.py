"""`mrp convert internlm2-to-llama` on a checkpoint of InternLM2-7B's shape against a plain copy of the same files.

    python benchmarks/relayout.py [--layers 32] [--rounds 2] [--folder DIR] --tokenizer tokenizer.model

Random bfloat16 in files of at most 2 GB (8 of them for 32 layers, 15.5 GB), made in a temporary folder and deleted
after; twice that room is needed. Each round copies and converts in turn, both from a cold cache (where the system
allows) and both until the bytes are on the disk. The conversion is a whole process, Python's start included; its
peak of resident memory is the system's own count.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from mrp.models.internlm2_config import read_sizes
from mrp.models.internlm2_weights import read_model_weights
from mrp.models.shards import StoredTensor, as_piece, plan_shards, write_shards

CONFIG = {
    "architectures": ["InternLM2ForCausalLM"],
    "model_type": "internlm2",
    "bias": False,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rope_theta": 1000000,
    "rope_scaling": {"type": "dynamic", "factor": 2.0},
    "vocab_size": 92544,
}
BLOCK = 2**24  # numbers that are repeated: making 7.7 billion would take longer than the benchmark


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where the files are made; default: the system's temporary folder")
    parser.add_argument("--tokenizer", type=Path, required=True, help="a tokenizer.model of InternLM2")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mrp-relayout-", dir=options.folder) as folder:
        source = Path(folder) / "internlm2"
        make_checkpoint(source, options.layers, options.tokenizer)
        print(json.dumps(measure(source, Path(folder), options.rounds)))


def make_checkpoint(folder: Path, layers: int, tokenizer: Path) -> None:
    """A random model of InternLM2-7B's widths."""
    folder.mkdir()
    config = CONFIG | {"num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shutil.copyfile(tokenizer, folder / "tokenizer.model")
    numbers = as_piece(torch.randn(BLOCK, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16))

    def pieces(tensor: StoredTensor) -> Any:
        for begin in range(0, tensor.nbytes, len(numbers)):
            yield numbers[: min(len(numbers), tensor.nbytes - begin)]

    shapes = read_sizes(config, "config.json").internlm2_shapes()
    tensors = [
        StoredTensor(name, "BF16", shape, folder, 0, 2 * torch.Size(shape).numel()) for name, shape in shapes.items()
    ]
    write_shards(folder, plan_shards(tensors, 2 * 10**9), pieces)


def measure(source: Path, folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds of both, their ratio, the peak of memory; a table for people is printed."""
    files = sorted(source.glob("*.safetensors"))
    total_bytes = sum(path.stat().st_size for path in files)
    print(f"{total_bytes / 1e9:.1f} GB in {len(files)} files")
    seconds: dict[str, list[float]] = {"copy": [], "convert": []}
    peaks: list[int] = []
    for _ in range(rounds):
        seconds["copy"].append(copy_all(files, folder / "copy"))
        shutil.rmtree(folder / "copy")
        taken, peak = convert(source, files, folder / "llama")
        seconds["convert"].append(taken)
        peaks.append(peak)
        assert sum(t.nbytes for t in read_model_weights(folder / "llama").values()) > 0.999 * total_bytes
        shutil.rmtree(folder / "llama")
        for who, last in seconds.items():
            print(f"{who:8} {last[-1]:7.1f} s  {total_bytes / 1e6 / last[-1]:7.0f} MB/s")
    ratios = [ours / theirs for ours, theirs in zip(seconds["convert"], seconds["copy"], strict=True)]
    print(f"convert / copy: {', '.join(f'{r:.2f}' for r in ratios)}; peak memory {max(peaks) / 2**30:.2f} GiB resident")
    return {
        "bytes": total_bytes,
        "files": len(files),
        "seconds": {who: [round(t, 2) for t in taken] for who, taken in seconds.items()},
        "ratios": [round(r, 3) for r in ratios],
        "peak_resident_gib": round(max(peaks) / 2**30, 3),
    }


def copy_all(files: list[Path], out: Path) -> float:
    """Seconds of a plain copy of the files, until it is on the disk."""
    forget(files)
    out.mkdir()
    start = time.perf_counter()
    for path in files:
        shutil.copyfile(path, out / path.name)
        with (out / path.name).open("rb+") as file:
            os.fsync(file.fileno())
    return time.perf_counter() - start


def convert(source: Path, files: list[Path], out: Path) -> tuple[float, int]:
    """Seconds of the command, and its peak of resident bytes."""
    forget(files)
    command = [sys.executable, "-m", "mrp", "convert", "internlm2-to-llama", str(source), str(out), "-q"]
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"mrp convert failed: {status}")
    return time.perf_counter() - start, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget(files: list[Path]) -> None:
    """Drop the files from the system's cache, so that both read from the disk."""
    os.sync()
    for path in files:
        with path.open("rb") as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
