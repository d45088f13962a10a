"""XTuner's checkpoints become PEFT adapters: bit for bit, under the right names, or refused with the reason."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import fails, mrp
from heard import Heard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from zero_writer import MODEL_FILE, rank_file, write_zero

from mrp.errors import InputError, ManyFaults
from mrp.models.internlm2_layout import Heads, join_rows
from mrp.xtuner.adapter import pth_to_hf
from mrp.xtuner.pickled import Malicious, open_pickled
from mrp.xtuner.zero import read_zero

FILE = "adapter_model.safetensors"
LORA_CONFIG = """
from peft import LoraConfig
model = dict(
    llm=dict(pretrained_model_name_or_path={base!r}),
    lora=dict(type=LoraConfig, r=4, lora_alpha=8, lora_dropout=0.1, bias='none', task_type='CAUSAL_LM'{more}))
"""
HEADS = Heads(4, 2, 8)


@pytest.fixture
def golden(shared: Path) -> Path:
    return shared / "golden/xtuner-a"


@pytest.fixture
def base(shared: Path) -> Path:
    return shared / "golden/internlm2-tiny-a/gqa"


def write_config(folder: Path, base: object = "", more: str = "") -> Path:
    path = folder / "xiyou.py"
    path.write_text(LORA_CONFIG.format(base=str(base), more=more), encoding="utf-8")
    return path


def write_base(folder: Path) -> Path:
    """As much of a base model as tells its heads."""
    folder.mkdir()
    config = {"model_type": "internlm2", "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def lora_weights(seed: int = 0, rank: int = 4, layers: int = 2) -> dict[str, torch.Tensor]:
    """The LoRA of a tiny InternLM2, as XTuner names it."""
    shapes = {"attention.wqkv": (64, 32), "attention.wo": (32, 32), "feed_forward.w1": (48, 32)}
    shapes |= {"feed_forward.w3": (48, 32), "feed_forward.w2": (32, 48)}
    modules = {f"model.layers.{n}.{name}": shape for n in range(layers) for name, shape in shapes.items()}
    modules["output"] = (70, 32)
    torch.manual_seed(seed)
    weights: dict[str, torch.Tensor] = {}
    for name, (rows, columns) in modules.items():
        weights[f"llm.base_model.model.{name}.lora_A.default.weight"] = torch.randn(rank, columns)
        weights[f"llm.base_model.model.{name}.lora_B.default.weight"] = torch.randn(rows, rank)
    return weights


def plain_name(name: str) -> str:
    return name.removeprefix("llm.").replace(".default.", ".")


def save_pth(path: Path, weights: dict[str, Any], **more: Any) -> Path:
    torch.save({"meta": {"iter": 5}, "state_dict": OrderedDict(weights)} | more, path)
    return path


# -- the golden run ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["iter_64.pth", "iter_64_zero2.pth", "hf_adapter_fp32"])
@pytest.mark.parametrize("dtype", [None, "fp32", "fp16"])
def test_golden_adapters_come_out_bit_for_bit(golden: Path, tmp_path: Path, source: str, dtype: str | None) -> None:
    done = pth_to_hf(golden / "xiyou_tiny.py", golden / source, tmp_path / "out", layout="internlm2", dtype=dtype)
    wanted = load_file(golden / "hf_adapter_fp32" / FILE)
    if dtype == "fp16":
        wanted = torch.load(golden / "hf_adapter/adapter_model.bin", weights_only=True)
    found = load_file(tmp_path / "out" / FILE)
    assert found.keys() == wanted.keys()
    assert all(found[name].dtype == wanted[name].dtype and torch.equal(found[name], wanted[name]) for name in wanted)
    config = json.loads((tmp_path / "out/adapter_config.json").read_text(encoding="utf-8"))
    given = json.loads((golden / "hf_adapter_fp32/adapter_config.json").read_text(encoding="utf-8"))
    assert config["target_modules"] == sorted(given["target_modules"])
    for key in ("r", "lora_alpha", "lora_dropout", "bias", "peft_type", "task_type", "base_model_name_or_path"):
        assert config[key] == given[key]
    assert done["rank"] == 8 and done["modules"] == 11
    if source.endswith(".pth"):
        assert done["iter"] == 64 and done.get("ranks", 1) == 1


def test_an_adapter_folder_of_xtuner_is_taken_too_with_its_own_config(golden: Path, base: Path, tmp_path: Path) -> None:
    pth_to_hf(golden / "xiyou_tiny.py", golden / "iter_64.pth", tmp_path / "a", dtype="fp16", base=base)
    bin_folder = golden / "hf_adapter"
    pth_to_hf(bin_folder / "adapter_config.json", bin_folder, tmp_path / "b", base=base)
    assert (tmp_path / "a" / FILE).read_bytes() == (tmp_path / "b" / FILE).read_bytes()


@pytest.fixture(scope="module")
def relaid(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden base as a Llama, and the golden adapter for it."""
    from mrp.models.internlm2 import to_llama

    folder = tmp_path_factory.mktemp("relaid")
    golden, base = shared / "golden/xtuner-a", shared / "golden/internlm2-tiny-a/gqa"
    to_llama(base, folder / "base")
    pth_to_hf(golden / "xiyou_tiny.py", golden / "iter_64.pth", folder / "fp32", base=folder / "base")
    pth_to_hf(golden / "xiyou_tiny.py", golden / "iter_64.pth", folder / "fp16", dtype="fp16", base=base)
    return folder


