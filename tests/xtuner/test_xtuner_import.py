"""`mrp import xtuner`: every option of a config is taken, mended with its reason, or named; the run file loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from command import fails, mrp

from mrp.config import load_run
from mrp.errors import InputError
from mrp.xtuner.config import read_config
from mrp.xtuner.options import plan_run
from mrp.xtuner.reasons import RUNNER_KEYS
from mrp.xtuner.table import known_options
from mrp.xtuner.take_in import import_xtuner

CONFIG = """
import torch
from datasets import load_dataset
from mmengine.dataset import DefaultSampler
from mmengine.optim import AmpOptimWrapper, CosineAnnealingLR, LinearLR
from peft import LoraConfig
from torch.optim import AdamW
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from xtuner.dataset import process_hf_dataset
from xtuner.dataset.map_fns import template_map_fn_factory
from xtuner.engine.hooks import EvaluateChatHook
from xtuner.engine.runner import TrainLoop
from xtuner.model import SupervisedFinetune
from xtuner.utils import PROMPT_TEMPLATE, SYSTEM_TEMPLATE

epochs = 3
base = 'my/chat-model'
files = ['lines.jsonl']
quantized = dict(type=BitsAndBytesConfig, load_in_4bit=True, bnb_4bit_quant_type='nf4')
template = PROMPT_TEMPLATE.default
shuffle = True
before = True
warmup = 0.03
model = dict(
    type=SupervisedFinetune,
    llm=dict(
        type=AutoModelForCausalLM.from_pretrained, pretrained_model_name_or_path=base, torch_dtype=torch.float16,
        quantization_config=quantized),
    lora=dict(type=LoraConfig, r=64, lora_alpha=16, lora_dropout=0.1, bias='none', task_type='CAUSAL_LM'))
train_dataset = dict(
    type=process_hf_dataset, dataset=dict(type=load_dataset, path='json', data_files=dict(train=files)),
    max_length=2048, dataset_map_fn=None, shuffle_before_pack=before, pack_to_max_length=True,
    template_map_fn=dict(type=template_map_fn_factory, template=template))
train_dataloader = dict(
    batch_size=2, num_workers=0, dataset=train_dataset, sampler=dict(type=DefaultSampler, shuffle=shuffle))
optim_wrapper = dict(
    type=AmpOptimWrapper, optimizer=dict(type=AdamW, lr=2e-4, betas=(0.9, 0.999), weight_decay=0.01),
    clip_grad=dict(max_norm=0.5), accumulative_counts=16, loss_scale='dynamic', dtype='float16')
param_scheduler = [
    dict(type=LinearLR, start_factor=1e-5, by_epoch=True, begin=0, end=warmup * epochs, convert_to_iter_based=True),
    dict(type=CosineAnnealingLR, eta_min=0.0, by_epoch=True, begin=warmup * epochs, end=epochs)]
train_cfg = dict(type=TrainLoop, max_epochs=epochs)
custom_hooks = [
    dict(type=EvaluateChatHook, evaluation_inputs=['Who are you?', 'And I?'], system=SYSTEM_TEMPLATE.alpaca)]
