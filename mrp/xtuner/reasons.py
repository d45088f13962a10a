"""Why an option of XTuner's is mended here, or has no counterpart: the texts of the table of `options.py`."""

from __future__ import annotations

MENDED = {
    "internlm2": "InternLM2's own code computes wrongly in today's transformers, without an error; re-lay it once",
    "precision": "bf16 over fp32 LoRA weights where the hardware has it, else fp32; no loss scaling is needed",
    "packs": "samples in one packed row never see each other, whatever the attention",
    "packed": "rows are always packed, whole samples apart from each other; XTuner cuts samples at the end of a pack",
    "targets": "LoRA is on all linear layers of the blocks, and not on the head",
    "warmup": "at least two steps: XTuner's rate stays near zero where the warm-up is shorter than two",
    "order": (
        "XTuner mixes the dialogues before packing, and the packs in each epoch, so that files in an order are mixed "
        "too; `data.order: sequential` trains them as they are written"
    ),
    "template": "the base's own chat template, the same in training and in chat",
    "template wrong": (
        "InternLM2-chat was made with internlm2_chat, and this is another; ours is the base's own chat template, the "
        "same in training and in chat"
    ),
    "identity": "a character's persona stands once, at the start, the same in training, chat and measures",
    "empty": "empty replies are left out and counted; XTuner trains on them, and stops at a missing one",
    "repeats": "equal scenes are trained once (`data.dedupe: none` keeps them)",
    "held out": "XTuner trains on everything; a share is kept for measuring (0 trains on everything)",
    "question": "the first of them is asked of every character before and after training, with its persona",
    "deepspeed": "on several GPUs; one GPU needs none",
}
NONE = {
    "load_from": "an adapter that is trained further is not supported",
    "resume": "`mrp train --resume` goes on after a stop",
    "log_level": "`-q` and `--debug` of every command",
    "visualizer": "`steps.jsonl` and `run.json` in the run folder hold every measure",
    "other": "nothing in a run file stands for it",
}
NONE_PREFIXES = {
    "default_hooks.checkpoint": "checkpoints are written by the clock (train.checkpoint_minutes) and after each epoch",
    "default_hooks.logger": "every step is in `steps.jsonl`",
    "default_hooks": "part of the training loop",
    "custom_hooks": "`mrp data show` shows samples, `mrp run` asks every character before and after",
    "env_cfg": "processes are started by `mrp train`",
    "log_processor": "every step is in `steps.jsonl`",
    "randomness": "a run is deterministic by itself",
    "tokenizer": "the tokenizer lies with the base model, and no code of its folder runs",
    "model.llm.trust_remote_code": "no code of a model folder runs",
    "model.llm": "nothing in a run file stands for it",
    "train_dataloader.num_workers": "samples are rendered once, before the training",
    "train_dataloader.collate_fn": "rows are made by the training loop",
    "train_dataloader.dataset.tokenizer": "the tokenizer lies with the base model",
    "train_dataloader.dataset.remove_unused_columns": "keys that are no dialogue are read past, or refused by name",
    "train_dataloader.dataset": "nothing in a run file stands for it",
    "train_dataloader.sampler": "see data.order",
    "optim_wrapper": "nothing in a run file stands for it",
    "val_": "the dev slice and the held-out scenes are measured by themselves",
    "test_": "the dev slice and the held-out scenes are measured by themselves",
}
RUNNER_KEYS = {  # the names that XTuner's runner takes; all others are variables of the config
    *("model", "tokenizer", "train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler", "default_hooks"),
    *("custom_hooks", "env_cfg", "visualizer", "log_level", "load_from", "resume", "randomness", "log_processor"),
    *("strategy", "runner_type", "launcher", "work_dir", "experiment_name", "default_scope", "data_preprocessor"),
    *("val_dataloader", "val_cfg", "val_evaluator", "test_dataloader", "test_cfg", "test_evaluator"),
}
