"""Merging: the merged model is base + adapter (law 8), whole or not at all, and what cannot be folded is refused."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from heard import Heard
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mrp.cast import load_cast
from mrp.config import load_run
from mrp.errors import InputError, ManyFaults, MrpError, SetupError
from mrp.models import merge as merge_module
from mrp.models import merge_check, merge_numbers, merge_probes, shards
from mrp.models.bases import DEFAULT_BASE, find_base
from mrp.models.merge import MERGE_RECORD, is_merged, merge, merge_command, merge_run, reshard
from mrp.models.merge_check import LARGEST_MEAN_KL, verify
from mrp.models.merge_probes import mean_kl

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from merging import (  # noqa: E402  # they need peft
    BF16,
    FP16,
    FP32,
    PROBES,
    change_json,
    change_tensors,
    contents,
    make_adapter,
    make_base,
    merged_by_peft,
    weights_of,
)

SHARD = "20kB"  # the tiny model has some 70 to 150 kB


# -- tiny bases and adapters ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in bf16 with tied embeddings, and an adapter for it; tests copy what they change."""
    folder = tmp_path_factory.mktemp("tiny")
    make_adapter(folder / "adapter", make_base(folder / "base"))
    return folder


@pytest.fixture
def base(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "base", tmp_path / "base"))


@pytest.fixture
def adapter(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "adapter", tmp_path / "adapter"))


# -- law 8 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=["bf16", "fp16", "fp32"])
def test_merged_equals_base_and_adapter(tmp_path: Path, dtype: torch.dtype, tied: bool) -> None:
    base = make_base(tmp_path / "base", dtype, tied, max_shard_size="30kB")
    adapter = make_adapter(tmp_path / "adapter", base)
    record = merge(base, adapter, tmp_path / "out", max_shard_size=SHARD, probes=PROBES)

    expected, got = merged_by_peft(base, adapter), weights_of(tmp_path / "out")
    assert got.keys() == weights_of(base).keys()
    assert ("lm_head.weight" in got) is not tied
    for name, weight in got.items():
        assert weight.dtype == dtype
        torch.testing.assert_close(weight, expected[name].to(dtype), rtol=torch.finfo(dtype).eps, atol=0)

    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=FP32)
    both = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=FP32)
    both = peft.PeftModel.from_pretrained(both, str(adapter))
    for ids in PROBES:
        with torch.no_grad():
            one, other = both(torch.tensor([ids])).logits[0], model(torch.tensor([ids])).logits[0]
        assert mean_kl([one], [other]) <= LARGEST_MEAN_KL[dtype] / 10
    checked = record["verification"]
    assert checked["mean_kl"] <= LARGEST_MEAN_KL[dtype] / 10 < LARGEST_MEAN_KL[dtype] < checked["adapter_mean_kl"] / 10
    assert checked["largest_weight_error"] <= 1
    assert record["tensors"]["changed"] == checked["weights_compared"] == 14


