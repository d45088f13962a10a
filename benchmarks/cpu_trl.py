"""Training on the CPU beside plain TRL: the same model, samples, labels and LoRA, in turns in one run.

    python -m venv trl && trl/bin/pip install . 'trl==1.16.0' datasets      # an environment of its own, beside mrp's
    OMP_WAIT_POLICY=passive trl/bin/python benchmarks/cpu_trl.py [--share 0.25] [--turns 3] [--threads 2]

Each turn trains one epoch on a part of the example cast with `mrp train`'s own code, then with TRL's SFTTrainer, which
gets the very token ids and loss masks. Both pack into rows of at most `max_tokens`, one row a step, without gradient
checkpointing (TRL's default has it, and is slower); number formats are each one's default. Only steps are timed. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mrp.config import Run, load_run
from mrp.data.build import build_data
from mrp.models.bases import find_base
from mrp.models.load import load_tokenizer
from mrp.render import ChatTemplate
from mrp.train.loop import LOG, train
from mrp.train.steps import plan_training

EXAMPLE = Path(__file__).parents[1] / "examples" / "pilgrims"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--share", type=float, default=0.25, help="of each file of the cast's dialogues")
    options.add_argument("--turns", type=int, default=3)
    options.add_argument("--threads", type=int, default=2)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        run = _smaller_run(Path(folder), given.share, given.threads)
        samples = _samples(run)
        turns: dict[str, list[dict[str, float]]] = {"mrp": [], "trl": []}
        for number in range(given.turns):
            for name in ("mrp", "trl") if number % 2 == 0 else ("trl", "mrp"):
                found = _train_here(run) if name == "mrp" else _train_trl(run, samples, Path(folder))
                turns[name].append(found)
                print(f"{name}: {found}", flush=True)
    result = {"threads": given.threads, "load": os.getloadavg(), "turns": turns}
    for unit in ("tokens", "labelled"):
        speeds = {
            name: statistics.median(turn[unit] / turn["seconds"] for turn in found) for name, found in turns.items()
        }
        print(f"{unit} a second (median): mrp {speeds['mrp']:.1f}, TRL {speeds['trl']:.1f}")
        result[f"{unit}_ratio"] = round(speeds["mrp"] / speeds["trl"], 3)
    print(json.dumps(result))


def _smaller_run(folder: Path, share: float, threads: int) -> Run:
    """The example with the first part of each of its files, one epoch, nothing held out."""
    shutil.copytree(EXAMPLE, folder / "cast")
    for path in (folder / "cast").glob("*.jsonl"):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(lines[: max(2, round(share * len(lines)))]), encoding="utf-8")
    flags = {"train.epochs": "1", "train.dev": "0", "data.held_out": "0", "train.threads": str(threads)}
    run = replace(load_run(folder / "cast", flags), folder=folder / "run")
    build_data(run)
    return run


def _samples(run: Run) -> list[dict[str, list[int]]]:
    """Every sample that the training shows, as token ids and the mask of what it learns."""
    plan = plan_training(run, ChatTemplate(load_tokenizer(find_base(run.config.base, run.path.parent))))
    items = [item.rendered for step in plan.steps for row in step.rows for item in row]
    return [{"input_ids": list(r.input_ids), "completion_mask": [int(x) for x in r.loss]} for r in items]


def _train_here(run: Run) -> dict[str, float]:
    measures = train(run, restart=True)["measures"]
    rows = [json.loads(line) for line in (run.folder / LOG).read_text(encoding="utf-8").splitlines()]
    return {
        "seconds": round(sum(row["seconds"] for row in rows), 2),
        "steps": len(rows),
        "tokens": measures["tokens"],
        "labelled": sum(row["labelled"] for row in rows),
    }


def _train_trl(run: Run, samples: list[dict[str, list[int]]], folder: Path) -> dict[str, float]:
    import peft
    import transformers
    import trl
    from datasets import Dataset

    counted = {"steps": 0, "tokens": 0, "labelled": 0, "seconds": 0.0}

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.monotonic()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            counted["seconds"] = round(time.monotonic() - self.began, 2)

    train_options = run.config.train
    config = trl.SFTConfig(
        output_dir=str(folder / "trl"),
        max_length=train_options.max_tokens,
        packing=True,
        completion_only_loss=True,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        gradient_checkpointing=False,
        num_train_epochs=1,
        learning_rate=train_options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=2,
        max_grad_norm=train_options.clip,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
    )
    lora = peft.LoraConfig(
        r=train_options.rank,
        lora_alpha=train_options.alpha,
        lora_dropout=train_options.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    base = find_base(run.config.base, run.path.parent)
    trainer = trl.SFTTrainer(
        model=str(base),
        args=config,
        train_dataset=Dataset.from_list(samples),
        processing_class=load_tokenizer(base),
        peft_config=lora,
        callbacks=[Clock()],
    )
    for batch in trainer.get_train_dataloader():
        counted["steps"] += 1
        counted["tokens"] += int(batch["input_ids"].numel())
        counted["labelled"] += int((batch["labels"] != -100).sum())
    trainer.train()
    return {"bf16": float(config.bf16), **counted}


if __name__ == "__main__":
    main()
