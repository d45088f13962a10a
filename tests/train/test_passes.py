"""Ways to train: which one runs and why, what a machine cannot do, full fine-tuning, recomputed blocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
import torch
from tiny_models import save_base
from tiny_runs import Heard, measured, read_log, read_record, result, stop_at

from mrp.config import Run, TrainOptions, load_run
from mrp.errors import InputError, ManyFaults, Stopped
from mrp.models.load import Hardware, load_model
from mrp.models.merge import is_merged, merge_run
from mrp.train import passes
from mrp.train.fast import fit
from mrp.train.loop import train
from mrp.train.lora import adapter_parameters, add_adapter
from mrp.train.passes import FastPasses, check_machine, choose_passes, make_optimizer, pass_seed, too_little_memory

MakeRun = Callable[..., Run]
CPU = Hardware("cpu", torch.float32, None)
GPU = Hardware("cuda", torch.bfloat16, torch.bfloat16)
OLD_GPU = Hardware("cuda", torch.float32, None)


def options(**given: Any) -> TrainOptions:
    return TrainOptions(**given)


# -- options that do not go together -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"method": "full", "bits": 4}, "4-bit weights"),
        ({"method": "full", "kernels": "fast"}, "LoRA only"),
        ({"offload": True}, "checkpointing"),
        ({"offload": True, "checkpointing": True, "kernels": "plain"}, "fast kernels"),
        ({"bits": 8}, "train.bits"),
        ({"optimizer": "sgd"}, "train.optimizer"),
    ],
    ids=str,
)
def test_options_that_exclude_each_other_are_refused_with_what_to_change(
    given: dict[str, Any], what: str, make_run: MakeRun
) -> None:
    run = make_run(own=1, shared=0)
    with pytest.raises(InputError, match=what) as caught:
        load_run(run.path, {f"train.{key}": str(value).lower() for key, value in given.items()})
    assert caught.value.fix


# -- what this machine cannot do -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "on", "where"),
    [
        ({"bits": 4}, CPU, "train.bits"),
        ({"optimizer": "adamw-8bit"}, CPU, "train.optimizer"),
        ({"adapter_bits": 16}, CPU, "train.adapter_bits"),
        ({"bits": 4}, OLD_GPU, "train.bits"),
    ],
    ids=str,
)
def test_what_the_machine_lacks_is_said_with_what_to_change(given: dict[str, Any], on: Hardware, where: str) -> None:
    with pytest.raises(InputError) as caught:
        check_machine(options(**given), on)
    assert caught.value.where == where
    assert "set train." in caught.value.fix


def test_all_that_the_machine_lacks_is_said_at_once() -> None:
    with pytest.raises(ManyFaults) as caught:
        check_machine(options(bits=4, optimizer="adamw-8bit"), CPU)
    assert len(caught.value.faults) == 2
    check_machine(options(bits=4, optimizer="adamw-8bit", adapter_bits=16), GPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="only on a machine without a GPU")
def test_a_4_bit_run_stops_before_anything_is_loaded(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mrp.train.loop.load_model", lambda *_: pytest.fail("loaded"))
    with pytest.raises(InputError, match="needs a CUDA GPU"):
        train(make_run(bits=4))


def test_too_little_memory_names_what_is_left_to_cut() -> None:
    assert "train.checkpointing: true" in too_little_memory(options(bits=4)).fix
    nothing_left = options(bits=4, checkpointing=True, offload=True, optimizer="adamw-8bit", adapter_bits=16)
    assert "max_tokens" in too_little_memory(nothing_left).fix


def test_memory_that_runs_out_in_a_step_is_an_input_error(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(passes, "token_losses", full)
    with pytest.raises(InputError, match="does not suffice") as caught:
        train(make_run())
    assert "train.checkpointing" in caught.value.fix


# -- which way runs, and why ---------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="only on a machine without a GPU")
def test_the_record_says_which_way_ran_and_why(uninterrupted: MakeRun) -> None:
    record = read_record(uninterrupted())
    assert (record["kernels"], record["why"]) == ("plain", "there is no CUDA GPU")


@pytest.mark.skipif(torch.cuda.is_available(), reason="only on a machine without a GPU")
@pytest.mark.parametrize("given", [{"kernels": "fast"}, {"checkpointing": True, "offload": True}], ids=str)
def test_a_run_that_insists_on_fast_kernels_is_refused_without_a_gpu(given: dict[str, Any], make_run: MakeRun) -> None:
    with pytest.raises(InputError, match="there is no CUDA GPU") as caught:
        train(make_run(**given))
    assert caught.value.where in ("train.kernels", "train.offload")


@pytest.fixture(scope="module")
def flash_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base with heads of a size that flash attention takes."""
    return save_base(tmp_path_factory.mktemp("flash-base"), head_dim=16)