@pytest.mark.parametrize(
    "options",
    [
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 8, "layers.1.mlp.up_proj": 2}, "alpha_pattern": {"q_proj": 3}},
        {"use_rslora": True, "rank_pattern": {"v_proj": 1}, "alpha_pattern": {"layers.0.self_attn.v_proj": 5}},
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]},
        {"target_modules": r".*\.mlp\.(up|down)_proj", "lora_alpha": 3},
    ],
    ids=["rslora", "patterns", "both", "some layers", "regex"],
)
def test_scale_and_layers_are_those_of_peft(base: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    adapter = make_adapter(tmp_path / "other", base, **options)
    merge(base, adapter, tmp_path / "out", probes=PROBES)
    expected, got = merged_by_peft(base, adapter), weights_of(tmp_path / "out")
    for name, weight in got.items():
        torch.testing.assert_close(weight, expected[name].to(BF16), rtol=2**-7, atol=0)


def test_the_sum_is_rounded_once(base: Path, adapter: Path, tmp_path: Path) -> None:
    """A change stored in bf16 first, and then added, would be off by up to a unit in the last place."""
    record = merge(base, adapter, tmp_path / "out", probes=PROBES)
    before, after = weights_of(base), weights_of(tmp_path / "out")
    halves = load_file(adapter / "adapter_model.safetensors")
    errors, changes = [], []
    for name in after:
        key = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{key}.lora_A.weight" not in halves:
            assert torch.equal(before[name], after[name])
            continue
        change = 2.0 * (halves[f"{key}.lora_B.weight"].double() @ halves[f"{key}.lora_A.weight"].double())
        exact = before[name].double() + change
        error = (after[name].double() - exact).abs()
        assert (error <= exact.abs() * 2**-8 * 1.0001 + 1e-9).all()
        errors.append(error.square().sum())
        changes.append(change.square().sum())
    lost = float(sum(errors) / sum(changes)) ** 0.5
    assert record["rounding"]["lost"] == pytest.approx(lost, rel=1e-3)
    assert record["rounding"]["largest"] >= record["rounding"]["mean"] > 0
    assert record["scale"] == 2.0


def test_adapter_in_half_precision_is_added_in_float32(base: Path, adapter: Path, tmp_path: Path) -> None:
    change_tensors(
        adapter / "adapter_model.safetensors", lambda t: t.update({k: v.to(BF16) for k, v in list(t.items())})
    )
    merge(base, adapter, tmp_path / "out", probes=PROBES)
    expected, got = merged_by_peft(base, adapter), weights_of(tmp_path / "out")
    for name, weight in got.items():
        torch.testing.assert_close(weight, expected[name].to(BF16), rtol=2**-7, atol=0)


def test_large_matrices_are_folded_in_blocks(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge(base, adapter, tmp_path / "whole", probes=PROBES)
    monkeypatch.setattr(shards, "PIECE_BYTES", 1000)  # seven rows
    merge(base, adapter, tmp_path / "pieces", probes=PROBES)
    for name, weight in weights_of(tmp_path / "whole").items():
        torch.testing.assert_close(weights_of(tmp_path / "pieces")[name], weight, rtol=2**-7, atol=0)


# -- the check finds what is wrong ----------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.1, 0.0005], ids=["strong", "weak"])
def test_check_finds_a_wrong_scale(base: Path, tmp_path: Path, strength: float) -> None:
    adapter = make_adapter(tmp_path / "right", base, strength)
    wrong = Path(shutil.copytree(adapter, tmp_path / "wrong"))
    change_json(wrong / "adapter_config.json", lora_alpha=16)
    merge(base, wrong, tmp_path / "out", probes=PROBES)
    with pytest.raises(MrpError, match="not the base's weight with the adapter's part") as caught:
        verify(base, adapter, tmp_path / "out", PROBES)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("strength", [0.1, 0.0005], ids=["strong", "weak"])
def test_check_finds_a_missed_layer(base: Path, tmp_path: Path, strength: float) -> None:
    adapter = make_adapter(tmp_path / "right", base, strength)
    merge(base, adapter, tmp_path / "out", probes=PROBES)
    name = "model.layers.1.mlp.up_proj.weight"
    change_tensors(tmp_path / "out/model.safetensors", lambda t: t.update({name: weights_of(base)[name]}))
    with pytest.raises(MrpError, match=name):
        verify(base, adapter, tmp_path / "out", PROBES)


@pytest.mark.parametrize("fault", ["scale", "block"])
def test_probes_alone_find_gross_faults(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    wrong = Path(shutil.copytree(adapter, tmp_path / "wrong"))
    if fault == "scale":
        change_json(wrong / "adapter_config.json", lora_alpha=16)
    else:
        change_tensors(
            wrong / "adapter_model.safetensors",
            lambda t: t.update({k: torch.zeros_like(v) for k, v in t.items() if "layers.1." in k}),
        )
    merge(base, wrong, tmp_path / "out", probes=PROBES)
    monkeypatch.setattr(merge_check, "_largest_error", lambda *_: 0.0)
    with pytest.raises(MrpError, match="mean KL divergence"):
        verify(base, adapter, tmp_path / "out", PROBES)


def test_check_finds_a_changed_bystander(base: Path, adapter: Path, tmp_path: Path) -> None:
    merge(base, adapter, tmp_path / "out", probes=PROBES)

    def nudge(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"][3] += 0.01

    change_tensors(tmp_path / "out/model.safetensors", nudge)
    with pytest.raises(MrpError, match=r"model\.norm\.weight is not the base's"):
        verify(base, adapter, tmp_path / "out", PROBES)


def test_check_finds_nan(base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merge(base, adapter, tmp_path / "out", probes=PROBES)

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")

    change_tensors(tmp_path / "out/model.safetensors", spoil)
    with pytest.raises(MrpError, match=r"up_proj\.weight is not the base's weight"):
        verify(base, adapter, tmp_path / "out", PROBES)
    monkeypatch.setattr(merge_check, "_largest_error", lambda *_: 0.0)
    with pytest.raises(MrpError, match="mean KL divergence nan"):
        verify(base, adapter, tmp_path / "out", PROBES)


def test_check_finds_a_weight_too_many(base: Path, adapter: Path, tmp_path: Path) -> None:
    merge(base, adapter, tmp_path / "out", probes=PROBES)
    head = {"lm_head.weight": torch.zeros(258, 32, dtype=BF16)}
    change_tensors(tmp_path / "out/model.safetensors", lambda t: t.update(head))
    with pytest.raises(MrpError, match=r"lm_head\.weight is in one of"):
        verify(base, adapter, tmp_path / "out", PROBES)


def test_default_probes_are_english_and_chinese_in_the_chat_template(base: Path) -> None:
    probes = merge_probes.default_probes(base)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    texts = [tokenizer.decode(ids) for ids in probes]
    assert len(probes) == 4 and all(0 < len(ids) <= merge_probes.PROBE_TOKENS for ids in probes)
    assert all(text.startswith("<|im_start|>system\n") for text in texts)
    assert "innkeeper" in texts[0] and "老人" in texts[2]


def test_failed_check_leaves_the_old_merge(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    merge(base, adapter, out, probes=PROBES)
    before = contents(out)
    change_json(adapter / "adapter_config.json", lora_alpha=3)
    monkeypatch.setattr(merge_numbers, "read_rows", lambda tensor, *rows: shards.read_rows(tensor, *rows) * 2)
    with pytest.raises(MrpError, match="the merged model is not base"):
        merge(base, adapter, out, probes=PROBES)
    assert contents(out) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "base", "out"]


# -- what is refused -----------------------------------------------------------------------------------------------

LAYER = "base_model.model.model.layers.0.self_attn.q_proj"


def refused(base: Path, adapter: Path, tmp_path: Path) -> str:
    """Why a merge is refused; nothing may have been written."""
    with pytest.raises(InputError) as caught:
        merge(base, adapter, tmp_path / "out", probes=PROBES)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".mrp-*"))
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"use_dora": True}, "has no magnitude of DoRA, and the config says use_dora True"),
        ({"modules_to_save": ["lm_head"]}, "weights that the adapter's file lacks: lm_head.weight"),
        ({"modules_to_save": ["value_head"]}, "the base has no such module"),
        ({"ensure_weight_tying": True}, "trains embedding and head as one"),
        ({"trainable_token_indices": [1, 2]}, "rows of the embedding"),
        ({"fan_in_fan_out": True}, "weights transposed"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"lora_bias": True}, "lora_bias"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "not linear layers"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
        ({"alora_invocation_tokens": [4]}, "only after certain tokens"),
        ({"use_qalora": True}, "QALoRA"),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights is 'pissa_niter_16': it changes the base"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights is 'loftq'"),
        ({"use_newest_trick": {"a": 1}}, "use_newest_trick is {'a': 1}: this option is not known"),
        ({"peft_type": "IA3"}, "an adapter of type 'IA3'"),
        ({"r": 0}, "r is 0"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"r": 8}, "has shape 4x32, and the config says rank 8"),
        ({"rank_pattern": {"q_proj": 2}}, "has shape 4x32, and the config says rank 2"),
        ({"rank_pattern": [1]}, "rank_pattern is no mapping"),
        ({"target_modules": ["q_proj", "lm_head"]}, "names layers that the adapter's file lacks: lm_head"),
        ({"target_modules": "(", "layers_to_transform": None}, "its layers cannot be told"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_beyond_plain_lora_are_refused(
    base: Path, adapter: Path, tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    change_json(adapter / "adapter_config.json", **options)
    assert reason in refused(base, adapter, tmp_path)


def _drop(key: str) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: [tensors.pop(k) for k in list(tensors) if k.startswith(key)] and None


def _put(key: str, *shape: int, fill: float = 0.1, dtype: torch.dtype = FP32) -> Any:
    return lambda tensors: tensors.update({key: torch.full(shape, fill, dtype=dtype)})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_drop(f"{LAYER}.lora_A"), "q_proj has no lora_A: half of the pair is missing"),
        (_drop(f"{LAYER}.lora_B"), "q_proj has no lora_B: half of the pair is missing"),
        (_drop(LAYER), "lacks: model.layers.0.self_attn.q_proj"),
        (_drop("base_model"), "holds no LoRA weights"),
        (
            _put(f"{LAYER}.lora_A.weight", 4, 31),
            "the adapter's model.layers.0.self_attn.q_proj is 32x31",
        ),
        (_put(f"{LAYER}.lora_B.weight", 30, 4), "q_proj is 30x32, the base's is 32x32"),
        (_put(f"{LAYER}.lora_A.weight", 4, 32, 1), "has shape 4x32x1: not a linear layer"),
        (
            _put(f"{LAYER}.lora_A.weight", 4, 32, fill=float("nan")),
            "lora_A of model.layers.0.self_attn.q_proj holds NaN",
        ),
        (
            _put(f"{LAYER}.lora_B.weight", 32, 4, fill=float("inf")),
            "lora_B of model.layers.0.self_attn.q_proj holds NaN",
        ),
        (_put(f"{LAYER}.lora_A.weight", 4, 32, dtype=torch.float64), "is stored as F64"),
        (_put(f"{LAYER}.lora_magnitude_vector", 32), "has a magnitude of DoRA, and the config says use_dora False"),
        (_put("base_model.model.model.embed_tokens.lora_embedding_A", 4, 258), "embed_tokens has no lora_B: half"),
        (
            _put("base_model.model.lm_head.modules_to_save.weight", 258, 31),
            "lm_head.weight is 258x31, the base's is 258x32",
        ),
        (_put("base_model.model.model.norm.weight", 32), "model.norm.weight is brought whole, and modules_to_save"),
        (_put("something.else", 2), "something.else is not a LoRA weight"),
    ],
    ids=[
        *("no A", "no B", "no layer", "nothing", "other in", "other out", "three axes", "nan", "inf", "float64"),
        *("dora", "embedding", "saved module", "unasked module", "unknown"),
    ],
)
def test_broken_adapters_are_refused(
    base: Path, adapter: Path, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None], reason: str
) -> None:
    change_tensors(adapter / "adapter_model.safetensors", change)
    assert reason in refused(base, adapter, tmp_path)


