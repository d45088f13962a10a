"""Merging more than one plain adapter: weighted sums, DoRA, whole modules, grown vocabularies, tied heads, 4 bits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from heard import Heard
from safetensors.torch import load_file, save_file
from tiny_models import save_base

from mrp.errors import InputError, ManyFaults, MrpError, SetupError
from mrp.models import merge_check, merge_numbers, merge_probes, merge_shift, merge_stream, shards
from mrp.models.adapter_file import read_adapter
from mrp.models.merge import merge, merge_command, reshard
from mrp.models.merge_check import LARGEST_MEAN_KL, verify
from mrp.models.merge_plan import parse_adapter, plan_merge
from mrp.models.merge_probes import mean_kl
from mrp.models.shards import read_weights

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from merging import (  # noqa: E402  # they need peft
    BF16,
    FP32,
    PROBES,
    change_json,
    change_tensors,
    make_adapter,
    make_base,
    merged_by_peft,
    weights_of,
)

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """A tied and an untied base in bf16, which nobody changes."""
    folder = tmp_path_factory.mktemp("bases")
    return {tied: make_base(folder / f"tied-{tied}", BF16, tied) for tied in (True, False)}


def logits(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return torch.as_tensor(model(torch.tensor([ids])).logits[0])


def largest_kl(base: Path, adapters: list[tuple[Path, float]], merged: Path, rows: int | None = None) -> float:
    """The mean KL of the merged model from base + adapters, as PEFT and transformers load them by themselves."""
    both = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=FP32)
    if rows:
        both.resize_token_embeddings(rows, mean_resizing=False)
    both = peft.PeftModel.from_pretrained(both, str(adapters[0][0]), adapter_name="a0")
    for k, (folder, _) in enumerate(adapters[1:], 1):
        both.load_adapter(str(folder), adapter_name=f"a{k}")
    both.base_model.set_adapter([f"a{k}" for k in range(len(adapters))] if len(adapters) > 1 else "a0")
    for module in both.modules():
        for k, (_, weight) in enumerate(adapters):
            if weight != 1 and isinstance(module, peft.tuners.lora.LoraLayer):
                module.set_scale(f"a{k}", weight)
    alone = transformers.AutoModelForCausalLM.from_pretrained(merged, dtype=FP32)
    return max(mean_kl([logits(both, ids)], [logits(alone, ids)]) for ids in PROBES)


def assert_merged(base: Path, adapters: list[tuple[Path, float]], out: Path, rows: int | None = None) -> dict[str, Any]:
    """Merge, and hold the result against base + adapters (law 8); returns the record."""
    record = merge(base, adapters, out, probes=PROBES)
    assert largest_kl(base, adapters, out, rows) <= LARGEST_MEAN_KL[BF16] / 10
    assert record["verification"]["adapter_mean_kl"] > LARGEST_MEAN_KL[BF16]  # or the comparison would say nothing
    return record


# -- several -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three(bases: dict[bool, Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Adapters of other ranks, scales and layers."""
    folder = tmp_path_factory.mktemp("adapters")
    base = bases[True]
    return [
        make_adapter(folder / "cast", base),
        make_adapter(folder / "voice", base, r=2, lora_alpha=3, target_modules=["q_proj", "down_proj"]),
        make_adapter(folder / "stable", base, r=8, use_rslora=True, target_modules=["v_proj"]),
    ]


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (1.0, 0.5, -0.7), (0.25, 2.0, 1.0)])
def test_several_adapters_add_up_with_their_weights(
    bases: dict[bool, Path], three: list[Path], tmp_path: Path, weights: tuple[float, ...]
) -> None:
    adapters = list(zip(three, weights, strict=True))
    record = assert_merged(bases[True], adapters, tmp_path / "out")
    parts = [(merged_by_peft(bases[True], folder), weight) for folder, weight in adapters]
    for name, weight in weights_of(tmp_path / "out").items():
        before = weights_of(bases[True])[name].float()
        exact = before + sum(w * (part[name] - before) for part, w in parts)
        torch.testing.assert_close(weight.float(), exact, rtol=2**-7, atol=1e-6)
    assert [item["weight"] for item in record["inputs"]["adapter"]] == list(weights)