def largest_difference(model: Any, golden: Path, name: str) -> float:
    import numpy

    with numpy.load(golden / "merged_logits.npz") as known, torch.no_grad():
        found = model.eval()(torch.tensor(known["input_ids"])).logits
        return float((found - torch.tensor(known[name])).abs().max())


@pytest.mark.parametrize(("adapter", "allowed"), [("fp16", 1e-4), ("fp32", 2e-3)])
def test_relaid_adapter_on_relaid_base_computes_what_xtuner_computed(
    golden: Path, relaid: Path, adapter: str, allowed: float
) -> None:
    """The adapter moves logits by up to 5.5; the golden ones are those of its float16 form."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(relaid / "base", dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, str(relaid / adapter))
    assert largest_difference(model, golden, "adapter_fp16_unmerged_logits") <= allowed


def test_relaid_adapter_is_merged_head_and_all(golden: Path, relaid: Path, tmp_path: Path) -> None:
    """In float32, so that the golden tolerance of a float32 merge holds."""
    transformers = pytest.importorskip("transformers")
    wide = tmp_path / "base-fp32"
    shutil.copytree(relaid / "base", wide)
    for path in wide.glob("*.safetensors*"):
        path.unlink()
    model = transformers.AutoModelForCausalLM.from_pretrained(relaid / "base", dtype=torch.float32)
    model.save_pretrained(wide)
    done = mrp("merge", wide, relaid / "fp16", "--out", tmp_path / "merged", "--json")
    assert done.code == 0, done.err
    assert done.json["tensors"]["changed"] == 2 * 7 + 1  # q, k, v, o, gate, up, down of two layers, and the head
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert largest_difference(merged, golden, "adapter_fp16_unmerged_logits") <= 1e-3


def test_merge_of_an_adapter_with_xtuners_names_says_how_to_rename_it(
    golden: Path, relaid: Path, tmp_path: Path
) -> None:
    said = mrp("merge", relaid / "base", golden / "hf_adapter_fp32", "--out", tmp_path / "merged")
    fails(said, 2, "the base has no layer model.layers.0.attention.wqkv", "mrp convert pth-to-hf")


def test_command_tells_what_it_did(golden: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(base, tmp_path / "internlm2-chat-tiny")  # as the config names it, seen from where one stands
    monkeypatch.chdir(tmp_path)
    arguments = ["convert", "pth-to-hf", golden / "xiyou_tiny.py", golden / "iter_64.pth"]
    done = mrp(*arguments, tmp_path / "out", "--json")
    assert done.code == 0 and done.json["target_modules"] == [
        *("down_proj", "gate_proj", "k_proj", "lm_head", "o_proj", "q_proj", "up_proj", "v_proj")
    ]
    assert "the adapter also changes the head" in done.err
    fails(mrp(*arguments, tmp_path / "out"), 2, "something is in the place of the adapter")
    fails(mrp(*arguments, tmp_path / "x", "--fp16", "--fp32"), 2, "exclude each other")
    fails(mrp(*arguments, tmp_path / "x", "--layout", "qwen"), 2, "unknown layout 'qwen'")
    assert not (tmp_path / "x").exists()


# -- names and rows ----------------------------------------------------------------------------------------------------


def test_lora_on_wqkv_becomes_exact_loras_on_q_k_and_v(tmp_path: Path) -> None:
    weights = lora_weights()
    base = write_base(tmp_path / "base")
    pth_to_hf(write_config(tmp_path, base), save_pth(tmp_path / "a.pth", weights), tmp_path / "out")
    found = load_file(tmp_path / "out" / FILE)
    own = {plain_name(name): tensor for name, tensor in weights.items()}
    at = "base_model.model.model.layers.1."
    parts = [found[f"{at}self_attn.{name}_proj.lora_B.weight"] for name in "qkv"]
    assert torch.equal(join_rows(*parts, HEADS), own[f"{at}attention.wqkv.lora_B.weight"])
    for name in "qkv":
        assert torch.equal(found[f"{at}self_attn.{name}_proj.lora_A.weight"], own[f"{at}attention.wqkv.lora_A.weight"])
    for ours, theirs in (("mlp.gate_proj", "feed_forward.w1"), ("mlp.up_proj", "feed_forward.w3")):
        for half in "AB":
            assert torch.equal(found[f"{at}{ours}.lora_{half}.weight"], own[f"{at}{theirs}.lora_{half}.weight"])
    for ours, theirs in (("mlp.down_proj", "feed_forward.w2"), ("self_attn.o_proj", "attention.wo")):
        assert torch.equal(found[f"{at}{ours}.lora_B.weight"], own[f"{at}{theirs}.lora_B.weight"])
    head = "base_model.model.{}.lora_B.weight"
    assert torch.equal(found[head.format("lm_head")], own[head.format("output")])
    assert len(found) == 2 * (2 * 7 + 1)


def test_released_shapes_need_no_base_model(tmp_path: Path) -> None:
    at = "llm.base_model.model.model.layers.0.attention.wqkv"
    weights = {f"{at}.lora_A.default.weight": torch.randn(4, 2048), f"{at}.lora_B.default.weight": torch.randn(4096, 4)}
    checkpoint = save_pth(tmp_path / "a.pth", weights)
    pth_to_hf(write_config(tmp_path, "internlm/internlm2-chat-1_8b"), checkpoint, tmp_path / "out")
    key = "base_model.model.model.layers.0.self_attn.{}_proj.lora_B.weight"
    found = load_file(tmp_path / "out" / FILE)
    parts = [found[key.format(name)] for name in "qkv"]
    assert [len(part) for part in parts] == [2048, 1024, 1024]
    assert torch.equal(join_rows(*parts, Heads(16, 8, 128)), weights[f"{at}.lora_B.default.weight"])
    with pytest.raises(InputError, match="cannot be told apart") as caught:
        pth_to_hf(write_config(tmp_path, "my-own-model"), checkpoint, tmp_path / "x")
    assert "--base DIR" in caught.value.fix


def test_other_models_keep_their_names(tmp_path: Path) -> None:
    at = "base_model.model.model.layers.0.self_attn.q_proj"
    weights = {
        f"llm.{at}.lora_A.default.weight": torch.randn(4, 8),
        f"llm.{at}.lora_B.default.weight": torch.randn(8, 4),
    }
    done = pth_to_hf(write_config(tmp_path, "qwen"), save_pth(tmp_path / "a.pth", weights), tmp_path / "out")
    assert load_file(tmp_path / "out" / FILE).keys() == {f"{at}.lora_A.weight", f"{at}.lora_B.weight"}
    assert done["layout"] == "as trained"


def test_equal_checkpoints_give_equal_bytes(tmp_path: Path) -> None:
    weights = lora_weights()
    config = write_config(tmp_path, write_base(tmp_path / "base"))
    one, other = save_pth(tmp_path / "a.pth", weights), save_pth(tmp_path / "b.pth", dict(reversed(weights.items())))
    for path in (one, other):
        pth_to_hf(config, path, tmp_path / path.stem)
    for name in (FILE, "adapter_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


# -- DeepSpeed ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize(
    ("stage", "prefix", "rounded"),
    [(2, "bf16_", torch.bfloat16), (1, "", torch.float16), (None, "bf16_", torch.bfloat16)],
    ids=["zero2 bf16", "zero1 fp16", "bf16 optimizer"],
)
def test_ranks_are_joined_to_the_very_masters(
    tmp_path: Path, ranks: int, stage: int | None, prefix: str, rounded: torch.dtype
) -> None:
    weights = lora_weights()
    base = write_base(tmp_path / "base")
    folder = write_zero(tmp_path / "iter_7.pth", [weights], ranks, stage=stage, prefix=prefix, rounded=rounded)
    done = pth_to_hf(write_config(tmp_path, base), folder, tmp_path / "out", layout="internlm2")
    found = load_file(tmp_path / "out" / FILE)
    assert found.keys() == {plain_name(name) for name in weights}
    assert all(torch.equal(found[plain_name(name)], tensor) for name, tensor in weights.items())
    assert done["ranks"] == ranks and done["stage"] == (stage or 1) and done["iter"] == 7


shapes = st.lists(st.integers(1, 9), min_size=1, max_size=3)


@given(
    groups=st.lists(st.lists(shapes, min_size=1, max_size=5), min_size=1, max_size=3),
    ranks=st.integers(1, 9),
    keep=st.booleans(),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_shapes_over_any_number_of_ranks_come_back(
    tmp_path_factory: pytest.TempPathFactory, groups: list[list[list[int]]], ranks: int, keep: bool
) -> None:
    """Several groups (as with and without weight decay), odd sizes, padding kept or cut off the last rank."""
    torch.manual_seed(len(groups))
    tensors = [{f"lora_{g}.{n}": torch.randn(shape) for n, shape in enumerate(group)} for g, group in enumerate(groups)]
    folder = tmp_path_factory.mktemp("zero") / "x.pth"
    # A last rank that is all padding would lose everything; DeepSpeed keeps it.
    keep = keep or any(sum(t.numel() for t in group.values()) <= 4 * ranks * ranks for group in tensors)
    found = read_zero(write_zero(folder, tensors, ranks, keep_padding=keep)).tensors
    wanted = {name: tensor for group in tensors for name, tensor in group.items()}
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def _remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _from_other_run(folder: Path) -> None:
    other = write_zero(folder.with_name("other.pth"), [lora_weights(seed=5)], 3)
    shutil.copy(other / rank_file(1), folder / rank_file(1))


def _from_other_step(folder: Path) -> None:
    other = write_zero(folder.with_name("other.pth"), [lora_weights()], 3, step=9)
    shutil.copy(other / rank_file(2), folder / rank_file(2))


def _from_other_world(folder: Path) -> None:
    other = write_zero(folder.with_name("other.pth"), [lora_weights()], 8)
    shutil.copy(other / rank_file(1), folder / rank_file(1))


def _cut(name: str, share: float) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return cut


def _of_larger_model(folder: Path) -> None:
    other = write_zero(folder.with_name("other.pth"), [lora_weights(layers=3)], 3)
    shutil.copy(other / MODEL_FILE, folder / MODEL_FILE)


def _of_more_groups(folder: Path) -> None:
    weights = lora_weights()
    halves = [{n: w for n, w in weights.items() if half in n} for half in ("lora_A", "lora_B")]
    other = write_zero(folder.with_name("other.pth"), halves, 3)
    shutil.copy(other / MODEL_FILE, folder / MODEL_FILE)


def _rename(old: str, new: str) -> Callable[[Path], None]:
    return lambda folder: (folder / old).rename(folder / new) and None


@pytest.mark.parametrize(
    ("spoil", "reasons"),
    [
        (_remove(rank_file(1)), ["the file of rank 1 is missing"]),
        (_remove(rank_file(2)), ["the training had 3 ranks, and the files of 2 are there"]),
        (_remove(MODEL_FILE), ["lacks mp_rank_00_model_states.pt"]),
        (_from_other_run, ["are not the weights in mp_rank_00_model_states.pt: some files are of another run"]),
        (_from_other_step, ["the optimizer's step is [9.0] here and [7.0] in"]),
        (_from_other_world, ["the number of ranks is 8 here and 3", "they are of different runs"]),
        (_cut(rank_file(0), 0.6), ["the file is cut off"]),
        (_cut(MODEL_FILE, 0.3), ["the file is cut off"]),
        (_of_larger_model, ["numbers, and the trained weights have"]),
        (_of_more_groups, ["it holds 1 groups of weights, and mp_rank_00_model_states.pt tells of 2"]),
        (_rename(rank_file(2), "zero_pp_rank_1_mp_rank_00_optim_states.pt"), ["rank 1 is there twice"]),
        (_rename(rank_file(2), "zero_pp_rank_2_mp_rank_01_optim_states.pt"), ["tensor parallel"]),
        (_rename(MODEL_FILE, "zero_pp_rank_0_mp_rank_00_model_states.pt"), ["ZeRO stage 3, which is not read"]),
    ],
    ids=[
        *("rank missing", "last rank missing", "no model states", "other run", "other step", "other world"),
        *("rank cut off", "model cut off", "larger model", "more groups", "rank twice", "tensor parallel", "stage 3"),
    ],
)
def test_ranks_that_are_not_one_whole_run_are_refused(
    tmp_path: Path, spoil: Callable[[Path], None], reasons: list[str]
) -> None:
    folder = write_zero(tmp_path / "iter_7.pth", [lora_weights()], 3)
    config = write_config(tmp_path, write_base(tmp_path / "base"))
    spoil(folder)
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(InputError) as caught:
        pth_to_hf(config, folder, tmp_path / "out")
    for reason in reasons:
        assert reason in str(caught.value)
    assert "fix:" in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == before


# -- what does not fit -------------------------------------------------------------------------------------------------


def refused(tmp_path: Path, config: Path, checkpoint: Path, **how: Any) -> str:
    with pytest.raises(InputError) as caught:
        pth_to_hf(config, checkpoint, tmp_path / "out", **how)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".mrp-*"))
    assert "fix:" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (", r=16", "lora_A has rank 4, and"),
        (", target_modules=['wqkv', 'wo']", "LoRA is on output, w1, w2, w3, wo, wqkv, and"),
        (", use_dora=True", "model.lora.use_dora is True: more than plain LoRA"),
        (", modules_to_save=['output']", "model.lora.modules_to_save is"),
        (", bias='all'", "model.lora.bias is 'all'"),
        (", rank_pattern=dict(wo=2)", "model.lora.rank_pattern is"),
        (", lora_alpha=scale()", "model.lora.lora_alpha could not be read"),
        (", r=0", "model.lora.r is 0"),
    ],
)
def test_a_config_of_another_training_is_refused(tmp_path: Path, more: str, reason: str) -> None:
    config = write_config(tmp_path, write_base(tmp_path / "base"))
    text = config.read_text(encoding="utf-8")
    key = more.split("=")[0].strip(", ")
    for option in ("r=4", "lora_alpha=8", "bias='none'"):
        if option.split("=")[0] == key:
            text = text.replace(f"{option}, ", "")
    config.write_text(text.replace("'CAUSAL_LM'", f"'CAUSAL_LM'{more}"), encoding="utf-8")
    assert reason in refused(tmp_path, config, save_pth(tmp_path / "a.pth", lora_weights()))


def test_a_scale_other_than_the_checkpoints_own_is_refused(golden: Path, base: Path, tmp_path: Path) -> None:
    """Shapes do not tell alpha; the config that the checkpoint keeps does."""
    text = (golden / "xiyou_tiny.py").read_text(encoding="utf-8").replace("lora_alpha=16", "lora_alpha=64")
    (tmp_path / "config.py").write_text(text, encoding="utf-8")
    for name in ("iter_64.pth", "iter_64_zero2.pth", "hf_adapter"):
        said = refused(tmp_path, tmp_path / "config.py", golden / name, base=base)
        assert "was trained with lora_alpha 16" in said and "says 64" in said


@pytest.mark.parametrize("kept", ["", "model = dict(type=<class 'x'>)", "model = dict(llm=1)"])
def test_a_checkpoint_that_does_not_tell_its_scale_is_taken_with_a_warning(tmp_path: Path, kept: str) -> None:
    heard = Heard()
    config = write_config(tmp_path, write_base(tmp_path / "base"))
    pth_to_hf(config, save_pth(tmp_path / "a.pth", lora_weights(), meta={"cfg": kept}), tmp_path / "out", report=heard)
    assert len(heard.warnings) == 1 and "does not tell its scale; alpha 8" in heard.warnings[0]


def test_a_config_without_lora_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.py").write_text("model = dict(llm=dict(a=1))", encoding="utf-8")
    said = refused(tmp_path, tmp_path / "config.py", save_pth(tmp_path / "a.pth", lora_weights()))
    assert "the config trains no LoRA: it has no model.lora" in said


def test_a_base_of_other_heads_is_refused(tmp_path: Path) -> None:
    other = write_base(tmp_path / "other")
    config = json.loads((other / "config.json").read_text(encoding="utf-8"))
    (other / "config.json").write_text(json.dumps(config | {"num_key_value_heads": 4}), encoding="utf-8")
    said = refused(tmp_path, write_config(tmp_path, other), save_pth(tmp_path / "a.pth", lora_weights()))
    assert "has 64 rows, and the base model's queries, keys and values have 96" in said


KEY = "llm.base_model.model.model.layers.0.attention.wo.lora_{}.default.weight"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({KEY.format("A"): None}, "lora_A is missing: half of the pair"),
        ({KEY.format("B"): torch.full((32, 4), float("nan"))}, "lora_B holds NaN or infinity"),
        ({KEY.format("A"): torch.full((4, 32), float("inf"))}, "lora_A holds NaN or infinity"),
        ({KEY.format("A"): torch.zeros(4, 32, 1)}, "not that of a linear layer"),
        ({KEY.format("A"): torch.zeros(4, 32, dtype=torch.int64)}, "not that of a linear layer"),
        ({"llm.base_model.model.output.weight": torch.zeros(3, 3)}, "1 whole weights were trained beside the LoRA"),
        ({KEY.format("magnitude_vector"): torch.zeros(3)}, "is no A or B of a plain LoRA"),
    ],
    ids=["half", "nan", "inf", "three axes", "integers", "whole weight", "dora"],
)
def test_weights_that_are_no_plain_lora_are_refused(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    weights = {name: tensor for name, tensor in (lora_weights() | change).items() if tensor is not None}
    config = write_config(tmp_path, write_base(tmp_path / "base"))
    assert reason in refused(tmp_path, config, save_pth(tmp_path / "a.pth", weights))


def test_every_fault_is_named_in_one_pass(tmp_path: Path) -> None:
    nan = torch.full((32, 4), float("nan"))
    weights = lora_weights() | {KEY.format("B"): nan, KEY.replace("layers.0", "layers.1").format("B"): nan}
    with pytest.raises(ManyFaults, match="2 faults"):
        pth_to_hf(
            write_config(tmp_path, write_base(tmp_path / "b")), save_pth(tmp_path / "a.pth", weights), tmp_path / "o"
        )


def test_numbers_too_large_for_float16_are_not_written_as_infinity(tmp_path: Path) -> None:
    weights = lora_weights() | {KEY.format("B"): torch.full((32, 4), 1e6)}
    config = write_config(tmp_path, write_base(tmp_path / "base"))
    checkpoint = save_pth(tmp_path / "a.pth", weights)
    assert "lora_B as float16 holds NaN or infinity" in refused(tmp_path, config, checkpoint, dtype="fp16")


@pytest.mark.parametrize("form", ["pth", "zero"])
def test_a_full_fine_tune_is_told_as_such(tmp_path: Path, form: str) -> None:
    weights = {"llm.model.tok_embeddings.weight": torch.zeros(9, 4), "llm.output.weight": torch.zeros(9, 4)}
    path = tmp_path / "a.pth"
    checkpoint = save_pth(path, weights) if form == "pth" else write_zero(path, [weights], 2)
    said = refused(tmp_path, write_config(tmp_path), checkpoint)
    assert "holds no LoRA weights: 2 whole weights, such as llm.model.tok_embeddings.weight" in said
    assert "full fine-tune" in said


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda _: None, "no such checkpoint"),
        (lambda path: path.mkdir(), "the folder holds no checkpoint"),
        (lambda path: path.write_bytes(b"not a checkpoint"), "this is no file of torch.save"),
        (lambda path: path.write_bytes(b""), "this is no file of torch.save"),
        (lambda path: path.write_bytes(b"PK\x03\x04 and no more"), "the file is cut off"),
        (lambda path: torch.save({"weights": 1}, path), "it has no state_dict"),
        (lambda path: torch.save([1, 2], path), "it has no state_dict"),
        (lambda path: torch.save({"state_dict": {}}, path, _use_new_zipfile_serialization=False), "before 1.6"),
        (lambda path: zipfile.ZipFile(path, "w").close(), "it has no data.pkl"),
    ],
    ids=["missing", "empty folder", "text", "empty", "cut off", "other", "list", "legacy", "other zip"],
)
def test_files_that_are_no_checkpoint_are_told_apart(tmp_path: Path, make: Callable[[Path], Any], reason: str) -> None:
    make(tmp_path / "a.pth")
    assert reason in refused(tmp_path, write_config(tmp_path), tmp_path / "a.pth")


@given(share=st.floats(0, 0.999))
@settings(max_examples=60, deadline=None)
def test_a_checkpoint_cut_anywhere_is_refused(tmp_path_factory: pytest.TempPathFactory, share: float) -> None:
    folder = tmp_path_factory.mktemp("cut")
    data = save_pth(folder / "whole.pth", lora_weights()).read_bytes()
    (folder / "a.pth").write_bytes(data[: int(share * len(data))])
    assert "a.pth" in refused(folder, write_config(folder), folder / "a.pth")


@given(at=st.integers(0, 10**9), change=st.integers(1, 255))
@settings(max_examples=100, deadline=None)
def test_a_flipped_byte_is_found_or_harmless(tmp_path_factory: pytest.TempPathFactory, at: int, change: int) -> None:
    """Never another error than ours, and never other numbers than those that were saved."""
    folder = tmp_path_factory.mktemp("flip")
    weights = lora_weights(layers=1)
    config = write_config(folder, write_base(folder / "base"))
    data = bytearray(save_pth(folder / "a.pth", weights).read_bytes())
    data[at % len(data)] ^= change
    (folder / "a.pth").write_bytes(data)
    try:
        pth_to_hf(config, folder / "a.pth", folder / "out", layout="internlm2")
    except InputError:
        assert not (folder / "out").exists()
    else:
        found = load_file(folder / "out" / FILE)
        assert all(torch.equal(found[plain_name(name)], tensor) for name, tensor in weights.items())


# -- malice ------------------------------------------------------------------------------------------------------------


class Evil:
    """Pickled as a call of `function` with `arguments`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