def lora(base: Path, **given: Any) -> Any:
    return add_adapter(load_model(base, CPU), options(rank=4, **given), 0)


def test_reasons_against_the_fast_path(flash_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = lora(flash_base)
    assert fit.model_lacks(model, options()) == ""
    assert "LoRA only" in fit.model_lacks(model, options(method="full"))
    config = model.get_base_model().config
    changes = {
        "model_type": ("gemma3", "not gemma3"),
        "hidden_act": ("gelu", "activation 'gelu'"),
        "head_dim": (20, "heads of 20 numbers"),
        "attention_dropout": (0.1, "dropout in attention"),
        "sliding_window": (64, "sliding window"),
        "rope_parameters": ({"rope_type": "dynamic"}, "rotary positions of the kind 'dynamic'"),
    }
    for name, (value, reason) in changes.items():
        with monkeypatch.context() as patch:
            patch.setattr(config, name, value, raising=False)
            assert reason in fit.model_lacks(model, options()), name
    assert fit.machine_lacks("cpu") == "there is no CUDA GPU"


def test_a_block_without_lora_is_a_reason(flash_base: Path) -> None:
    model = lora(flash_base)
    attention = model.get_base_model().model.layers[1].self_attn
    attention.k_proj = attention.k_proj.base_layer
    assert fit.model_lacks(model, options()) == "self_attn.k_proj carries no plain LoRA"


def test_a_fast_path_that_fails_here_gives_way_and_says_so(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no kernel image\nmore")

    monkeypatch.setattr(passes, "FastPasses", broken)
    monkeypatch.setattr(fit, "why_not", lambda *_: "")
    model = lora(tiny_base)
    report = Heard()
    weights = adapter_parameters(model)
    found = choose_passes(model, weights, options(), GPU, None, 1, report)  # type: ignore[arg-type]
    assert (found.name, found.why) == ("plain", "they failed here: no kernel image")
    assert report.warnings == ["training: plain kernels, since they failed here: no kernel image"]
    with pytest.raises(InputError, match="no kernel image"):
        choose_passes(model, weights, options(kernels="fast"), GPU, None, 1, report)  # type: ignore[arg-type]


def test_a_base_without_linear_layers_is_refused(tiny_base: Path) -> None:
    with pytest.raises(InputError, match="LoRA finds no layers") as caught:
        add_adapter(Bare(load_model(tiny_base, CPU)), options(), 0)
    assert caught.value.fix


class Bare(torch.nn.Module):
    """A model with nothing that LoRA could go beside."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.config = model.config
        self.embed_tokens = model.get_input_embeddings()

    def prepare_inputs_for_generation(self, *_: Any, **__: Any) -> None: ...


# -- the loop with the fast path's passes, on the CPU --------------------------------------------------------------


@pytest.fixture
def fast_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every machine and every number format will do."""
    if torch.cuda.is_available():
        pytest.skip("only on a machine without a GPU: flash attention wants bf16")

    def chosen(model: Any, _: Any, options: TrainOptions, __: Any, plan: Any, world: int, ___: Any) -> Any:
        return FastPasses(model, options, plan, world)

    monkeypatch.setattr("mrp.train.loop.choose_passes", chosen)


@pytest.mark.usefixtures("fast_on_cpu")
@pytest.mark.parametrize(
    "given", [{}, {"checkpointing": True, "micro_batch": 2, "accumulation": 2}, {"contrast": 0.5}], ids=str
)
def test_a_fast_training_is_the_plain_one_within_rounding(
    given: dict[str, Any], make_run: MakeRun, uninterrupted: MakeRun
) -> None:
    run = make_run(**given)
    record = train(run)
    plain = uninterrupted(**given)
    assert record["kernels"] == "fast"
    for found, expected in zip(measured(run), measured(plain), strict=True):
        assert found == pytest.approx(expected, rel=2e-3)
    if "contrast" in given:
        terms = [[row["contrast"] for row in read_log(each)] for each in (run, plain)]
        assert terms[0] == pytest.approx(terms[1], rel=1e-2)
    expected_record = read_record(plain)
    assert record["order"] == expected_record["order"]
    for who, loss in record["measures"]["held_out_loss"].items():
        assert loss == pytest.approx(expected_record["measures"]["held_out_loss"][who], rel=1e-3)


@pytest.mark.usefixtures("fast_on_cpu")
@pytest.mark.parametrize("contrast", [0, 0.5])
def test_a_fast_training_that_was_stopped_goes_on_to_the_same_end(contrast: float, make_run: MakeRun) -> None:
    whole, stopped = (make_run(name, dropout=0.2, contrast=contrast) for name in ("whole", "stopped"))
    train(whole)
    with pytest.raises(Stopped):
        train(stopped, report=stop_at(3))
    train(stopped, resume=True)
    assert result(stopped) == result(whole)


def test_seeds_of_passes_differ_and_hang_on_nothing_but_the_place() -> None:
    places = [(seed, step, rank, row) for seed in (0, 1) for step in range(5) for rank in range(2) for row in range(4)]
    assert len({pass_seed(*place) for place in places}) == len(places)
    assert pass_seed(0, 3, 0, 1) == pass_seed(0, 3, 0, 1) < 2**32


# -- checkpointing, full fine-tuning, 4 bit ------------------------------------------------------------------------


def test_recomputed_blocks_give_the_same_training(make_run: MakeRun, uninterrupted: MakeRun) -> None:
    run = make_run(checkpointing=True)
    train(run)
    for found, expected in zip(measured(run), measured(uninterrupted()), strict=True):
        assert found == pytest.approx(expected, rel=1e-4)


def test_full_fine_tuning_leaves_a_merged_model_and_no_adapter(make_run: MakeRun) -> None:
    run = make_run(method="full", learning_rate=1e-3)
    record = train(run)
    assert not run.adapter.exists()
    assert train(run) == record
    held = record["measures"]["held_out_loss"]
    assert all(loss["after"] < loss["before"] for loss in held.values())
    assert not is_merged(run)
    merge_run(run)
    assert is_merged(run)
    base, tuned = (load_model(folder, CPU).state_dict() for folder in (Path(run.config.base), run.merged))
    assert base.keys() == tuned.keys()
    assert sum(not torch.equal(base[name], tuned[name]) for name in base) > len(base) / 2


def test_a_base_in_4_bit_learns_and_keeps_its_head(flash_base: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="only on a machine with bitsandbytes")
    model = load_model(flash_base, CPU, bits=4)
    layer = model.model.layers[0]
    assert layer.mlp.down_proj.weight.quant_state.nested
    assert model.lm_head.weight.dtype == torch.float32
    wrapped = add_adapter(model, options(rank=4), 0)
    assert fit.model_lacks(wrapped, options()) == ""


def test_the_adapter_is_kept_in_the_numbers_asked_for(tiny_base: Path) -> None:
    for bits, dtype in ((32, torch.float32), (16, torch.bfloat16)):
        weights = adapter_parameters(lora(tiny_base, adapter_bits=bits))
        assert {p.dtype for p in weights.values()} == {dtype}
        assert isinstance(make_optimizer(weights.values(), options()), torch.optim.AdamW)