def test_several_are_rounded_once_and_not_one_after_the_other(
    bases: dict[bool, Path], three: list[Path], tmp_path: Path
) -> None:
    base, out = bases[True], tmp_path / "out"
    merge(base, [(three[0], 1.0), (three[1], 1.0)], out, probes=PROBES)
    name = "model.layers.0.self_attn.q_proj.weight"
    exact = weights_of(base)[name].double()
    for folder, scale in ((three[0], 2.0), (three[1], 1.5)):
        halves = load_file(folder / "adapter_model.safetensors")
        key = f"base_model.model.{name.removesuffix('.weight')}"
        exact += scale * halves[f"{key}.lora_B.weight"].double() @ halves[f"{key}.lora_A.weight"].double()
    assert ((weights_of(out)[name].double() - exact).abs() <= exact.abs() * 2**-8 * 1.0001 + 1e-9).all()


def test_check_finds_a_wrong_weight(bases: dict[bool, Path], three: list[Path], tmp_path: Path) -> None:
    merge(bases[True], [(three[0], 1.0), (three[1], 0.5)], tmp_path / "out", probes=PROBES)
    with pytest.raises(MrpError, match="not the base's weight with the adapter's part"):
        verify(bases[True], [(three[0], 1.0), (three[1], 0.6)], tmp_path / "out", PROBES)


def test_weights_that_mean_nothing_are_refused(bases: dict[bool, Path], three: list[Path], tmp_path: Path) -> None:
    pairs = [(three[0], 0.0), (three[1], float("nan")), (three[0], 1.0)]
    with pytest.raises(ManyFaults) as caught:
        merge(bases[True], pairs, tmp_path / "out")
    said = str(caught.value)
    assert "weight of cast is 0" in said and "weight of voice is nan" in said and "cast is given twice" in said


def test_adapter_and_weight_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a=2").mkdir()
    assert parse_adapter("run/adapter") == (Path("run/adapter"), 1.0)
    assert parse_adapter("run/adapter=-0.5") == (Path("run/adapter"), -0.5)
    assert parse_adapter(str(tmp_path / "a=2")) == (tmp_path / "a=2", 1.0)
    with pytest.raises(InputError, match="'much' is not a weight"):
        parse_adapter("adapter=much")


def test_command_takes_weights(bases: dict[bool, Path], three: list[Path], tmp_path: Path) -> None:
    heard = Heard()
    found = merge_command([str(bases[True]), str(three[0]), f"{three[1]}=0.5"], tmp_path / "out", None, heard)
    assert [item["weight"] for item in found["inputs"]["adapter"]] == [1.0, 0.5]
    assert any("rounding to BF16 moved weights by" in line for line in heard.lines)
    assert found["verification"]["greedy_replies"]["replies"] == 4


def test_model_or_adapter_alone_says_what_is_missing(
    bases: dict[bool, Path], three: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="this is an adapter, and its base model is not named"):
        merge_command([str(three[0])], None, None, Heard())
    with pytest.raises(InputError, match="this is a model's folder, and no adapter is named") as caught:
        merge_command([str(bases[True])], None, "1GB", Heard())
    assert "mrp merge" in caught.value.fix and "--out DIR" in caught.value.fix
    with pytest.raises(InputError, match="this is an adapter, not a model"):
        reshard(three[0], tmp_path / "x")


