"""Tokens a second of chats on a GPU: steps as CUDA graphs beside the ordinary way, in turns, in one process.

    python benchmarks/chat_speed.py                                   # SmolLM2-135M, 1.8B and 7B; 1, 4 and 16 chats
    python benchmarks/chat_speed.py --voices 4                        # each chat with one of four voices of rank 8
    python benchmarks/chat_speed.py --shapes 7B --chats 1 --profile   # and which kernels a step spends its time in

SmolLM2-135M-instruct in bf16; the shapes of chat_memory.py with random weights in 4 bit (NF4) under an unmerged adapter
of rank 64 (PEFT). Each chat replies greedily to a prompt of its own. Both engines share the model; each side is run
once to warm up (graphs are captured then), then both in turns, and the medians are compared. `same` is the share of
replies that are equal token for token, `first` that of tokens before the first difference. Last, one chat of 4096
tokens' context shows what the process takes at most. One JSON line each; stops by itself after --deadline seconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from chat_memory import COMMON, MIB, SHAPES, build, random_ids

PROMPT, REPLY, CONTEXT = 200, 48, 4096
SMOL = "smollm2"


def adapted(model: Any, rank: int = 64) -> Any:
    """The model under an adapter with random weights, kept beside it."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    found = get_peft_model(model, LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear"))
    for name, weights in found.named_parameters():
        if "lora_" in name:
            weights.data = weights.data.to("cuda", torch.bfloat16)
            if "lora_B" in name:
                torch.nn.init.normal_(weights.data, std=0.005)
    return found.requires_grad_(False).eval()


def model_of(shape: str) -> tuple[Any, int]:
    """The model and the number of its tokens."""
    from mrp.models.bases import find_base
    from mrp.models.load import hardware, load_model

    if shape == SMOL:
        model = load_model(find_base("smollm2-135m-instruct", Path.cwd()), hardware("bf16"))
        return model.requires_grad_(False).eval(), int(model.config.vocab_size)
    return adapted(build(shape, 4)), COMMON["vocab_size"]


def voices_of(model: Any, count: int) -> Any:
    """So many voices of rank 8 with random weights, on all linear layers; None for none."""
    import torch

    from mrp.models.voices import new_voices

    if not count:
        return None
    bank = new_voices(model, [f"voice{k}" for k in range(count)], rank=8, alpha=16, seed=0)
    for name, weights in bank.parameters().items():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(weights.data, std=0.005)
        weights.requires_grad_(False)
    return bank


def all_say(engine: Any, prompts: list[list[int]], count: int, voices: int = 0) -> tuple[list[list[int]], float]:
    """What is said to all prompts at once, and the seconds since the last of them was read."""
    from mrp.play.engine import Request, Sampling

    def one(k: int) -> tuple[list[int], float]:
        found, first = [], 0.0
        who = f"voice{k % voices}" if voices else None
        for token in engine.stream(Request(prompts[k], Sampling(0, max_new_tokens=count), voice=who)):
            found.append(token.id)
            first = first or time.perf_counter()
        return found, first

    with ThreadPoolExecutor(len(prompts)) as pool:
        said = list(pool.map(one, range(len(prompts))))
    began = max(first for _, first in said)  # the last to have read its prompt
    seconds = time.perf_counter() - began
    return [ids for ids, _ in said], seconds


def compare(
    model: Any, vocabulary: int, shape: str, chats: int, rounds: int, until: float, voices: int
) -> dict[str, Any]:
    import torch

    from mrp.models.load import hardware
    from mrp.play.embedded import TransformersEngine

    on = hardware("bf16")
    bank = voices_of(model, voices)
    graphed, plain = (TransformersEngine(model, on, bank, cache_bytes=4 * 2**30) for _ in range(2))
    plain.steps.why = "the ordinary way is asked for"
    prompts = [random_ids(PROMPT + k, 10 * chats + k, vocabulary) for k in range(chats)]
    rate: dict[str, list[float]] = {"graphed": [], "ordinary": []}
    said: dict[str, list[list[int]]] = {}
    began = time.perf_counter()
    for turn in range(rounds + 1):
        if turn > 1 and time.perf_counter() > until:
            break
        for name, engine in (("graphed", graphed), ("ordinary", plain)):
            torch.cuda.synchronize()
            said[name], seconds = all_say(engine, prompts, REPLY, voices)
            if turn:
                rate[name].append(chats * (REPLY - 1) / seconds)
        if not turn:
            warm = time.perf_counter() - began
    if bank is not None:
        bank.remove()
    pairs = list(zip(said["graphed"], said["ordinary"], strict=True))
    alike = [next((k for k, (a, b) in enumerate(zip(*pair, strict=True)) if a != b), REPLY) for pair in pairs]
    medians = {name: statistics.median(found) for name, found in rate.items() if found}
    return {
        "shape": shape, "chats": chats, "voices": voices, "rounds": len(rate["ordinary"]),
        "tokens_a_second": {name: round(found, 1) for name, found in medians.items()},
        "times_as_fast": round(medians["graphed"] / medians["ordinary"], 2),
        "same": sum(a == b for a, b in pairs) / chats, "first": round(sum(alike) / chats / REPLY, 3),
        "why_not": graphed.steps.why, "graphed_steps": graphed.stats.graphed, "warm_up_seconds": round(warm, 1),
        "device": torch.cuda.get_device_name(), "torch": torch.__version__,
    }  # fmt: skip