def _pair(layer: str, rows: int, columns: int) -> Callable[[dict[str, torch.Tensor]], None]:
    key = f"base_model.model.{layer}"
    new = {f"{key}.lora_A.weight": torch.ones(4, columns), f"{key}.lora_B.weight": torch.ones(rows, 4)}
    return lambda tensors: tensors.update(new)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        ("model.embed_tokens", "model.embed_tokens is the base's embedding"),
        ("model.layers.7.mlp.up_proj", "the base has no layer model.layers.7.mlp.up_proj"),
        ("model.layers.0.mlp", "is a LlamaMLP, not a linear layer"),
    ],
)
def test_layers_that_lora_must_leave_alone_are_refused(tmp_path: Path, tied: bool, layer: str, reason: str) -> None:
    base = make_base(tmp_path / "base", tied=tied)
    adapter = make_adapter(tmp_path / "adapter", base)
    change_tensors(adapter / "adapter_model.safetensors", _pair(layer, 258, 32))
    assert reason in refused(base, adapter, tmp_path)


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=["bf16", "fp16", "fp32"])
def test_lora_on_an_untied_head_is_merged_like_any_other(tmp_path: Path, dtype: torch.dtype) -> None:
    """XTuner's default adapter for InternLM2 has one."""
    base = make_base(tmp_path / "base", dtype, tied=False)
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=["q_proj", "lm_head"])
    record = merge(base, adapter, tmp_path / "out", probes=PROBES)
    assert record["tensors"]["changed"] == record["verification"]["weights_compared"] == 3
    expected, got = merged_by_peft(base, adapter), weights_of(tmp_path / "out")
    assert not torch.equal(got["lm_head.weight"], weights_of(base)["lm_head.weight"])
    assert torch.equal(got["model.embed_tokens.weight"], weights_of(base)["model.embed_tokens.weight"])
    for name, weight in got.items():
        torch.testing.assert_close(weight, expected[name].to(dtype), rtol=torch.finfo(dtype).eps, atol=0)


