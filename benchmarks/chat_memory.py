"""The GPU memory of a chat of 4096 tokens in 16, 8 and 4 bit: predicted (`mrp plan --for chat`) beside measured.

    python benchmarks/chat_memory.py                       # 1.8B and 7B, each number of bits
    python benchmarks/chat_memory.py --shapes 7B --bits 4 --context 4096

Random weights in the true shapes of InternLM2-chat-1.8B and -7B (Llama layout), made layer by layer on the GPU; the
engine that `mrp chat` has. Turn by turn the chat grows to its whole context: each prompt goes on from the last, the
last reply ends at the last token. Each configuration in a process of its own, one JSON line each: MiB predicted by
part and in all, allocated and reserved by torch at most, and all that the card lost, CUDA's context included.
`fits_7_5_gib` says whether that is below 7.5 GiB.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import subprocess
import sys
import time
from typing import Any

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # as `mrp chat` does

SHAPES = {
    "1.8B": {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 8192},
    "7B": {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 14336},
    "tiny": {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 8, "intermediate_size": 512},
}
COMMON = {"num_key_value_heads": 8, "vocab_size": 92544, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5}
MIB = 2**20
REPLY = 64  # tokens


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


def measure(shape: str, bits: int, context: int) -> dict[str, Any]:
    """One chat that fills its context."""
    import torch

    from mrp.models.load import hardware
    from mrp.plan.chat import predict_chat
    from mrp.plan.shapes import shape_of_config
    from mrp.play.embedded import TransformersEngine
    from mrp.play.engine import Request, Sampling

    torch.cuda.init()
    free_before, total = torch.cuda.mem_get_info()  # this process's own context is already counted as lost
    model = build(shape, bits)
    gc.collect()
    torch.cuda.empty_cache()
    weights = torch.cuda.memory_allocated()
    config = {"model_type": "llama", "tie_word_embeddings": False} | SHAPES[shape] | COMMON
    predicted = predict_chat(shape_of_config(config, shape, "benchmarks/chat_memory.py"), bits, context)
    torch.cuda.reset_peak_memory_stats()
    engine = TransformersEngine(model, hardware("bf16"))
    chosen = torch.Generator().manual_seed(2)
    ids: list[int] = []
    turns = [context // 4, context // 2, context - REPLY]  # tokens of the prompt at each turn
    seconds: list[float] = []
    for length in turns:
        more = max(length - len(ids), 1)
        ids += torch.randint(5, COMMON["vocab_size"], (more,), generator=chosen).tolist()
        began = time.perf_counter()
        said = list(engine.stream(Request(ids, Sampling(0, max_new_tokens=REPLY))))
        seconds.append(time.perf_counter() - began)
        ids += [token.id for token in said if token.id is not None]
    torch.cuda.synchronize()
    free, _ = torch.cuda.mem_get_info()
    now, most = torch.cuda.memory_reserved(), torch.cuda.max_memory_reserved()
    in_all = (total - free - now + most) / MIB
    return {
        "shape": shape,
        "bits": bits,
        "context": context,
        "tokens_at_the_end": len(ids),
        "predicted_mib": {name: round(size / MIB) for name, size in predicted.parts.items()},
        "predicted_in_all_mib": round(predicted.in_all / MIB),
        "weights_mib": round(weights / MIB),
        "allocated_mib": round(torch.cuda.max_memory_allocated() / MIB),
        "reserved_mib": round(most / MIB),
        "in_all_mib": round(in_all),
        "measured_over_predicted": round(in_all * MIB / predicted.in_all, 3),
        "used_by_others_before_mib": round((total - free_before) / MIB),
        "fits_7_5_gib": in_all < 7.5 * 1024,
        "stats": dataclasses.asdict(engine.stats),
        "seconds_a_turn": [round(s, 2) for s in seconds],
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="1.8B,7B")
    parser.add_argument("--bits", default="16,8,4")
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # measure in this process
    chosen = parser.parse_args()
    for shape in chosen.shapes.split(","):
        for bits in map(int, chosen.bits.split(",")):
            if chosen.here:
                print(json.dumps(measure(shape, bits, chosen.context)), flush=True)
                continue
            own = ["--shapes", shape, "--bits", str(bits), "--context", str(chosen.context), "--here"]
            done = subprocess.run([sys.executable, __file__, *own], capture_output=True, text=True, timeout=600)
            failed = {"shape": shape, "bits": bits, "error": done.stderr.strip()[-600:]}
            print(done.stdout.strip() if done.returncode == 0 else json.dumps(failed), flush=True)


if __name__ == "__main__":
    main()