MALICE: dict[str, Callable[[Path], tuple[Any, str]]] = {
    "os.system": lambda mark: (Evil(os.system, f"touch {mark}"), f"{os.system.__module__}.system"),
    "eval": lambda mark: (Evil(eval, f"open({str(mark)!r}, 'w')"), "eval"),
    "exec": lambda mark: (Evil(exec, f"open({str(mark)!r}, 'w')"), "exec"),
    "open": lambda mark: (Evil(open, str(mark), "w"), "open"),
    "torch.load": lambda mark: (Evil(torch.load, str(mark)), "torch.serialization.load"),
    "torch.hub": lambda _: (Evil(torch.hub.load, "a/b", "c"), "torch.hub.load"),
    "pickle.loads": lambda _: (Evil(pickle.loads, b"cos\nsystem\n."), "pickle.loads"),
    "shutil": lambda mark: (Evil(shutil.rmtree, str(mark.parent)), "shutil.rmtree"),
}


@pytest.mark.parametrize("how", ["in state_dict", "beside it", "bare pickle", "legacy", "rank file", "adapter bin"])
@pytest.mark.parametrize("malice", MALICE)
def test_a_malicious_pickle_is_not_run_and_is_named(tmp_path: Path, malice: str, how: str) -> None:
    mark = tmp_path / "ran"
    evil, name = MALICE[malice](mark)
    config = write_config(tmp_path, write_base(tmp_path / "base"))
    path = tmp_path / "a.pth"
    if how == "in state_dict":
        save_pth(path, lora_weights(layers=1) | {"x": evil})
    elif how == "beside it":
        save_pth(path, lora_weights(layers=1), message_hub=evil)
    elif how == "bare pickle":
        path.write_bytes(pickle.dumps({"state_dict": {}, "x": evil}))
    elif how == "legacy":
        torch.save({"state_dict": {}, "x": evil}, path, _use_new_zipfile_serialization=False)
    elif how == "rank file":
        write_zero(path, [lora_weights(layers=1)], 2)
        torch.save({"optimizer_state_dict": evil}, path / rank_file(1))
    else:
        path.mkdir()
        (path / "adapter_config.json").write_text('{"peft_type": "LORA"}', encoding="utf-8")
        torch.save({"x": evil}, path / "adapter_model.bin")
    said = refused(tmp_path, config, path)
    assert name in said and "malicious" in said and "nothing of it was run" in said
    assert not mark.exists()


