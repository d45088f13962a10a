"""What an XTuner config asks for, in the options of a run file: one row for everything, nothing dropped unsaid.

    plan = plan_run(read_config(Path("xiyou.py")))
    plan.options["train.learning_rate"], plan.rows[0]

Called by `take_in.py`, which writes the files; what a row is says `table.py`, why it is so `reasons.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from mrp.xtuner.config import XtunerConfig
from mrp.xtuner.reasons import MENDED, NONE, NONE_PREFIXES, RUNNER_KEYS
from mrp.xtuner.scope import Dotted, Unread
from mrp.xtuner.table import Mapping, Plan

DATASET = "train_dataloader.dataset"
DEEPSPEED = "(command line: --deepspeed deepspeed_zero2)"


def plan_run(config: XtunerConfig) -> Plan:
    """The options of a run file that does what the config does, and the table of how each came about."""
    mapping = Mapping(_first_of_joined(config), data_files(config))
    for part in (_model, _training, _schedule, _data, _order, _rest):
        part(mapping)
    return Plan(mapping.options, mapping.rows)


def _whole(value: Any) -> int:
    """A number as a whole one; `ValueError` if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise ValueError(value)
    return int(value)


def _real(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError(value)
    return float(value)


def _last(value: Any) -> str:
    """The last part of a dotted name."""
    return str(value).rpartition(".")[2]


# -- model and adapter -------------------------------------------------------------------------------------------------


def _model(to: Mapping) -> None:
    base = to.get("model.llm.pretrained_model_name_or_path")
    if base is None or not isinstance(base, str):
        value = base if isinstance(base, Unread) else None
        why = "the config names no base model" if value is None else f"{value.where}: {value.reason}"
        to.row("unread", "model.llm.pretrained_model_name_or_path", value, "base", to.known["base"], why)
    elif is_internlm2(base):
        folder = local_name(base)
        why = f"{MENDED['internlm2']}: `mrp convert internlm2-to-llama {folder} {folder}-llama`"
        to.mend("model.llm.pretrained_model_name_or_path", base, "base", f"{folder}-llama", why)
    else:
        to.take("model.llm.pretrained_model_name_or_path", "base", None)
    to.mend("model.llm.torch_dtype", to.get("model.llm.torch_dtype"), "train.precision", "auto", MENDED["precision"])
    quantised = to.get("model.llm.quantization_config", None)
    bits = 4 if isinstance(quantised, dict) and quantised.get("load_in_4bit") is True else 16
    if isinstance(quantised, Unread):
        to.unread("model.llm.quantization_config", quantised, "train.bits")
    elif isinstance(quantised, dict) and quantised.get("load_in_8bit") is True:
        to.row("none", "model.llm.quantization_config", quantised, "train.bits", 16, "8 bit: ours are 16 and 4")
    elif quantised:
        to.take("model.llm.quantization_config", "train.bits", 16, lambda _: bits)
    to.take("model.use_activation_checkpointing", "train.checkpointing", True)
    to.mend("model.use_varlen_attn", to.get("model.use_varlen_attn", False), "", None, MENDED["packs"])
    to.seen.update((f"{DATASET}.use_varlen_attn", f"{DATASET}.tokenizer", "train_dataloader.collate_fn"))
    _adapter(to)


def is_internlm2(base: str) -> bool:
    """True for the name of an InternLM2 or 2.5 (InternLM 1 has Llama's layout)."""
    return "internlm2" in base.lower()


def local_name(base: str) -> str:
    """The folder that a base model lies in: a path as it is, the last part of a name on a hub."""
    is_path = base.startswith((".", "/", "~")) or base.count("/") != 1 or Path(base).is_dir()
    return base.rstrip("/") if is_path else base.rpartition("/")[2]


def _adapter(to: Mapping) -> None:
    lora = to.get("model.lora", None)
    if isinstance(lora, Unread):
        for ours in ("train.rank", "train.alpha", "train.dropout"):
            to.unread("model.lora", lora, ours)
    elif lora is None:
        to.take("model.lora", "train.method", None, lambda _: "full")
    else:
        to.take("model.lora.r", "train.rank", 8, _whole)
        to.take("model.lora.lora_alpha", "train.alpha", 8, _whole)
        to.take("model.lora.lora_dropout", "train.dropout", 0.0, _real)
        to.mend("model.lora.target_modules", to.get("model.lora.target_modules"), "", None, MENDED["targets"])
        for key, neutral in (("bias", "none"), ("task_type", "CAUSAL_LM"), ("inference_mode", False)):
            if to.get(f"model.lora.{key}", neutral) != neutral:
                to.none(f"model.lora.{key}", "the adapter is plain LoRA")


# -- training ----------------------------------------------------------------------------------------------------------


def _training(to: Mapping) -> None:
    optimizer = to.get("optim_wrapper.optimizer.type", "AdamW")
    name = "" if isinstance(optimizer, Unread) else _last(optimizer)
    if isinstance(optimizer, Unread):
        to.unread("optim_wrapper.optimizer.type", optimizer, "train.optimizer")
    elif "Adam" in name and "8bit" in name:
        to.take("optim_wrapper.optimizer.type", "train.optimizer", None, lambda _: "adamw-8bit")
    elif name == "AdamW":
        to.take("optim_wrapper.optimizer.type", "train.optimizer", "AdamW", lambda _: "adamw")
    else:
        to.mend("optim_wrapper.optimizer.type", optimizer, "train.optimizer", "adamw", "ours is AdamW")
    to.take("optim_wrapper.optimizer.lr", "train.learning_rate", 1e-3, _real)
    betas = to.get("optim_wrapper.optimizer.betas", (0.9, 0.999))
    if isinstance(betas, Unread):
        to.unread("optim_wrapper.optimizer.betas", betas, "")
    elif not isinstance(betas, list | tuple) or [float(b) for b in betas if not isinstance(b, Unread)] != [0.9, 0.999]:
        to.row("none", "optim_wrapper.optimizer.betas", betas, why="ours are 0.9 and 0.999")
    else:
        to.row("same", "optim_wrapper.optimizer.betas", betas, why="ours are the same, and fixed")
    to.take("optim_wrapper.optimizer.weight_decay", "train.weight_decay", 0.01, _real)
    to.take("optim_wrapper.clip_grad.max_norm", "train.clip", None, _real)
    to.take("optim_wrapper.accumulative_counts", "train.accumulation", 1, _whole)
    for key in ("type", "loss_scale", "dtype"):
        to.get(f"optim_wrapper.{key}")  # mixed precision: told with train.precision
    to.take("train_dataloader.batch_size", "train.micro_batch", 1, _whole)
    if to.has("train_cfg.max_iters") or not to.has("train_cfg.max_epochs"):
        value = to.get("train_cfg.max_iters")
        why = "ours counts epochs, and how many these steps are depends on the data; the default stays"
        to.row("none", "train_cfg.max_iters", value, "train.epochs", to.known["train.epochs"], why)
    else:
        to.take("train_cfg.max_epochs", "train.epochs", None, _whole)
    to.take("randomness.seed", "seed", None, lambda seed: 0 if seed is None else _whole(seed))


def _schedule(to: Mapping) -> None:
    """XTuner's recipes: LinearLR up to a share of the epochs, then CosineAnnealingLR to zero."""
    schedule = to.get("param_scheduler", [])
    if isinstance(schedule, Unread):
        to.unread("param_scheduler", schedule, "train.warmup")
        return
    items = [item for item in (schedule if isinstance(schedule, list) else [schedule]) if isinstance(item, dict)]
    warmups = [item for item in items if _last(item.get("type")) == "LinearLR"]
    epochs = to.config.find("train_cfg.max_epochs", None)
    share: Any = 0.0
    if warmups:
        begin, end = warmups[0].get("begin", 0), warmups[0].get("end")
        is_share = all(isinstance(n, int | float) for n in (begin, end, epochs)) and warmups[0].get("by_epoch", True)
        share = round((end - begin) / epochs, 6) if is_share and epochs else None
    if share is None or to.fault("train.warmup", share):
        value = warmups[0] if warmups else None
        why = "the share of the training that it lasts cannot be told from the config; the default stays"
        to.row("none", "param_scheduler: LinearLR", value, "train.warmup", to.known["train.warmup"], why)
    else:
        to.mend("param_scheduler: LinearLR", warmups[0] if warmups else None, "train.warmup", share, MENDED["warmup"])
    for item in items:
        kind = _last(item.get("type"))
        if kind == "CosineAnnealingLR" and not item.get("eta_min"):
            to.row("same", f"param_scheduler: {kind}", item, why="ours falls to zero along a cosine too")
        elif kind != "LinearLR":
            to.row("none", f"param_scheduler: {kind}", item, why="ours falls to zero along a cosine")


# -- data --------------------------------------------------------------------------------------------------------------


def _joined(config: XtunerConfig) -> list[Any]:
    """The data sets that are joined (XTuner's ConcatDataset, in both of its forms), or the only one."""
    joined = config.find(f"{DATASET}.datasets", config.find(f"{DATASET}.datasets_cfg", None))
    if isinstance(joined, dict):
        return list(joined.values())
    return list(joined) if isinstance(joined, list | tuple) else [config.find(DATASET, None)]


def _first_of_joined(config: XtunerConfig) -> XtunerConfig:
    """Of several data sets that are joined, the options of the first stand for all."""
    first = _joined(config)[:1]
    if not first or not isinstance(first[0], dict):
        return config
    loader = config.values["train_dataloader"]
    return replace(config, values=config.values | {"train_dataloader": loader | {"dataset": first[0]}})


def data_files(config: XtunerConfig) -> list[str]:
    """The files of dialogues that the config trains on, as it names them; none for a data set of a hub."""
    found: list[str] = []
    for item in _joined(config):
        source = item.get("dataset") if isinstance(item, dict) else None
        files = source.get("data_files", source.get("path")) if isinstance(source, dict) else None
        found += [name for name in _texts(files) if name.endswith((".json", ".jsonl"))]
    return list(dict.fromkeys(found))


def _texts(value: Any) -> Iterator[str]:
    if type(value) is str:
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _data(to: Mapping) -> None:
    at, files = DATASET, to.files
    source = to.get(f"{at}.dataset", None)
    if files:
        to.row("same", f"{at}.dataset", source, "cast.yaml: dialogues", ", ".join(files))
    elif isinstance(source, Unread):
        to.unread(f"{at}.dataset", source, "")
    else:
        why = "no file of dialogues is named: save the data set as JSON lines, and list it in cast.yaml"
        to.row("none", f"{at}.dataset", source, "cast.yaml: dialogues", None, why)
    to.take(f"{at}.max_length", "train.max_tokens", 2048, _whole)
    packs = to.get(f"{at}.pack_to_max_length", True)
    to.mend(f"{at}.pack_to_max_length", packs, "", None, MENDED["packed"])
    map_fn = to.get(f"{at}.dataset_map_fn", None)
    why = "" if map_fn is None or isinstance(map_fn, Unread) else "the format is told by the keys of each line"
    to.row("mended" if why else "same", f"{at}.dataset_map_fn", map_fn, "mrp data build", None, why)
    template = to.get(f"{at}.template_map_fn.template", to.get("prompt_template", None))
    base = to.config.find("model.llm.pretrained_model_name_or_path", "")
    wrong = isinstance(base, str) and is_internlm2(base) and template and _last(template) != "internlm2_chat"
    to.mend(f"{at}.template_map_fn.template", template, "", None, MENDED["template wrong" if wrong else "template"])
    to.mend("(each turn's system, put before its input)", None, "cast.yaml: persona", None, MENDED["identity"])
    to.mend("(empty replies)", None, "", None, MENDED["empty"])
    to.mend("(repeated dialogues)", None, "data.dedupe", to.known.get("data.dedupe"), MENDED["repeats"])
    to.mend("(nothing held out)", None, "data.held_out", to.known["data.held_out"], MENDED["held out"])


def _order(to: Mapping) -> None:
    """XTuner mixes when packing and when drawing; only if both are off, the order of the files is trained."""
    at = DATASET
    before = to.get(f"{at}.shuffle_before_pack", True)
    packs = to.config.find(f"{at}.pack_to_max_length", True)
    drawn = to.get("train_dataloader.sampler.shuffle", True)
    sampler = to.get("train_dataloader.sampler.type", Dotted("mmengine.dataset.DefaultSampler"))
    value = {"sampler": _last(sampler), "shuffle": drawn, "shuffle_before_pack": before}
    doubtful = next((v for v in (before, packs, drawn) if isinstance(v, Unread)), None)
    if doubtful is not None:
        to.unread("train_dataloader.sampler, shuffle_before_pack", doubtful, "data.order")
    elif drawn or (packs and before):
        to.mend("train_dataloader.sampler, shuffle_before_pack", value, "data.order", "shuffled", MENDED["order"])
    else:
        to.options["data.order"] = "sequential"
        to.row("same", "train_dataloader.sampler, shuffle_before_pack", value, "data.order", "sequential")


# -- everything else ---------------------------------------------------------------------------------------------------


def _rest(to: Mapping) -> None:
    """What people are asked in training, how many GPUs share the work, and all that has no counterpart."""
    for index, hook in enumerate(_hooks(to)):
        asked = hook.get("evaluation_inputs")
        first = next(_texts(asked), None) if _last(hook.get("type")) == "EvaluateChatHook" else None
        if first and "question" not in to.options:
            ours = " ".join(first.split())
            to.options["question"] = ours
            key = f"custom_hooks.{index}.evaluation_inputs"
            to.row("mended", key, asked, "question", ours, MENDED["question"])
    key = "strategy.config.zero_optimization.stage"
    stage = to.get(key, None)
    is_told = type(stage) is int
    command = f"mrp train RUN --strategy zero{stage if is_told else 2}"
    to.row("mended", key if is_told else DEEPSPEED, stage, command, None, MENDED["deepspeed"])
    to.seen.update(("strategy.type", "strategy.config"))
    reported = {row.option for row in to.rows}
    for key, value in _leaves(to.config.values):
        is_seen = any(key == seen or key.startswith(f"{seen}.") for seen in to.seen | reported)
        if key.split(".")[0] in RUNNER_KEYS and not is_seen and not key.endswith(".type"):
            why = NONE.get(key) or next((w for p, w in NONE_PREFIXES.items() if key.startswith(p)), NONE["other"])
            if isinstance(value, Unread):
                to.unread(key, value, "")
            else:
                to.row("none", key, value, why=why)
    told = {id(row.value) for row in to.rows if row.kind == "unread"}
    for unread in to.config.unread:
        if id(unread) not in told:
            keys = ", ".join(unread.keys[:6]) or "(a statement)"
            why = f"{unread.where}: {unread.reason}"
            to.row("unread", keys, unread, why=why + ("" if unread.keys else "; no option comes from it"))


def _hooks(to: Mapping) -> list[dict[str, Any]]:
    hooks = to.config.find("custom_hooks", [])
    return [hook for hook in hooks if isinstance(hook, dict)] if isinstance(hooks, list | tuple) else []


def _leaves(values: dict[str, Any], depth: int = 0, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values, mappings opened; hooks and the like as one value."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        is_opened = name.split(".")[0] not in ("env_cfg", "custom_hooks", "visualizer", "log_processor")
        if isinstance(value, dict) and value and is_opened and not name.startswith("default_hooks."):
            yield from _leaves(value, depth + 1, f"{name}.")
        else:
            yield name, value
