"""The GPU memory of play at 4096 tokens in 16, 8 and 4 bit: predicted (`mrp plan --for chat`) beside measured.

    python benchmarks/chat_memory.py                                             # a chat: 1.8B and 7B, all bits
    python benchmarks/chat_memory.py --shapes 7B --bits 8 4 --modes chat scene eval      # about three minutes

Random weights in the true shapes of InternLM2-chat-1.8B and -7B (Llama layout), made layer by layer on the GPU; the
engine that `mrp chat` has. Three modes:

- chat: turn by turn one chat grows to its whole context; each prompt goes on from the last.
- scene: four characters take turns, each with a context of its own that grows as long.
- eval: losses of a packed row of 2048 tokens, every second one labelled; then eight replies at once to prompts that
  fill the context; then the likelihood of names, and of a long continuation.

Keys and values may take what the plan leaves them within 7.5 GiB (`kept_chats` whole contexts); where not even one fits
(7B in 8 bit), as much as all chats need. Each configuration in a process of its own, one JSON line each: MiB predicted
by part and in all, allocated and reserved by torch at most, and all that the card lost, CUDA's context included.
`fits_7_5_gib` says whether that is below 7.5 GiB.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # as `mrp chat` does

SHAPES = {
    "1.8B": {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 8192},
    "7B": {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 14336},
    "tiny": {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 8, "intermediate_size": 512},
}
COMMON = {"num_key_value_heads": 8, "vocab_size": 92544, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5}
MIB = 2**20
BUDGET = int(7.5 * 1024) * MIB
REPLY, SHORT = 64, 16  # tokens of a reply: of a chat; in a scene and an evaluation
CHATS = {"chat": 1, "scene": 4, "eval": 8}
JUDGED = 2048  # tokens of a row whose losses are measured


def build(shape: str, bits: int) -> Any:
    """The model, never with more on the GPU than it will keep and one matrix."""
    import bitsandbytes as bnb
    import torch
    from transformers import LlamaConfig
    from transformers.models.llama import modeling_llama

    rope = {"rope_type": "default", "rope_theta": 1e6}
    config = LlamaConfig(**SHAPES[shape] | COMMON, rope_parameters=rope, tie_word_embeddings=False)
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        model = modeling_llama.LlamaForCausalLM(config)
    generator = torch.Generator("cuda").manual_seed(1)

    def linear(old: Any) -> Any:
        into, out = old.in_features, old.out_features
        made = torch.empty(out, into, device="cuda", dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
        if bits == 4:
            new = bnb.nn.Linear4bit(into, out, False, torch.bfloat16, quant_type="nf4", device="meta")
            new.weight = bnb.nn.Params4bit(
                made, requires_grad=False, compress_statistics=True, quant_type="nf4", module=new
            ).to("cuda")
        elif bits == 8:
            new = bnb.nn.Linear8bitLt(into, out, False, has_fp16_weights=False, device="meta")
            new.weight = bnb.nn.Int8Params(made.cpu(), requires_grad=False, has_fp16_weights=False).to("cuda")
        else:
            new = torch.nn.Linear(into, out, bias=False, device="meta")
            new.weight = torch.nn.Parameter(made, requires_grad=False)
        return new

    for layer in model.model.layers:
        for name, module in list(layer.named_modules()):
            if isinstance(module, torch.nn.Linear):
                parent, _, last = name.rpartition(".")
                setattr(layer.get_submodule(parent), last, linear(module))
    for module in (model.model.embed_tokens, model.lm_head):
        made = torch.empty(config.vocab_size, config.hidden_size, device="cuda", dtype=torch.bfloat16)
        module.weight = torch.nn.Parameter(made.normal_(0, 0.02, generator=generator), requires_grad=False)
    for module in model.modules():
        if "RMSNorm" in type(module).__name__:
            ones = torch.ones(config.hidden_size, device="cuda", dtype=torch.bfloat16)
            module.weight = torch.nn.Parameter(ones, requires_grad=False)
    model.model.rotary_emb = modeling_llama.LlamaRotaryEmbedding(config=config).to("cuda")
    return model.requires_grad_(False).eval()


def random_ids(count: int, seed: int, vocabulary: int) -> list[int]:
    import torch

    found = torch.randint(5, vocabulary, (count,), generator=torch.Generator().manual_seed(seed))
    return [int(each) for each in found]


def reply(engine: Any, ids: list[int], count: int) -> list[int]:
    from mrp.play.engine import Request, Sampling

    tokens = engine.stream(Request(ids, Sampling(0, max_new_tokens=count)))
    return [token.id for token in tokens if token.id is not None]


def play(engine: Any, mode: str, context: int, vocabulary: int) -> Iterable[float]:
    """A chat, or a scene, that grows to its whole context; yields the seconds of each turn."""
    count = REPLY if mode == "chat" else SHORT
    ids: list[list[int]] = [[] for _ in range(CHATS[mode])]
    for turn, length in enumerate((context // 4, context // 2, context - count)):  # tokens of the prompt
        for who, own in enumerate(ids):
            own += random_ids(max(length - len(own), 1), 10 * turn + who, vocabulary)
            began = time.perf_counter()
            own += reply(engine, own, count)
            yield time.perf_counter() - began


def evaluate(engine: Any, on: Any, context: int, vocabulary: int) -> Iterable[float]:
    """Losses, replies and likelihoods as `mrp eval` asks for them; yields the seconds of each."""
    import torch

    from mrp.models.loss import make_batch, token_losses
    from mrp.render import Rendered

    width = JUDGED // 8
    samples = [
        Rendered(random_ids(width, k, vocabulary), [at % 2 == 1 for at in range(width)]) for k in range(JUDGED // width)
    ]
    began = time.perf_counter()
    with torch.no_grad(), on.autocast_context():
        assert token_losses(engine.model, make_batch([samples]).to(on.device)).isfinite().all()
    yield time.perf_counter() - began
    began = time.perf_counter()
    prompts = [random_ids(context - SHORT, 100 + k, vocabulary) for k in range(CHATS["eval"])]
    with ThreadPoolExecutor(len(prompts)) as pool:
        assert all(len(found) == SHORT for found in pool.map(lambda ids: reply(engine, ids, SHORT), prompts))
    yield time.perf_counter() - began
    began = time.perf_counter()
    engine.score(
        prompts[0][: context // 2], [random_ids(count, count, vocabulary) for count in (3, 4, 5, context // 4)]
    )
    yield time.perf_counter() - began


def planned(shape: Any, bits: int, context: int, mode: str) -> Any:
    """As many chats as stay within the budget; all of them where not even one does."""
    from mrp.plan.chat import SCORING, predict_chat
    from mrp.plan.choose import usable

    tried = [predict_chat(shape, bits, context, count) for count in range(CHATS[mode], 0, -1)]
    if mode == "eval":
        tried = [dataclasses.replace(one, parts=one.parts | {"losses and likelihoods": SCORING}) for one in tried]
    return next((found for found in tried if found.in_all <= usable(BUDGET)), tried[0])


def measure(shape: str, bits: int, context: int, mode: str) -> dict[str, Any]:
    """One mode of play that fills its context."""
    import torch

    from mrp.models.load import hardware
    from mrp.plan.shapes import shape_of_config
    from mrp.play.embedded import TransformersEngine

    torch.cuda.init()
    free_before, total = torch.cuda.mem_get_info()  # this process's own context is already counted as lost
    began = time.perf_counter()
    model = build(shape, bits)
    gc.collect()
    torch.cuda.empty_cache()
    built = time.perf_counter() - began
    weights = torch.cuda.memory_allocated()
    config = {"model_type": "llama", "tie_word_embeddings": False} | SHAPES[shape] | COMMON
    predicted = planned(shape_of_config(config, shape, "benchmarks/chat_memory.py"), bits, context, mode)
    torch.cuda.reset_peak_memory_stats()
    on, vocabulary = hardware("bf16"), COMMON["vocab_size"]
    engine = TransformersEngine(model, on, cache_bytes=predicted.parts["keys and values"])
    work = evaluate(engine, on, context, vocabulary) if mode == "eval" else play(engine, mode, context, vocabulary)
    seconds = list(work)
    torch.cuda.synchronize()
    free, _ = torch.cuda.mem_get_info()
    now, most = torch.cuda.memory_reserved(), torch.cuda.max_memory_reserved()
    in_all = (total - free - now + most) / MIB
    return {
        "shape": shape,
        "bits": bits,
        "mode": mode,
        "context": context,
        "chats": CHATS[mode],
        "kept_chats": predicted.chats,
        "predicted_mib": {name: round(size / MIB) for name, size in predicted.parts.items()},
        "predicted_in_all_mib": round(predicted.in_all / MIB),
        "weights_mib": round(weights / MIB),
        "allocated_mib": round(torch.cuda.max_memory_allocated() / MIB),
        "reserved_mib": round(most / MIB),
        "in_all_mib": round(in_all),
        "measured_over_predicted": round(in_all * MIB / predicted.in_all, 3),
        "used_by_others_before_mib": round((total - free_before) / MIB),
        "fits_7_5_gib": in_all * MIB < BUDGET,
        "stats": dataclasses.asdict(engine.stats),
        "seconds_to_build": round(built, 1),
        "seconds": [round(s, 2) for s in seconds],
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["1.8B", "7B"], choices=SHAPES)
    parser.add_argument("--bits", nargs="+", type=int, default=[16, 8, 4], choices=(16, 8, 4))
    parser.add_argument("--modes", nargs="+", default=["chat"], choices=CHATS)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # measure in this process
    chosen = parser.parse_args()
    for shape, bits, mode in itertools.product(chosen.shapes, chosen.bits, chosen.modes):
        if chosen.here:
            print(json.dumps(measure(shape, bits, chosen.context, mode)), flush=True)
            continue
        own = ["--shapes", shape, "--bits", str(bits), "--modes", mode, "--context", str(chosen.context), "--here"]
        done = subprocess.run([sys.executable, __file__, *own], capture_output=True, text=True, timeout=600)
        failed = {"shape": shape, "bits": bits, "mode": mode, "error": done.stderr.strip()[-600:]}
        print(done.stdout.strip() if done.returncode == 0 else json.dumps(failed), flush=True)


if __name__ == "__main__":
    main()