randomness = dict(seed=42, deterministic=False)
visualizer = None
"""


def write(folder: Path, *lines: str, **changes: str) -> Path:
    """The config above with some of its variables changed, and lines at its end."""
    text = CONFIG
    for name, value in changes.items():
        start = text.index(f"\n{name} = ")
        text = text[:start] + f"\n{name} = {value}" + text[text.index("\n", start + 1) :]
    path = folder / "config.py"
    path.write_text("\n".join([text, *lines]), encoding="utf-8")
    return path


def write_lines(path: Path, *systems: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"conversation": [{"system": name, "input": "Hm?", "output": f"I: {name}"}]} for name in systems]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def plan(folder: Path, *lines: str, **changes: str) -> dict[str, Any]:
    return plan_run(read_config(write(folder, *lines, **changes))).options


# -- the run file ------------------------------------------------------------------------------------------------------


def test_every_option_goes_where_it_belongs(tmp_path: Path) -> None:
    write_lines(tmp_path / "lines.jsonl", "Ada", "Bruno", "Ada")
    import_xtuner(write(tmp_path), tmp_path / "out")
    run = load_run(tmp_path / "out/mrp.yaml")
    train, data = run.config.train, run.config.data
    assert run.config.base == "my/chat-model" and run.config.seed == 42 and run.config.question == "Who are you?"
    assert (train.rank, train.alpha, train.dropout) == (64, 16, 0.1)
    assert (train.learning_rate, train.weight_decay, train.clip) == (2e-4, 0.01, 0.5)
    assert (train.epochs, train.warmup, train.max_tokens) == (3, 0.03, 2048)
    assert (train.micro_batch, train.accumulation, train.precision) == (2, 16, "auto")
    assert (train.bits, train.checkpointing, train.method) == (4, True, "lora")
    assert data.order == "shuffled" and data.held_out > 0
    assert [c.name for c in run.cast] == ["Ada", "Bruno"]
    assert run.dialogue_path(run.cast.dialogues[0]).resolve() == tmp_path / "lines.jsonl"


@pytest.mark.parametrize("name", ["xiyou_tiny", "sft_custom_a"])
def test_golden_configs_give_run_files_that_load(shared: Path, tmp_path: Path, name: str) -> None:
    golden = shared / "golden/xtuner-a"
    done = mrp("import", "xtuner", golden / f"{name}.py", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    assert done.json["resolved"] == json.loads((golden / f"{name}.resolved.json").read_text(encoding="utf-8"))
    resolved = done.json["resolved"]
    run = load_run(tmp_path / "out/mrp.yaml")
    assert run.config.train.rank == resolved["model"]["lora"]["r"]
    assert run.config.train.learning_rate == resolved["lr"]
    assert run.config.train.epochs == resolved["max_epochs"]
    assert run.config.train.max_tokens == resolved["max_length"]
    assert run.config.train.warmup == resolved["warmup_ratio"]
    assert run.config.train.accumulation == resolved["accumulative_counts"]
    assert run.config.base.endswith("-llama")
    assert not done.json["unread"]
    if name == "xiyou_tiny":
        assert sorted(c.name for c in run.cast) == sorted(["孙悟空", "猪八戒", "唐三藏", "沙悟净"])
        assert run.cast.language == "zh" and run.dialogue_path(run.cast.dialogues[0]).is_file()


def test_nothing_of_the_config_goes_unsaid(shared: Path, tmp_path: Path) -> None:
    """Every option of the runner has a row, under its own key or that of a mapping around it."""
    for path in (shared / "golden/xtuner-a/xiyou_tiny.py", write(tmp_path)):
        config = read_config(path)
        options = [row.option for row in plan_run(config).rows]
        for name in set(config.values) & RUNNER_KEYS:
            assert any(option.startswith(name) for option in options), name
        assert all(row.why for row in plan_run(config).rows if row.kind != "same")


def test_the_data_of_an_imported_config_can_be_built(shared: Path, tmp_path: Path) -> None:
    import_xtuner(shared / "golden/xtuner-a/xiyou_tiny.py", tmp_path / "out")
    done = mrp("data", "build", tmp_path / "out/mrp.yaml", "--json")
    assert done.code == 0, done.err
    # One line of the golden data names nobody.
    assert done.json["totals"]["kept"] == 38 and done.json["totals"]["rejected"] == {"unknown-character": 1}


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"shuffle": "False", "before": "False"}, {"data.order": "sequential"}),
        ({"shuffle": "False"}, {"data.order": "shuffled"}),
        ({"quantized": "None"}, {"train.bits": 16}),
        ({"quantized": "dict(load_in_8bit=True)"}, {"train.bits": 16}),
        ({"warmup": "0"}, {"train.warmup": 0.0}),
        ({"base": "'internlm/internlm2-chat-7b'"}, {"base": "internlm2-chat-7b-llama"}),
        ({"base": "'./models/internlm2-chat-7b/'"}, {"base": "./models/internlm2-chat-7b-llama"}),
        ({"epochs": "0"}, {"train.epochs": 3}),
        ({"epochs": "2.5"}, {"train.epochs": 3}),
    ],
)
def test_values_turn_into_ours(tmp_path: Path, changes: dict[str, str], wanted: dict[str, Any]) -> None:
    found = known_options() | plan(tmp_path, **changes)
    assert {key: found[key] for key in wanted} == wanted


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("model.pop('lora')\n", "train.rank", 16),
        ("del train_cfg\ntrain_cfg = dict(type=TrainLoop, max_iters=100)", "train.epochs", 3),
        ("randomness = dict(seed=None)", "seed", 0),
        (
            "optim_wrapper['optimizer'] = dict(type='bitsandbytes.optim.PagedAdamW8bit', lr=1e-5)",
            "train.optimizer",
            "adamw-8bit",
        ),
        ("model = dict(llm=dict(pretrained_model_name_or_path='a/b'))", "train.method", "full"),
        ("optim_wrapper.update(clip_grad=None)", "train.clip", 1.0),
    ],
)
def test_other_shapes_of_a_config(tmp_path: Path, line: str, key: str, value: Any) -> None:
    found = known_options() | plan(tmp_path, line)
    assert found[key] == value


@pytest.mark.parametrize("form", ["datasets=[one, two]", "datasets_cfg=dict(one=one, two=two)"])
def test_files_of_joined_data_sets_are_all_listed(tmp_path: Path, form: str) -> None:
    """As XTuner's ConcatDataset has them, now and in its first versions; a path alone may be a file as well."""
    lines = (
        "one = dict(dataset=dict(path='a.jsonl'), max_length=512)",
        "two = dict(dataset=dict(path='json', data_files=['b.json', 'a.jsonl']), max_length=1024)",
        f"train_dataloader['dataset'] = dict(type='ConcatDataset', {form})",
    )
    result = import_xtuner(write(tmp_path, *lines), tmp_path / "out")
    run = load_run(tmp_path / "out/mrp.yaml")
    assert [Path(name).name for name in run.cast.dialogues] == ["a.jsonl", "b.json"]
    assert run.config.train.max_tokens == 512
    assert result["resolved"]["train_dataloader"]["dataset"]["type"] == "ConcatDataset"