def test_all_that_a_malicious_pickle_wanted_is_named(tmp_path: Path) -> None:
    path = save_pth(tmp_path / "a.pth", {"a": Evil(eval, "1"), "b": Evil(exec, "2")})
    with pytest.raises(Malicious, match=r"builtins\.eval, .*builtins\.exec|eval, .*exec"), open_pickled(path):
        pass


def test_stand_ins_do_nothing_whatever_the_pickle_says(golden: Path) -> None:
    """mmengine's and numpy's objects in a real checkpoint are neither imported nor made."""
    with open_pickled(golden / "iter_64.pth") as file:
        buffers = file.value["message_hub"]["log_scalars"]
        assert {type(item).__name__ for item in buffers.values()} == {"StandIn"}
        assert not any(hasattr(item, "min") for item in buffers.values())


@pytest.mark.parametrize(
    ("shape", "strides", "offset"), [((40,), (1,), 0), ((4,), (1,), 30), ((4, 8), (9, 1), 0), ((4,), (-1,), 8)]
)
def test_a_tensor_that_reaches_beyond_its_numbers_is_refused(
    tmp_path: Path, shape: tuple[int, ...], strides: tuple[int, ...], offset: int
) -> None:
    """Read as told, it would show other memory of the process."""
    from dataclasses import replace

    torch.save({"t": torch.arange(32.0)}, tmp_path / "a.pth")
    with open_pickled(tmp_path / "a.pth") as file:
        part = replace(file.value["t"], shape=shape, strides=strides, offset=offset)
        with pytest.raises(InputError, match="outside of its numbers"):
            file.tensor(part, "t")
        assert torch.equal(file.tensor(file.value["t"], "t"), torch.arange(32.0))


@given(st.lists(st.integers(1, 4), max_size=4), st.sampled_from(["float32", "float16", "bfloat16", "int64", "bool"]))
@settings(max_examples=40, deadline=None)
def test_tensors_are_read_as_torch_reads_them(
    tmp_path_factory: pytest.TempPathFactory, shape: list[int], dtype: str
) -> None:
    path = tmp_path_factory.mktemp("tensor") / "a.pth"
    whole = (torch.randn([2, *shape]) * 3).to(getattr(torch, dtype))
    saved = {"view": whole[1], "turned": whole.movedim(0, -1), "scalar": whole.flatten()[0], "none": whole[:0]}
    torch.save(saved, path)
    read = torch.load(path, weights_only=True)
    with open_pickled(path) as file:
        for name, tensor in read.items():
            found = file.tensor(file.value[name], name)
            assert found.dtype == tensor.dtype and found.shape == tensor.shape and torch.equal(found, tensor)