def test_layer_kept_under_another_name_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    old, new = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.w1.weight"
    change_tensors(base / "model.safetensors", lambda t: t.update({new: t.pop(old)}))
    said = refused(base, adapter, tmp_path)
    assert f"the base's files have no {old}" in said and "under another name" in said


def test_quantised_bases_are_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    change_json(base / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    assert "the base is quantised (gptq)" in refused(base, adapter, tmp_path)


def test_fp8_bases_are_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    change_tensors(base / "model.safetensors", lambda t: t.update({name: t[name].to(torch.float8_e4m3fn)}))
    said = refused(base, adapter, tmp_path)
    assert "the base holds weights in F8_E4M3" in said and f"{name} is stored as F8_E4M3" in said


def test_unknown_architecture_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    change_json(base / "config.json", model_type="madeup", auto_map={"AutoModelForCausalLM": "modeling_tiny.Tiny"})
    assert "transformers cannot build the base model" in refused(base, adapter, tmp_path)


def test_base_of_other_width_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    change_tensors(base / "model.safetensors", lambda t: t.update({name: t[name][:40].contiguous()}))
    assert f"{name} has shape 40x32, and config.json says 48x32" in refused(base, adapter, tmp_path)


def test_every_fault_is_named_in_one_pass(base: Path, adapter: Path, tmp_path: Path) -> None:
    change_json(adapter / "adapter_config.json", fan_in_fan_out=True, bias="all")
    change_json(base / "config.json", quantization_config={"quant_method": "awq"})
    change_tensors(adapter / "adapter_model.safetensors", _drop(f"{LAYER}.lora_A"))
    with pytest.raises(ManyFaults) as caught:
        merge(base, adapter, tmp_path / "out")
    words = " ".join(fault.what for fault in caught.value.faults)
    assert len(caught.value.faults) == 4
    assert all(part in words for part in ("fan_in_fan_out", "bias", "awq", "no lora_A"))


def test_missing_and_cut_files_are_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert "the file is cut off within" in refused(base, adapter, tmp_path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    assert "is not a safetensors file" in refused(base, adapter, tmp_path)
    path.unlink()
    assert "no trained adapter here: adapter_model.safetensors missing" in refused(base, adapter, tmp_path)


def test_result_too_large_for_the_format_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", FP16)
    adapter = make_adapter(tmp_path / "adapter", base, strength=1e6)
    assert "with the adapter is too large for F16" in refused(base, adapter, tmp_path)


def test_nan_in_the_base_is_named_as_such(base: Path, adapter: Path, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.mlp.up_proj.weight"][2, 2] = float("nan")

    change_tensors(base / "model.safetensors", spoil)
    assert "of the base holds NaN" in refused(base, adapter, tmp_path)


# -- the folder ----------------------------------------------------------------------------------------------------


def test_shards_stay_within_the_limit(base: Path, adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    record = merge(base, adapter, out, max_shard_size=SHARD, probes=PROBES)
    files = sorted(out.glob("*.safetensors"))
    index = json.loads((out / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert len(files) > 2 and {f.name for f in files} == set(record["shards"]) == set(index["weight_map"].values())
    assert all(file.stat().st_size <= 20_000 for file in files)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in weights_of(out).values())
    for file in files:
        with safe_open(file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            assert all(index["weight_map"][name] == file.name for name in opened.keys())  # noqa: SIM118  # no mapping


def test_tensor_larger_than_the_limit_gets_a_file_of_its_own(base: Path, adapter: Path, tmp_path: Path) -> None:
    heard = Heard()
    record = merge(base, adapter, tmp_path / "out", max_shard_size="10kB", probes=PROBES, report=heard)
    large = [name for name, length in record["shards"].items() if length > 10_000]
    assert len(large) == 1 and "embed_tokens.weight alone has 16.5 kB" in heard.warnings[0]
    assert load_file(tmp_path / "out" / large[0]).keys() == {"model.embed_tokens.weight"}


def test_one_file_has_no_index(base: Path, adapter: Path, tmp_path: Path) -> None:
    merge(base, adapter, tmp_path / "out", probes=PROBES)
    assert (tmp_path / "out/model.safetensors").is_file()
    assert not list(tmp_path.glob("out/*.index.json"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *(("2GB", 2 * 10**9), ("500 MB", 5 * 10**8), ("20kB", 20_000), ("20KB", 20_000), ("9B", 9)),
        *(("1.5GiB", 3 * 2**29), ("2KiB", 2048), ("1TiB", 2**40)),
    ],
)
def test_sizes_of_files(text: str, expected: int) -> None:
    assert shards.shard_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "2", "GB", "1.2.3GB", "-1GB", "0GB", "0.5B", "2iB", "2gb", "much"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="not a size of a file"):
        shards.shard_bytes(text)


def test_mixed_number_formats_stay_as_they_are(base: Path, adapter: Path, tmp_path: Path) -> None:
    def mix(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"] = tensors["model.norm.weight"].float() + 1e-4
        tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"].float() + 1e-5

    change_tensors(base / "model.safetensors", mix)
    record = merge(base, adapter, tmp_path / "out", probes=PROBES)
    before, after = weights_of(base), weights_of(tmp_path / "out")
    assert {n: t.dtype for n, t in before.items()} == {n: t.dtype for n, t in after.items()}
    assert record["dtype"] == ["BF16", "F32"]


def test_everything_but_code_comes_from_the_base(base: Path, adapter: Path, tmp_path: Path) -> None:
    (base / "mrp-base.json").write_text("{}", encoding="utf-8")
    merge(base, adapter, tmp_path / "out", max_shard_size=SHARD, probes=PROBES)
    expected = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "LICENSE"}
    expected |= {"chat_template.jinja", "model.safetensors.index.json", MERGE_RECORD}
    found = {p.name for p in (tmp_path / "out").iterdir() if p.suffix != ".safetensors"}
    assert found == expected
    for name in ("config.json", "tokenizer.json", "LICENSE", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (base / name).read_bytes()


def test_same_inputs_give_the_same_bytes_and_no_path_in_the_record(base: Path, adapter: Path, tmp_path: Path) -> None:
    merge(base, adapter, tmp_path / "one", max_shard_size=SHARD, probes=PROBES)
    merge(base, adapter, tmp_path / "two", max_shard_size=SHARD, probes=PROBES)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert str(tmp_path) not in (tmp_path / "one" / MERGE_RECORD).read_text(encoding="utf-8")


def test_untrained_adapter_is_merged_with_a_warning(base: Path, tmp_path: Path) -> None:
    heard = Heard()
    adapter = make_adapter(tmp_path / "new", base, strength=0.0)
    record = merge(base, adapter, tmp_path / "out", probes=PROBES, report=heard)
    assert "changes nothing" in heard.warnings[0]
    assert record["rounding"]["lost"] == 0
    assert all(torch.equal(t, weights_of(base)[n]) for n, t in weights_of(tmp_path / "out").items())


def test_change_below_the_rounding_is_warned_of(base: Path, tmp_path: Path) -> None:
    heard = Heard()
    merge(base, make_adapter(tmp_path / "faint", base, 1e-5), tmp_path / "out", probes=PROBES, report=heard)
    assert "of the adapter's change" in heard.warnings[0]


# -- again, and interrupted ----------------------------------------------------------------------------------------


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.iterdir()}


def test_second_merge_does_nothing(base: Path, adapter: Path, tmp_path: Path) -> None:
    record = merge(base, adapter, tmp_path / "out", max_shard_size=SHARD, probes=PROBES)
    before = stamps(tmp_path / "out")
    heard = Heard()
    assert merge(base, adapter, tmp_path / "out", max_shard_size=SHARD, probes=PROBES, report=heard) == record
    assert stamps(tmp_path / "out") == before
    assert "done already" in heard.lines[0]


def _shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("what", ["adapter", "base", "shard", "tokenizer", "shard size"])
def test_merge_is_done_anew_where_something_changed(base: Path, adapter: Path, tmp_path: Path, what: str) -> None:
    out = tmp_path / "out"
    first = merge(base, adapter, out, probes=PROBES)
    before = stamps(out)

    def halve(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            tensors[name] = tensors[name] / 2

    if what == "adapter":
        change_tensors(adapter / "adapter_model.safetensors", halve)
    elif what == "base":  # another fine-tune of it: same names, same length
        change_tensors(base / "model.safetensors", halve)
    elif what == "shard":
        _shorten(out / "model.safetensors")
    elif what == "tokenizer":
        (out / "tokenizer.json").unlink()
    size = "30kB" if what == "shard size" else "2GB"
    again = merge(base, adapter, out, max_shard_size=size, probes=PROBES)
    assert stamps(out) != before
    assert (again == first) is (what in ("shard", "tokenizer"))
    assert not list(tmp_path.glob(".mrp-*"))


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_stopped_write_leaves_the_old_folder(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException
) -> None:
    out = tmp_path / "out"
    merge(base, adapter, out, max_shard_size=SHARD, probes=PROBES)
    before = contents(out)
    change_json(adapter / "adapter_config.json", lora_alpha=4)
    calls: Iterator[int] = iter(range(100))

    def sync(_: int) -> None:
        if next(calls) == 2:  # two shards are written by now
            raise stop

    monkeypatch.setattr(shards.os, "fsync", sync)
    with pytest.raises(SetupError if isinstance(stop, OSError) else KeyboardInterrupt):
        merge(base, adapter, out, max_shard_size=SHARD, probes=PROBES)
    monkeypatch.undo()
    assert contents(out) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "base", "out"]


def test_disk_space_is_asked_for_first(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=50_000))
    monkeypatch.setattr(merge_module, "write_shards", lambda *_: pytest.fail("it began to write"))
    with pytest.raises(SetupError, match=r"the merged model needs 1\.\d MB, but only 50\.0 kB are free"):
        merge(base, adapter, tmp_path / "out", probes=PROBES)
    assert not (tmp_path / "out").exists()


def test_foreign_folders_are_not_replaced(base: Path, adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(InputError, match="the folder is not empty, and no earlier merge"):
        merge(base, adapter, out, probes=PROBES)
    (out / "thesis.txt").unlink()
    merge(base, adapter, out, probes=PROBES)  # an empty one may be filled

    (out / "model.gguf").write_bytes(b"GGUF")
    change_json(adapter / "adapter_config.json", lora_alpha=4)
    with pytest.raises(InputError, match=r"would be lost: model\.gguf"):
        merge(base, adapter, out, probes=PROBES)
    assert (out / "model.gguf").read_bytes() == b"GGUF"

    for place in (base, adapter, tmp_path):
        with pytest.raises(InputError, match="cannot take the place of"):
            merge(base, adapter, place, probes=PROBES)
    with pytest.raises(InputError, match="a file is in the place"):
        merge(base, adapter, adapter / "adapter_config.json", probes=PROBES)


# -- runs, and the command -----------------------------------------------------------------------------------------

CAST = """
characters:
  - {id: wukong, name: Sun Wukong, persona: You are Sun Wukong., dialogues: [lines/wukong.jsonl]}
"""


@pytest.fixture
def run_file(made: Path, tmp_path: Path) -> Path:
    (tmp_path / "cast.yaml").write_text(CAST, encoding="utf-8")
    path = tmp_path / "mrp.yaml"
    path.write_text("base: base\nout: runs/one\nmerge: {max_shard_size: 30kB}\n", encoding="utf-8")
    shutil.copytree(made / "base", tmp_path / "base")
    shutil.copytree(made / "adapter", tmp_path / "runs/one/adapter")
    return path


def test_run_is_merged_once_and_carries_its_cast(run_file: Path, tmp_path: Path) -> None:
    run = load_run(run_file)
    assert not is_merged(run)
    folder = merge_run(run)
    assert folder == run.merged and is_merged(run)
    assert len(list(folder.glob("*.safetensors"))) > 1
    cast = load_cast(folder / "cast.yaml")
    assert cast["wukong"].persona == "You are Sun Wukong."
    assert (folder / cast.home / "lines").resolve() == tmp_path / "lines"
    before = stamps(folder)
    merge_run(run)
    assert stamps(folder) == before

    run_file.with_name("cast.yaml").write_text(CAST.replace("persona", "greeting: Ha!, persona"), encoding="utf-8")
    run = load_run(run_file)
    assert not is_merged(run)
    merge_run(run)
    assert load_cast(folder / "cast.yaml")["wukong"].greeting == "Ha!" and is_merged(run)
    assert {n: s for n, s in stamps(folder).items() if n != "cast.yaml"} == {
        n: s for n, s in before.items() if n != "cast.yaml"
    }

    change_json(run.adapter / "adapter_config.json", lora_alpha=4)
    assert not is_merged(run)
    merge_run(run)
    assert is_merged(run) and (folder / "cast.yaml").is_file()


def test_run_without_adapter_or_base_is_not_merged(run_file: Path, tmp_path: Path) -> None:
    run = load_run(run_file)
    merge_run(run)
    shutil.rmtree(run.adapter)
    assert not is_merged(run)
    with pytest.raises(InputError, match="no trained adapter here"):
        merge_run(run)
    assert (run.merged / MERGE_RECORD).is_file()
    shutil.rmtree(tmp_path / "base")
    assert not is_merged(run)


def test_command_merges_a_run_or_a_pair_or_reshards(run_file: Path, tmp_path: Path) -> None:
    heard = Heard()
    found = merge_command([str(run_file)], None, "25kB", heard)
    assert found["folder"] == str(tmp_path / "runs/one/merged") and found["inputs"]["max_shard_bytes"] == 25_000

    pair = [str(tmp_path / "base"), str(tmp_path / "runs/one/adapter")]
    found = merge_command(pair, tmp_path / "pair", None, heard)
    assert list(found["shards"]) == ["model.safetensors"]
    json.dumps(found)

    with pytest.raises(InputError, match="no folder to write to"):
        merge_command(pair, None, None, heard)
    with pytest.raises(InputError, match="adapter is given twice"):
        merge_command([*pair, pair[1]], tmp_path / "x", None, heard)

    merge_command([str(tmp_path / "runs/one/merged")], tmp_path / "whole", "1GB", heard)
    one, other = weights_of(tmp_path / "runs/one/merged"), weights_of(tmp_path / "whole")
    assert one.keys() == other.keys() and all(torch.equal(t, other[n]) for n, t in one.items())
    assert load_cast(tmp_path / "whole/cast.yaml")["wukong"].name == "Sun Wukong"


def test_reshard_keeps_every_weight_and_the_record_of_the_merge(base: Path, adapter: Path, tmp_path: Path) -> None:
    record = merge(base, adapter, tmp_path / "out", probes=PROBES)
    found = reshard(tmp_path / "out", tmp_path / "small", SHARD)
    assert len(found["shards"]) > 2 and found["merged_before"] == record | {"files": found["merged_before"]["files"]}
    assert weights_of(tmp_path / "small").keys() == weights_of(base).keys()
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    with pytest.raises(InputError, match="cannot take the place"):
        reshard(tmp_path / "out", tmp_path / "out", SHARD)


# -- files of weights ----------------------------------------------------------------------------------------------


def test_index_that_disagrees_with_its_files_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", max_shard_size="30kB")
    index = base / "model.safetensors.index.json"
    places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    first, second = sorted(set(places.values()))[:2]
    moved = next(name for name, file in places.items() if file == first)
    change_json(index, weight_map=places | {"model.ghost.weight": first})
    extra = load_file(base / first)[moved]
    change_tensors(base / second, lambda t: t.update({moved: extra}))
    with pytest.raises(ManyFaults) as caught:
        shards.read_weights(base)
    assert f"{moved} is also in" in str(caught.value) and "model.ghost.weight is in the index" in str(caught.value)


def test_header_that_lies_about_lengths_is_refused(base: Path) -> None:
    path = base / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"shape":[258,32]', b'"shape":[259,32]'))
    with pytest.raises(InputError, match=r"do not fit BF16 \[259, 32\]"):
        shards.read_weights(base)


def test_written_files_are_those_that_safetensors_writes(tmp_path: Path) -> None:
    """Numbers of any kind survive a copy, and each starts where its kind may start."""
    tensors = {
        "a": torch.arange(3, dtype=torch.uint8),
        "b": torch.arange(5, dtype=torch.int64),
        "c": torch.tensor(2.5, dtype=FP16),
        "d": torch.zeros(0, 4),
        "é": torch.rand(3, 5).to(torch.float8_e4m3fn),
    }
    save_file(tensors, tmp_path / "in.safetensors")
    found = shards.read_header(tmp_path / "in.safetensors")
    shards.write_shards(tmp_path, shards.plan_shards(found.values(), 10**6), shards.raw_pieces)
    read = load_file(tmp_path / "model.safetensors")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[n].view(torch.uint8), t.view(torch.uint8)) for n, t in tensors.items() if t.dim())
    again = shards.read_header(tmp_path / "model.safetensors")
    assert all(t.start % shards.ITEM_BYTES.get(t.dtype, 1) == 0 for t in again.values())


# -- the real base -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_default_base_is_merged_within_the_tolerance(tmp_path: Path) -> None:
    try:
        base = find_base(DEFAULT_BASE)
    except SetupError as error:
        pytest.skip(f"{error.what}: `mrp pull {DEFAULT_BASE}`")
    adapter = make_adapter(tmp_path / "adapter", base, strength=0.02, r=16, lora_alpha=16)
    record = merge(base, adapter, tmp_path / "out", max_shard_size="100MB")
    assert len(record["shards"]) == 3
    assert all((tmp_path / "out" / name).stat().st_size <= 10**8 for name in record["shards"])
    assert record["tensors"] == {"changed": 210, "kept": 62}
    checked = record["verification"]
    assert checked["mean_kl"] < LARGEST_MEAN_KL[BF16] / 10 < LARGEST_MEAN_KL[BF16] < checked["adapter_mean_kl"]
    assert checked["same_first_choice"] > 0.95

    change_json(adapter / "adapter_config.json", lora_alpha=32)
    with pytest.raises(MrpError, match="the merged model is not base"):
        verify(base, adapter, tmp_path / "out")