def test_rounding_is_measured(bases: dict[bool, Path], three: list[Path], tmp_path: Path) -> None:
    found = merge(bases[True], three[0], tmp_path / "out", probes=PROBES)["rounding"]
    exact = {n: t for n, t in merged_by_peft(bases[True], three[0]).items() if n != HEAD}
    before, after = weights_of(bases[True]), weights_of(tmp_path / "out")
    changed = [n for n in after if "_proj" in n]
    errors = torch.cat([(after[n].float() - exact[n]).abs().flatten() for n in changed])
    changes = torch.cat([(exact[n] - before[n].float()).abs().flatten() for n in changed])
    assert found["largest_difference"] == pytest.approx(float(errors.max()), rel=1e-2)
    assert found["mean_difference"] == pytest.approx(float(errors.mean()), rel=1e-3)
    assert found["largest_change"] == pytest.approx(float(changes.max()), rel=1e-3)
    assert found["mean_change"] == pytest.approx(float(changes.mean()), rel=1e-3)


# -- DoRA, modules_to_save, embedding and head ---------------------------------------------------------------------


def spread(adapter: Path, *parts: str) -> Path:
    """Change what PEFT would have trained: these keys get numbers other than those they start with."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        torch.manual_seed(11)
        for key in sorted(tensors):
            if any(part in key for part in parts):
                tensors[key] = tensors[key] * (1 + 0.2 * torch.randn(tensors[key].shape))

    change_tensors(adapter / "adapter_model.safetensors", change)
    return adapter


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_dora_is_merged(bases: dict[bool, Path], tmp_path: Path, tied: bool) -> None:
    adapter = spread(make_adapter(tmp_path / "dora", bases[tied], use_dora=True), "magnitude")
    assert_merged(bases[tied], [(adapter, 1.0)], tmp_path / "out")
    expected = merged_by_peft(bases[tied], adapter)
    for name, weight in weights_of(tmp_path / "out").items():
        torch.testing.assert_close(weight, expected[name].to(BF16), rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("saved", [["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens"], ["norm"]], ids=str)
def test_saved_modules_take_the_place_of_the_bases(
    bases: dict[bool, Path], tmp_path: Path, tied: bool, saved: list[str]
) -> None:
    options = {"modules_to_save": saved, "target_modules": ["q_proj"]}
    adapter = spread(make_adapter(tmp_path / "saver", bases[tied], 0.3, **options), *saved)
    record = assert_merged(bases[tied], [(adapter, 1.0)], tmp_path / "out")
    assert record["untied"] is (tied and saved != ["norm"])
    config = json.loads((tmp_path / "out/config.json").read_text(encoding="utf-8"))
    assert config["tie_word_embeddings"] is (tied and saved == ["norm"])
    assert (HEAD in weights_of(tmp_path / "out")) is (not tied or saved != ["norm"])
    assert len(record["replaced"]) == (5 if saved == ["norm"] else len(saved)) or saved == ["norm"]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head", "q_proj"]], ids=str)
def test_lora_on_embedding_or_head_unties_them(
    bases: dict[bool, Path], tmp_path: Path, tied: bool, targets: list[str]
) -> None:
    adapter = make_adapter(tmp_path / "lora", bases[tied], 0.3, target_modules=targets)
    with torch.no_grad():  # PEFT starts an embedding's A at zero
        change_tensors(
            adapter / "adapter_model.safetensors",
            lambda t: t.update({k: torch.randn_like(v) * 0.3 for k, v in t.items() if "lora_embedding" in k}),
        )
    record = assert_merged(bases[tied], [(adapter, 1.0)], tmp_path / "out")
    before, after = weights_of(bases[tied]), weights_of(tmp_path / "out")
    assert record["untied"] is tied
    assert torch.equal(after[EMBEDDING], before[EMBEDDING]) is ("embed_tokens" not in targets)
    assert torch.equal(after[HEAD], before.get(HEAD, before[EMBEDDING])) is ("lm_head" not in targets)


def grown(base: Path, folder: Path, rows: int, tokenizer: bool = True) -> Path:
    """An adapter whose model got more tokens, as PEFT saves it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=FP32)
    torch.manual_seed(5)
    model.resize_token_embeddings(rows, mean_resizing=False)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0, 0.5)
    adapted.save_pretrained(str(folder), save_embedding_layers=True)
    if tokenizer:
        words = transformers.AutoTokenizer.from_pretrained(base)
        words.add_tokens([f"<new-{k}>" for k in range(rows - 258)])
        words.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_grown_vocabulary_is_followed(bases: dict[bool, Path], tmp_path: Path, tied: bool) -> None:
    adapter = grown(bases[tied], tmp_path / "grown", 262)
    record = assert_merged(bases[tied], [(adapter, 1.0)], tmp_path / "out", rows=262)
    assert record["vocabulary"] == 262 and record["untied"] is False
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=FP32)
    assert tokenizer("<new-2>").input_ids == [260]
    assert torch.isfinite(logits(model, [5, 260])).all() and logits(model, [5]).shape[-1] == 262