def profile(model: Any, vocabulary: int, shape: str, chats: int, is_graphed: bool) -> None:
    """Where a step's time goes, on the host and on the GPU."""
    import torch

    from mrp.models.load import hardware
    from mrp.play.embedded import TransformersEngine

    engine = TransformersEngine(model, hardware("bf16"), cache_bytes=4 * 2**30)
    if not is_graphed:
        engine.steps.why = "the ordinary way is asked for"
    prompts = [random_ids(64, k, vocabulary) for k in range(chats)]
    all_say(engine, prompts, 10)
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as found:
        all_say(engine, [random_ids(64, 50 + k, vocabulary) for k in range(chats)], 12)
    print(f"-- {shape}, {chats} chats, {'graphed' if is_graphed else 'ordinary'}: 12 tokens each, by time on the GPU")
    averages = found.key_averages()
    print(averages.table(sort_by="self_cuda_time_total", row_limit=14, max_name_column_width=70), flush=True)
    print(averages.table(sort_by="self_cpu_time_total", row_limit=8, max_name_column_width=50), flush=True)


def fill(model: Any, vocabulary: int, shape: str) -> dict[str, Any]:
    """A chat that fills 4096 tokens, graphed: what the process takes at most."""
    import gc

    import torch

    from mrp.models.load import hardware
    from mrp.plan.chat import predict_chat
    from mrp.plan.shapes import shape_of_config
    from mrp.play.embedded import TransformersEngine

    gc.collect()
    torch.cuda.empty_cache()
    config = {"model_type": "llama", "tie_word_embeddings": False} | SHAPES[shape] | COMMON
    planned = predict_chat(shape_of_config(config, shape, "benchmarks/chat_speed.py"), 4, CONTEXT)
    adapter = sum(w.numel() * w.element_size() for name, w in model.named_parameters() if "lora_" in name)
    found: dict[str, Any] = {"shape": shape, "context": CONTEXT}
    for name in ("ordinary", "graphed"):
        engine = TransformersEngine(model, hardware("bf16"), cache_bytes=planned.parts["keys and values"])
        if name == "ordinary":
            engine.steps.why = "the ordinary way is asked for"
        torch.cuda.reset_peak_memory_stats()
        free, total = torch.cuda.mem_get_info()
        ids = random_ids(CONTEXT - REPLY, 3, vocabulary)
        all_say(engine, [ids], REPLY)
        free, total = torch.cuda.mem_get_info()
        now, most = torch.cuda.memory_reserved(), torch.cuda.max_memory_reserved()
        found[name] = {"in_all_mib": round((total - free - now + most) / MIB), "why_not": engine.steps.why}
        engine.close()
        del engine
        gc.collect()
        torch.cuda.empty_cache()
    return found | {"planned_mib": round(planned.in_all / MIB), "adapter_mib": round(adapter / MIB)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=[SMOL, "1.8B", "7B"], choices=[SMOL, *SHAPES])
    parser.add_argument("--chats", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--voices", type=int, default=0, help="so many, by turns among the chats")
    parser.add_argument("--deadline", type=float, default=600, help="seconds after which nothing new begins")
    parser.add_argument("--profile", action="store_true")
    chosen = parser.parse_args()
    until = time.perf_counter() + chosen.deadline
    for shape in chosen.shapes:
        try:
            model, vocabulary = model_of(shape)
            for chats in chosen.chats:
                if time.perf_counter() < until:
                    found = compare(model, vocabulary, shape, chats, chosen.rounds, until, chosen.voices)
                    print(json.dumps(found), flush=True)
            if shape != SMOL and not chosen.voices and time.perf_counter() < until:
                print(json.dumps(fill(model, vocabulary, shape)), flush=True)
            for chats, is_graphed in ((1, True), (1, False), (4, True)) if chosen.profile else ():
                if time.perf_counter() < until:
                    profile(model, vocabulary, shape, chats, is_graphed)
        except Exception:  # the next shape may still tell something
            traceback.print_exc()
        model = None


if __name__ == "__main__":
    main()
