"""Training steps on one GPU: the usual Hugging Face stack beside our fast path, in the same run.

    python benchmarks/gpu_train.py                                # all configurations (TRL's where it is installed)
    python benchmarks/gpu_train.py --only ours --shapes 1.8B --profile

Random weights in the true shapes of InternLM2-chat-1.8B and -7B (Llama layout, NF4 with double quantisation), rows
packed from documents of 60-300 tokens with labels on the second half of each, micro-batch 1 x 16, LoRA r=64 on all
linear layers, dropout 0.1. A step is 16 passes, clipping and AdamW; tokens/s are those of the median step, optimizer
and all. Memory: the most that torch had allocated and reserved, and all that the card lost, CUDA's context included.
A table for people; the last line is JSON.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import importlib.util
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # as `mrp train` does

import bitsandbytes as bnb
import torch
import transformers
from torch.nn.utils import clip_grad_norm_
from transformers.models.llama import modeling_llama

from mrp.config import TrainOptions
from mrp.models.loss import make_batch
from mrp.render import Rendered
from mrp.train.fast.engine import Engine
from mrp.train.fast.rows import flatten, shape_of
from mrp.train.lora import adapter_parameters, add_adapter
from mrp.train.passes import make_optimizer

SHAPES = {
    "1.8B": {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 8192},
    "7B": {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 14336},
    "135M": {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "intermediate_size": 1536}
    | {"num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True},  # SmolLM2's
    "tiny": {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512},
}
COMMON: dict[str, Any] = {"num_key_value_heads": 8, "vocab_size": 92544, "tie_word_embeddings": False}
COMMON |= {"max_position_embeddings": 32768, "rms_norm_eps": 1e-5}
MIB = 2**20


@dataclass(frozen=True)
class Configuration:
    """What one row of the table measures."""

    stack: str  # "usual" (transformers and PEFT), "trl" (SFTTrainer) or "ours"
    shape: str
    checkpointing: bool
    tokens: int = 2048
    offload: bool = False
    adapter_bits: int = 32
    optimizer: str = "adamw"
    attention: str = "sdpa"  # of the usual stack
    bits: int = 4

    @property
    def name(self) -> str:
        parts = [self.stack, self.shape, f"{self.tokens}", "checkpointing" if self.checkpointing else "none"]
        parts += ["offload"] * self.offload + [f"adapter {self.adapter_bits}"] * (self.adapter_bits != 32)
        return ", ".join(parts + [self.optimizer] * (self.optimizer != "adamw") + ["bf16 base"] * (self.bits == 16))


def configurations() -> list[Configuration]:
    small = {"offload": True, "adapter_bits": 16, "optimizer": "adamw-8bit"}
    trl = importlib.util.find_spec("trl") is not None
    return [
        *(Configuration("trl", shape, on) for shape in ("1.8B", "7B") for on in (True, False) if trl),
        *(Configuration("usual", shape, on) for shape in ("1.8B", "7B") for on in (True, False)),
        *(Configuration("ours", shape, on) for shape in ("1.8B", "7B") for on in (True, False)),
        Configuration("ours", "7B", True, adapter_bits=16),
        *(Configuration("ours", "7B", True, tokens, **small) for tokens in (2048, 4096, 8192, 16384)),
    ]


# -- model and rows ------------------------------------------------------------------------------------------------


def build(configuration: Configuration) -> Any:
    """The base, made layer by layer on the GPU, so that it never needs more than it will take."""
    config = transformers.LlamaConfig(
        **COMMON | SHAPES[configuration.shape],
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        use_cache=False,
    )
    config._attn_implementation = configuration.attention
    with torch.device("meta"):
        model = modeling_llama.LlamaForCausalLM(config)
    generator = torch.Generator("cuda").manual_seed(1)

    def made(*size: int) -> torch.Tensor:
        return torch.empty(*size, device="cuda", dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)

    for layer in model.model.layers:
        for name, module in list(layer.named_modules()):
            if isinstance(module, torch.nn.Linear):
                weight = made(module.out_features, module.in_features)
                new = quantised(weight) if configuration.bits == 4 else linear(weight)
                parent, _, last = name.rpartition(".")
                setattr(layer.get_submodule(parent), last, new)
    for module in (model.model.embed_tokens, model.lm_head):
        module.weight = torch.nn.Parameter(made(config.vocab_size, config.hidden_size), requires_grad=False)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    if configuration.offload:
        model.model.embed_tokens.weight.data = model.model.embed_tokens.weight.data.cpu()
    for module in model.modules():
        if "RMSNorm" in type(module).__name__:
            ones = torch.ones(config.hidden_size, device="cuda", dtype=torch.bfloat16)
            module.weight = torch.nn.Parameter(ones, requires_grad=False)
    model.model.rotary_emb = modeling_llama.LlamaRotaryEmbedding(config=config).to("cuda")
    model.is_loaded_in_4bit = configuration.bits == 4
    return model.requires_grad_(False)


def quantised(weight: torch.Tensor) -> Any:
    rows, columns = weight.shape
    new = bnb.nn.Linear4bit(columns, rows, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4", device="meta")
    new.weight = bnb.nn.Params4bit(
        weight, requires_grad=False, compress_statistics=True, quant_type="nf4", module=new
    ).to("cuda")
    return new


def linear(weight: torch.Tensor) -> Any:
    new = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    new.weight = torch.nn.Parameter(weight, requires_grad=False)
    return new


def rows(tokens: int, count: int, vocabulary: int = COMMON["vocab_size"]) -> list[list[Rendered]]:
    """Rows filled with documents of 60-300 tokens (the last one cut), the second half of each to be learnt."""
    chosen = random.Random(0)
    found = []
    for _ in range(count):
        row: list[Rendered] = []
        left = tokens
        while left > 1:
            length = min(chosen.randint(60, 300), left)
            ids = [chosen.randrange(5, vocabulary) for _ in range(length)]
            row.append(Rendered(ids, [i >= max(length // 2, 1) for i in range(length)]))
            left -= length
        found.append(row)
    return found


# -- the two stacks ------------------------------------------------------------------------------------------------


def usual_pass(model: Any, packed: list[list[Rendered]], labelled: int) -> Callable[[int], torch.Tensor]:
    """Forward and backward as a trainer of transformers does it: a causal mask, full logits, autocast."""
    given = []
    for row in packed:
        ids = [i for s in row for i in s.input_ids]
        labels = [i if on else -100 for s in row for i, on in zip(s.input_ids, s.loss, strict=True)]
        given.append([torch.tensor([values], device="cuda") for values in (ids, labels)])

    def run(number: int) -> torch.Tensor:
        ids, labels = given[number]
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=labels, num_items_in_batch=labelled, use_cache=False).loss
        loss.backward()
        return loss.detach()

    return run


def our_pass(engine: Engine, packed: list[list[Rendered]], labelled: int) -> Callable[[int], torch.Tensor]:
    numbers = [flatten(make_batch([row]), engine.shape, 1 / labelled, number) for number, row in enumerate(packed)]

    def run(number: int) -> torch.Tensor:
        return engine.learn(numbers[number]).sum() / labelled

    return run


def trl_steps(model: Any, packed: list[list[Rendered]], checkpointing: bool, steps: int) -> list[float]:
    """Seconds of SFTTrainer's steps after the first; rows are packed and labelled beforehand."""
    import datasets
    import transformers
    import trl

    rows_given = []
    for row in packed:
        labels = [i if on else -100 for s in row for i, on in zip(s.input_ids, s.loss, strict=True)]
        rows_given.append({"input_ids": [i for s in row for i in s.input_ids], "labels": labels})
    times: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            torch.cuda.synchronize()
            times.append(-time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            torch.cuda.synchronize()
            times[-1] += time.perf_counter()

    def collated(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        given = {key: torch.tensor([row[key] for row in batch]) for key in ("input_ids", "labels")}
        return given | {"attention_mask": torch.ones_like(given["input_ids"])}

    with tempfile.TemporaryDirectory() as folder:
        arguments = trl.SFTConfig(
            output_dir=folder,
            max_steps=steps + 1,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=len(packed),
            gradient_checkpointing=checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            bf16=True,
            learning_rate=2e-4,
            max_grad_norm=1.0,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataset_kwargs={"skip_prepare_dataset": True},
            remove_unused_columns=False,
        )
        tokenizer = bare_tokenizer()
        trainer = trl.SFTTrainer(
            model=model,
            args=arguments,
            train_dataset=datasets.Dataset.from_list(rows_given * (steps + 1)),
            processing_class=tokenizer,
            data_collator=collated,
            callbacks=[Clock()],
        )
        trainer.train()
    return times[1:]


def bare_tokenizer() -> Any:
    """A tokenizer that nobody asks for anything: SFTTrainer wants one."""
    from tokenizers import Tokenizer, models

    inner = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1}, unk_token="<unk>"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", pad_token="</s>")


def measure(configuration: Configuration, steps: int, passes: int, profiled: bool) -> dict[str, Any]:
    """Speed and memory of one configuration."""
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()  # what configurations before left
    torch.cuda.empty_cache()
    options = TrainOptions(
        rank=64,
        alpha=16,
        dropout=0.1,
        optimizer=configuration.optimizer,
        adapter_bits=configuration.adapter_bits,
        bits=configuration.bits,
    )
    began = time.perf_counter()
    model = add_adapter(build(configuration), options, 0).train()
    weights = adapter_parameters(model)
    parameters = list(weights.values())
    optimizer = make_optimizer(parameters, options)
    packed = rows(configuration.tokens, passes)
    labelled = sum(s.labelled for row in packed for s in row)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    engine = None
    if configuration.stack == "trl":
        times = trl_steps(model, packed, configuration.checkpointing, steps)
        return found(configuration, passes, times, [], 0.0, time.perf_counter() - began)
    if configuration.stack == "ours":
        shape = shape_of([[[(len(s.input_ids), s.labelled) for s in row]] for row in packed], 1)
        checkpointing = configuration.checkpointing
        engine = Engine(model, shape, checkpointing=checkpointing, offload=configuration.offload)
        engine.prepare()
        run = our_pass(engine, packed, labelled)
    else:
        if configuration.checkpointing:
            model.get_base_model().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        run = usual_pass(model, packed, labelled)

    def step() -> tuple[float, float]:
        if engine is not None:
            engine.begin_step()
        else:
            optimizer.zero_grad(set_to_none=True)
        loss = torch.stack([run(number) for number in range(passes)]).sum()
        norm = clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return float(loss), float(norm)

    first = step()
    if engine is not None:
        step()
    torch.cuda.synchronize()
    built = time.perf_counter() - began
    times, losses = [], [first[0]]
    for _ in range(steps):
        start = time.perf_counter()
        losses.append(step()[0])
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    result = found(configuration, passes, times, losses, first[1], built)
    return result | ({"kernels": profile(lambda: run(0))} if profiled else {})


def found(
    configuration: Configuration, passes: int, times: list[float], losses: list[float], norm: float, built: float
) -> dict[str, Any]:
    """A row of the results."""
    free, total = torch.cuda.mem_get_info()
    now, most = torch.cuda.memory_reserved(), torch.cuda.max_memory_reserved()
    return {
        "name": configuration.name,
        "tokens_per_second": configuration.tokens * passes / statistics.median(times),
        "pass_ms": 1000 * statistics.median(times) / passes,
        "allocated_mib": torch.cuda.max_memory_allocated() / MIB,
        "reserved_mib": most / MIB,
        "in_all_mib": (total - free - now + most) / MIB,
        "losses": losses,  # of the first step, and of the timed ones
        "first_norm": norm,
        "built_s": built,
    }


def profile(work: Callable[[], Any]) -> list[tuple[str, float, int]]:
    """The kernels of one pass that take longest: name, milliseconds, launches."""
    from torch.profiler import ProfilerActivity

    work()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA]) as watched:
        work()
        torch.cuda.synchronize()
    found = [(e.key[:110], e.self_device_time_total / 1e3, e.count) for e in watched.key_averages()]
    return sorted(((n, t, c) for n, t, c in found if t > 0), key=lambda row: -row[1])[:30]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="words that a configuration's name must hold")
    parser.add_argument("--shapes", default="1.8B,7B")
    parser.add_argument("--steps", type=int, default=3, help="timed steps")
    parser.add_argument("--passes", type=int, default=16, help="passes in a step")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--cap-mib", type=int, default=0, help="give torch no more than this")
    chosen = parser.parse_args()
    if chosen.cap_mib:
        torch.cuda.set_per_process_memory_fraction(chosen.cap_mib * MIB / torch.cuda.mem_get_info()[1])
    packages = ("torch", "transformers", "peft", "bitsandbytes", "triton")
    versions = {name: importlib.metadata.version(name) for name in packages} | {"python": platform.python_version()}
    results = []
    print(torch.cuda.get_device_name(), versions, flush=True)
    print(f"{'configuration':62} {'tok/s':>8} {'ms':>7} {'alloc':>7} {'reserv':>7} {'in all':>7}  loss", flush=True)
    for configuration in configurations():
        if configuration.shape not in chosen.shapes.split(","):
            continue
        if not all(word in configuration.name for word in chosen.only.split("+") if word):
            continue
        try:
            steps = chosen.steps if configuration.stack == "ours" else 1
            row = measure(configuration, steps, chosen.passes, chosen.profile)
            memory = " ".join(f"{row[f'{k}_mib']:7,.0f}" for k in ("allocated", "reserved", "in_all"))
            text = f"{row['tokens_per_second']:8,.0f} {row['pass_ms']:7.1f} {memory}"
            losses = " ".join(f"{loss:.4f}" for loss in row["losses"])
            print(f"{configuration.name:62} {text}  {losses} ({row['built_s']:.0f} s)", flush=True)
            for name, took, count in row.get("kernels", []):
                print(f"    {took:8.2f} ms {count:5} {name}", flush=True)
        except Exception as error:
            row = {"name": configuration.name, "error": f"{type(error).__name__}: {error}"}
            print(f"{configuration.name:62} {row['error'][:600]}", flush=True)
        results.append(row)
    print(json.dumps({"device": torch.cuda.get_device_name(), "versions": versions, "results": results}))


if __name__ == "__main__":
    main()