def test_grown_vocabulary_without_its_words_is_refused(bases: dict[bool, Path], tmp_path: Path) -> None:
    adapter = grown(bases[True], tmp_path / "grown", 262, tokenizer=False)
    with pytest.raises(InputError, match="a vocabulary of 262 tokens, and no tokenizer"):
        merge(bases[True], adapter, tmp_path / "out", probes=PROBES)
    assert not (tmp_path / "out").exists()


def test_grown_embedding_without_its_head_is_refused(bases: dict[bool, Path], tmp_path: Path) -> None:
    adapter = grown(bases[False], tmp_path / "grown", 262)
    change_tensors(adapter / "adapter_model.safetensors", lambda t: t.pop("base_model.model.lm_head.weight"))
    with pytest.raises(InputError, match="embedding and head of different length"):
        merge(bases[False], adapter, tmp_path / "out", probes=PROBES)


def test_adapters_that_are_no_sum_are_not_weighted(bases: dict[bool, Path], three: list[Path], tmp_path: Path) -> None:
    dora = make_adapter(tmp_path / "dora", bases[True], use_dora=True)
    saver = make_adapter(tmp_path / "saver", bases[True], modules_to_save=["norm"])
    with pytest.raises(InputError, match="dora has DoRA's lengths of rows, which have no weighted sum"):
        merge(bases[True], [(dora, 0.5)], tmp_path / "out")
    with pytest.raises(InputError, match="saver has weights of its own in place of the base's"):
        merge(bases[True], [(three[0], 1.0), (saver, 1.0)], tmp_path / "out")


def test_gguf_takes_plain_lora_alone(bases: dict[bool, Path], tmp_path: Path) -> None:
    weights = read_weights(bases[True])
    for options, reason in (
        ({"use_dora": True}, "magnitude of DoRA"),
        ({"modules_to_save": ["norm"]}, "model.norm.weight replaces the base's"),
        ({"target_modules": ["embed_tokens"]}, "LoRA on an embedding"),
    ):
        adapter = make_adapter(tmp_path / next(iter(options)), bases[True], **options)
        with pytest.raises(InputError, match=reason):
            read_adapter(adapter, bases[True], weights)


def test_nan_in_a_saved_module_is_refused(bases: dict[bool, Path], tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "saver", bases[True], modules_to_save=["lm_head"])

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["base_model.model.lm_head.weight"][3, 3] = float("nan")

    change_tensors(adapter / "adapter_model.safetensors", spoil)
    with pytest.raises(InputError, match=r"lm_head\.weight holds NaN"):
        merge(bases[True], adapter, tmp_path / "out", probes=PROBES)