def test_what_could_not_be_read_keeps_our_default_and_is_told(tmp_path: Path) -> None:
    config = write(tmp_path, "model['lora']['r'] = pick_rank()", "for i in range(3):\n    train_cfg = dict(n=i)")
    done = mrp("import", "xtuner", config, tmp_path / "out", "--json")
    assert done.code == 0
    line = config.read_text(encoding="utf-8").splitlines().index("model['lora']['r'] = pick_rank()") + 1
    row = next(row for row in done.json["table"] if row["option"] == "model.lora.r")
    assert row["kind"] == "unread" and f"config.py:{line}" in row["why"] and "the default stays" in row["why"]
    assert "model.lora.r could not be read" in done.err and "write the values into config.py" in done.err
    text = (tmp_path / "out/mrp.yaml").read_text(encoding="utf-8")
    assert "COULD NOT BE READ: model.lora.r" in text and "train_cfg" in text
    run = load_run(tmp_path / "out/mrp.yaml")
    assert run.config.train.rank == known_options()["train.rank"] and run.config.train.alpha == 16
    assert run.origins["train.rank"] == "default"


def test_a_lora_that_could_not_be_read_is_told_for_each_option(tmp_path: Path) -> None:
    rows = plan_run(read_config(write(tmp_path, "model['lora'] = make_lora()"))).rows
    assert {row.ours for row in rows if row.kind == "unread"} >= {"train.rank", "train.alpha", "train.dropout"}


def test_the_wrong_template_of_2024_is_named(tmp_path: Path) -> None:
    rows = plan_run(read_config(write(tmp_path, base="'internlm/internlm2-chat-7b'"))).rows
    row = next(row for row in rows if row.option.endswith("template"))
    assert row.kind == "mended" and "internlm2_chat" in row.why and row.value == "xtuner.utils.PROMPT_TEMPLATE.default"
    rows = plan_run(read_config(write(tmp_path))).rows
    assert "internlm2_chat" not in next(row for row in rows if row.option.endswith("template")).why


def test_texts_of_the_config_cannot_break_the_run_file(tmp_path: Path) -> None:
    asked = "\"a: b # c\\n- d\\u2028 'e' {f} \\x1b[31m\""
    config = write(tmp_path, f"custom_hooks[0]['evaluation_inputs'] = [{asked}]", "x = {'a\\nbase: evil': go()}")
    import_xtuner(config, tmp_path / "out")
    run = load_run(tmp_path / "out/mrp.yaml")
    assert run.config.base == "my/chat-model"
    assert run.config.question.startswith("a: b # c - d")


# -- the cast ----------------------------------------------------------------------------------------------------------