# -- large models --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "several", "dora", "head", "tied head", "saved"])
def test_streamed_passes_say_what_peft_says(
    bases: dict[bool, Path], three: list[Path], tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = bases[kind != "head"]
    options: dict[str, Any] = {
        "dora": {"use_dora": True},
        "head": {"target_modules": ["lm_head", "q_proj"]},
        "tied head": {"target_modules": ["lm_head", "embed_tokens", "q_proj"]},
        "saved": {"modules_to_save": ["norm"], "target_modules": ["v_proj"]},
    }.get(kind, {})
    adapters = [(three[0], 1.0), (three[1], -0.5)] if kind == "several" else [(three[0], 1.0)]
    if options:
        adapters = [(spread(make_adapter(tmp_path / "a", base, **options), "magnitude", "norm"), 1.0)]
    plan = plan_merge(base, read_weights(base), adapters)
    assert merge_stream.can_stream(base, plan)
    found, without = merge_stream.streamed_logits(base, plan, PROBES)
    model = merge_probes.load_with_adapters(base, FP32, adapters)
    for one, other in zip(found, merge_probes.logits_of(model, PROBES), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    if kind != "saved":
        with model.disable_adapter():
            plain = merge_probes.logits_of(model, PROBES)
        for one, other in zip(without, plain, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)

    monkeypatch.setattr(merge_check, "LARGE_BYTES", 0)
    record = merge(base, adapters, tmp_path / "out", probes=PROBES)
    assert record["verification"]["compared"].startswith("a row of every block of every changed weight")
    assert record["verification"]["mean_kl"] < LARGEST_MEAN_KL[BF16]


@pytest.mark.parametrize("fault", ["layer", "bystander", "scale"])
def test_sampled_check_finds_faults(
    bases: dict[bool, Path], three: list[Path], tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, out = bases[True], tmp_path / "out"
    merge(base, three[0], out, probes=PROBES)
    monkeypatch.setattr(merge_check, "LARGE_BYTES", 0)
    before = weights_of(base)
    name = {"layer": "model.layers.1.mlp.up_proj.weight", "bystander": "model.norm.weight"}.get(fault)
    adapter = three[0]
    if name:
        new = before[name] if fault == "layer" else before[name] * 1.5
        change_tensors(out / "model.safetensors", lambda t: t.update({name: new}))
    else:
        adapter = Path(shutil.copytree(adapter, tmp_path / "wrong"))
        change_json(adapter / "adapter_config.json", lora_alpha=16)
    with pytest.raises(MrpError, match="the merged model is not base"):
        verify(base, adapter, out, PROBES)


# -- trained beside four bits --------------------------------------------------------------------------------------


def quantised_run(three: list[Path], folder: Path) -> Path:
    """An adapter with the record of a run in 4 bits beside it."""
    shutil.copytree(three[0], folder / "adapter")
    (folder / "run.json").write_text(json.dumps({"options": {"train": {"bits": 4}}}), encoding="utf-8")
    return folder / "adapter"


def test_shift_of_an_adapter_trained_in_four_bits_is_measured(
    bases: dict[bool, Path], three: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = quantised_run(three, tmp_path / "run")
    load = merge_probes.load_model

    def coarse(folder: Path, on: Any, bits: int = 16) -> Any:
        model = load(folder, on)
        if bits == 4:  # what bitsandbytes would do, more coarsely
            for name, parameter in model.named_parameters():
                if "_proj" in name:
                    step = parameter.abs().max() / 8
                    parameter.data = (parameter / step).round() * step
        return model

    monkeypatch.setattr(merge_probes, "load_model", coarse)
    heard = Heard()
    record = merge(bases[True], adapter, tmp_path / "out", probes=PROBES, report=heard)
    shift = record["trained_quantised"]["shift"]
    assert record["trained_quantised"]["bits"] == 4
    assert shift["mean_kl"] > 100 * record["verification"]["mean_kl"] and shift["positions"] == 10
    assert any("trained beside a base in 4 bits" in line for line in heard.lines)


def test_shift_is_measured_with_bitsandbytes_itself(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="only on a machine with bitsandbytes")
    base = save_base(tmp_path / "base", hidden_size=128, intermediate_size=256)  # its CPU kernels need wide rows
    adapter = quantised_run([make_adapter(tmp_path / "lora", base)], tmp_path / "run")
    found = merge(base, adapter, tmp_path / "out", probes=PROBES)
    assert found["verification"]["mean_kl"] < 1e-5 < found["trained_quantised"]["shift"]["mean_kl"]


@pytest.mark.parametrize("error", [SetupError("bitsandbytes is missing", "", "pip install"), RuntimeError("no kernel")])
def test_shift_that_cannot_be_measured_is_said(
    bases: dict[bool, Path], three: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    adapter = quantised_run(three, tmp_path / "run")

    def missing(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(merge_shift, "load_with_adapters", missing)
    heard = Heard()
    record = merge(bases[True], adapter, tmp_path / "out", probes=PROBES, report=heard)
    assert record["trained_quantised"]["shift"] is None
    assert "bitsandbytes" in record["trained_quantised"]["reason"]
    assert "the shift was not measured" in heard.warnings[0]
    assert merge(bases[True], three[0], tmp_path / "other", probes=PROBES)["trained_quantised"] is None


# -- other shards --------------------------------------------------------------------------------------------------


def test_reshard_copies_a_sharded_model_bit_for_bit(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", FP32, tied=False, max_shard_size="40kB")
    save_file({"x": torch.ones(1)}, tmp_path / "base/left-over.safetensors")  # which the index does not name
    found = reshard(base, tmp_path / "out", "70kB")
    assert len(found["shards"]) > 1
    one, other = read_weights(base), weights_of(tmp_path / "out")
    assert (
        one.keys()
        == other.keys()
        == json.loads((tmp_path / "out/model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"].keys()
    )
    for name, tensor in weights_of(base).items():
        if name != "x":
            assert torch.equal(tensor, other[name]) and tensor.dtype == other[name].dtype


def test_reshard_refuses_a_missing_or_cut_shard(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", max_shard_size="30kB")
    first, second = sorted(base.glob("model-*.safetensors"))[:2]
    first.write_bytes(first.read_bytes()[:-50])
    second.unlink()
    with pytest.raises(ManyFaults) as caught:
        reshard(base, tmp_path / "out")
    assert "cut off" in str(caught.value) and second.name in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_rounding_of_large_weights_is_measured_on_a_sample_and_the_bytes_stay(
    bases: dict[bool, Path], three: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = merge(bases[True], three[0], tmp_path / "whole", probes=PROBES)["rounding"]
    assert whole["measured_share"] == 1
    monkeypatch.setattr(merge_numbers, "MEASURED_WHOLE", 0)
    monkeypatch.setattr(merge_numbers, "SAMPLE_STEP", 2)
    found = merge(bases[True], three[0], tmp_path / "sampled", probes=PROBES)["rounding"]
    assert found["measured_share"] == pytest.approx(0.5)
    for name in ("lost", "change_norm", "mean_difference", "mean_change"):
        assert found[name] == pytest.approx(whole[name], rel=0.1) and found[name] != whole[name]
    assert found["largest_difference"] <= whole["largest_difference"]
    one, other = weights_of(tmp_path / "whole"), weights_of(tmp_path / "sampled")
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_many_blocks_side_by_side_are_written_in_their_order(
    bases: dict[bool, Path], three: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge(bases[True], three[0], tmp_path / "one", probes=PROBES)
    monkeypatch.setattr(shards, "PIECE_BYTES", 4 * 32 * 3)  # three rows of 32 numbers
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        merge(bases[True], three[0], tmp_path / "many", probes=PROBES)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    one, other = weights_of(tmp_path / "one"), weights_of(tmp_path / "many")
    for name, tensor in one.items():  # a product of other shape may sum in another order: at most one rounding apart
        torch.testing.assert_close(tensor.float(), other[name].float(), atol=1e-6, rtol=2**-7)