def test_a_file_of_one_character_is_listed_under_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "data/swk.jsonl", "孙悟空")
    write_lines(tmp_path / "data/both.jsonl", "孙悟空", "Ada", "Ada")
    import_xtuner(write(tmp_path, files="['data/swk.jsonl', 'data/both.jsonl']"), tmp_path / "out/deep")
    run = load_run(tmp_path / "out/deep/mrp.yaml")
    assert {c.id: c.name for c in run.cast} == {"swk": "孙悟空", "ada": "Ada"}
    assert [run.dialogue_path(f).resolve().name for f in run.cast["swk"].dialogues] == ["swk.jsonl"]
    assert [Path(f).name for f in run.cast.dialogues] == ["both.jsonl"] and run.cast.language == "zh"


def test_a_prompt_becomes_a_persona_and_odd_names_do_no_harm(tmp_path: Path) -> None:
    prompt = "You are a pirate. You speak of nothing but the sea.\nAlways."
    names = ["other", "Ada", "ADA", "con", "--", "{{user}}", "a: b", prompt, "Ada", "character-2", "x" * 39]
    write_lines(tmp_path / "lines.jsonl", *names)
    import_xtuner(write(tmp_path), tmp_path / "out")
    cast = load_run(tmp_path / "out/mrp.yaml").cast
    assert any(c.persona.strip() == prompt for c in cast)
    assert cast.get("Ada") is not None and len({c.id.casefold() for c in cast}) == len(cast.characters)


@pytest.mark.parametrize("content", [None, b"not json\n{}\n", b"\xff\xfe", b'[{"conversation": ['])
def test_data_that_cannot_be_read_leaves_a_cast_to_write(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "lines.jsonl").write_bytes(content)
    result = import_xtuner(write(tmp_path), tmp_path / "out")
    assert len(load_run(tmp_path / "out/mrp.yaml").cast.characters) == 1
    assert any("nobody is named" in note for note in result["notes"])


def test_a_json_array_and_the_prompts_of_the_config_are_understood(tmp_path: Path) -> None:
    (tmp_path / "lines.json").write_text('[{"messages": [{"role": "system", "content": "Ada"}]}]', encoding="utf-8")
    import_xtuner(write(tmp_path, files="['lines.json']"), tmp_path / "one")
    assert load_run(tmp_path / "one/mrp.yaml").cast.get("Ada") is not None
    import_xtuner(
        write(tmp_path, "SYSTEM = 'You are Bruno, a miller.'", files="'timdettmers/guanaco'"), tmp_path / "two"
    )
    assert load_run(tmp_path / "two/mrp.yaml").cast.characters[0].persona == "You are Bruno, a miller."


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_nothing_is_written_over(tmp_path: Path) -> None:
    config, out = write(tmp_path), tmp_path / "out"
    out.mkdir()
    (out / "cast.yaml").write_text("mine", encoding="utf-8")
    fails(mrp("import", "xtuner", config, out), 2, "cast.yaml exists already")
    assert [p.name for p in out.iterdir()] == ["cast.yaml"]
    (out / "mrp.yaml").write_text("mine too", encoding="utf-8")
    fails(mrp("import", "xtuner", config, out), 2, "2 faults")
    assert {p.read_text(encoding="utf-8") for p in out.iterdir()} == {"mine", "mine too"}


def test_broken_configs_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.py").write_text("a = 1\nb = (", encoding="utf-8")
    fails(mrp("import", "xtuner", tmp_path / "config.py", tmp_path / "out"), 2, "not Python", "config.py:2")
    fails(mrp("import", "xtuner", tmp_path / "none.py", tmp_path / "out"), 2, "no such file")
    assert not (tmp_path / "out").exists()


def test_a_failed_write_takes_everything_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mrp.xtuner.take_in as taking_in

    def broken(*_: object) -> None:
        raise InputError("no")

    monkeypatch.setattr(taking_in, "load_run", broken)
    with pytest.raises(InputError):
        import_xtuner(write(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_config_that_is_no_training_still_gives_a_run_file(tmp_path: Path) -> None:
    (tmp_path / "config.py").write_text("x = 1", encoding="utf-8")
    result = import_xtuner(tmp_path / "config.py", tmp_path / "out")
    load_run(tmp_path / "out/mrp.yaml")
    assert any(row["option"] == "model.llm.pretrained_model_name_or_path" for row in result["table"])
    shutil.rmtree(tmp_path / "out")
