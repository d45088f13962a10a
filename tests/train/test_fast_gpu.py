"""The fast path on a GPU: kernels, attention, whole passes and the CUDA graph, against plain torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
import torch
from test_fast_contrast import by_autograd, fast_passes, learnt
from test_fast_engine import ROWS, lora_model, reference, sample, shape_for
from test_fast_voices import ALL, NAKED, PLAN, SOME, plain_with_twins, row, step, voiced, with_twins_of
from test_fast_voices import learnt as learnt_voices
from test_voices import VOICES, result_with_voices
from tiny_models import save_base
from tiny_runs import measured, read_log, read_record, result, stop_at, write_run

from mrp.config import TrainOptions
from mrp.errors import Stopped
from mrp.models.loss import make_batch
from mrp.train.fast import pointwise as plain
from mrp.train.fast.attention import _masked, attend
from mrp.train.fast.block import attention_grads
from mrp.train.fast.engine import Engine
from mrp.train.fast.pointwise import Dropout
from mrp.train.fast.rows import flatten
from mrp.train.fast_voices import FastVoicePasses
from mrp.train.loop import train
from mrp.train.lora import adapter_parameters
from mrp.train.stages import VoicePasses
from mrp.train.steps import Plan

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")]
BIG = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "initializer_range": 0.05}


def made(*size: int, seed: int = 0, dtype: Any = None) -> Any:
    values = torch.randn(*size, generator=torch.Generator().manual_seed(seed))
    return values.cuda().to(dtype or torch.bfloat16)


def error(found: Any, expected: Any) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-30))


@pytest.mark.parametrize("share", [None, 0.1])
def test_kernels_in_bf16_are_rounded_once(share: float | None) -> None:
    from mrp.train.fast import kernels

    drop = Dropout(torch.tensor([9], device="cuda"), 5, share, 1.3) if share else None
    x, delta, grad, lora = (made(70, 2048, seed=seed) for seed in range(4))
    weight = made(2048, seed=5)
    lora = lora if share else None
    for found, expected in zip(
        kernels.norm(x, delta, weight, 1e-5, drop), plain.norm(x, delta, weight, 1e-5, drop), strict=True
    ):
        assert error(found, expected) < 3e-3
    given = grad, lora, x, weight, 1e-5, delta, drop
    assert error(kernels.norm_backward(*given), plain.norm_backward(*given)) < 3e-3
    both = made(70, 8192, seed=7)
    dact, dlora = made(70, 4096, seed=8), made(70, 4096, seed=9) if share else None
    for found, expected in zip(kernels.swiglu(both, drop), plain.swiglu(both, drop), strict=True):
        assert error(found, expected) < 3e-3
    mine, other = both.clone(), both.clone()
    found = kernels.swiglu_backward(mine, dact, dlora, drop)
    assert error(found, plain.swiglu_backward(other, dact, dlora, drop)) < 3e-3
    assert error(mine, other) < 3e-3
    logits, target = made(40, 92544, seed=3) * 3, torch.arange(40, device="cuda") * 2000
    target[::7] = -100
    mine, other, scale = logits.clone(), logits.clone(), torch.rand(40, device="cuda")
    assert error(kernels.cross_entropy(mine, target, scale), plain.cross_entropy(other, target, scale)) < 1e-5
    assert error(mine, other) < 3e-3


def test_4_bit_weights_become_what_bitsandbytes_makes_of_them() -> None:
    bnb = pytest.importorskip("bitsandbytes.functional", reason="only on a machine with bitsandbytes")
    from mrp.train.fast.linear import dense_4bit

    weight = made(1024, 512) * 0.02
    packed, state = bnb.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    out = torch.empty(1024, 512, device="cuda", dtype=torch.bfloat16)
    dense_4bit(packed.view(-1), state, out)
    assert error(out, bnb.dequantize_4bit(packed, state)) < 3e-3


@pytest.mark.parametrize("size", [64, 128])
def test_flash_attention_within_documents(size: int) -> None:
    heads = made(256, 16, size)
    ends = torch.tensor([0, 60, 61, 200, 256, 256, 256], dtype=torch.int32, device="cuda")
    grad = made(256, 8, size, seed=1)
    *inputs, out = attend(heads, 8, 4, ends, 139, size**-0.5, keep_graph=True)
    found = attention_grads(out, inputs, grad)
    wide = [part.detach().double().requires_grad_() for part in inputs]
    expected = _masked(*wide, ends, size**-0.5)
    assert error(out.detach(), expected.detach()) < 5e-3
    for a, b in zip(found, torch.autograd.grad(expected, wide, grad.double()), strict=True):
        assert error(a, b) < 8e-3
    *inputs, out = attend(heads, 8, 4, ends, 139, size**-0.5, keep_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(found, attention_grads(out, inputs, grad), strict=True))


@pytest.mark.parametrize("how", [{}, {"checkpointing": True}, {"checkpointing": True, "offload": True}], ids=str)
def test_a_captured_pass_is_the_plain_one_within_bf16(how: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mrp.train.fast.engine.TILE", 48)
    rows = [[sample(40, 1), sample(25, 2), sample(60, 3)], [sample(100, 4), sample(28, 5)]]
    expected_losses, expected = reference(lora_model(**BIG), rows, 100)
    model = in_bf16(lora_model(**BIG))
    engine = Engine(model, shape_for(rows), **how)
    engine.prepare()
    batch = make_batch(rows)
    found = []
    for _ in range(2):
        engine.begin_step()
        losses = engine.learn(flatten(batch, engine.shape, 1 / 100, 5))[: len(batch.target)]
        found.append((losses, engine.adapter.grads.clone()))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert error(found[0][0].cpu(), expected_losses) < 0.02
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert error(parameter.grad.cpu(), expected[name]) < 0.06, name


def in_bf16(model: Any) -> Any:
    """On the GPU, with the adapter in fp32."""
    model.to("cuda", torch.bfloat16)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    return model


@pytest.mark.parametrize("how", [{}, {"checkpointing": True}, {"checkpointing": True, "offload": True}], ids=str)
def test_a_captured_second_loss_is_the_plain_one_within_bf16(how: dict[str, bool]) -> None:
    expected_losses, expected = by_autograd(lora_model(**BIG), together=2)
    model = in_bf16(lora_model(**BIG))
    passes, weights = fast_passes(model, 2, **how), adapter_parameters(model)
    found, grads = learnt(passes, weights, together=2)
    again, same = learnt(passes, weights, together=2)
    for mine, other, repeated in zip(found, expected_losses, again, strict=True):
        assert error(mine.values.cpu(), other.values) < 0.02
        assert mine.contrast is not None and other.contrast is not None and repeated.contrast is not None
        torch.testing.assert_close(mine.contrast.cpu().double(), other.contrast.double(), rtol=0.1, atol=0.1)
        assert torch.equal(mine.values, repeated.values) and torch.equal(mine.contrast, repeated.contrast)
    for name, grad in expected.items():
        assert torch.equal(grads[name], same[name]), name
        assert error(grads[name].cpu(), grad) < 0.1, name


@pytest.mark.parametrize("of", [ALL, SOME], ids=["all speak", "one waits"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_captured_voices_are_the_plain_ones_within_bf16(checkpointing: bool, of: Any) -> None:
    model = lora_model(**BIG)
    bank = voiced(model, 0.03)
    expected_losses, expected = learnt_voices(
        VoicePasses(model, bank, NAKED, "", TrainOptions(checkpointing=False)), bank, of
    )
    model = in_bf16(lora_model(**BIG))
    bank = voiced(model, 0.03)
    for weight in bank.parameters().values():
        weight.data = weight.data.float().cuda()
    passes = FastVoicePasses(model, bank, TrainOptions(checkpointing=checkpointing), PLAN, 1)
    found, grads = learnt_voices(passes, bank, of)
    again, same = learnt_voices(passes, bank, of)
    assert torch.equal(found.values, again.values)
    assert error(found.values.cpu(), expected_losses.values) < 0.02
    for name, grad in expected.items():
        assert torch.equal(grads[name], same[name]), name
        if grad is None:
            assert float(grads[name].abs().max()) == 0, name
        else:
            assert error(grads[name].cpu(), grad) < 0.15, name


def test_captured_voices_with_twins_are_the_plain_ones_within_bf16() -> None:
    of = step(with_twins_of(row("tang", 9, 14, 8), "wukong", 6), row("bajie", 5, 7))
    model = lora_model(**BIG)
    bank = voiced(model, 0.03)
    losses, terms, expected = plain_with_twins(model, bank, of, 0.7)
    model = in_bf16(lora_model(**BIG))
    bank = voiced(model, 0.03)
    for weight in bank.parameters().values():
        weight.data = weight.data.float().cuda()
    passes = FastVoicePasses(model, bank, TrainOptions(), Plan([of], [], [], [], [], [], 0), 1, contrast=0.7)
    found, grads = learnt_voices(passes, bank, of)
    again, same = learnt_voices(passes, bank, of)
    assert found.contrast is not None and again.contrast is not None
    assert torch.equal(found.values, again.values) and torch.equal(found.contrast, again.contrast)
    assert error(found.values.cpu(), losses) < 0.02
    torch.testing.assert_close(found.contrast.cpu().double(), terms.double(), rtol=0.1, atol=0.1)
    for name, grad in expected.items():
        assert torch.equal(grads[name], same[name]), name
        assert error(grads[name].cpu(), grad) < 0.15, name


def test_packed_equals_unpacked_on_the_gpu() -> None:
    model = lora_model(**BIG).to("cuda", torch.bfloat16)
    alone = [[s] for row in ROWS for s in row]
    losses = []
    for rows in (ROWS, alone):
        engine = Engine(model, shape_for(rows, rows=4))
        engine.begin_step()
        batch = make_batch(rows)
        found = engine.learn(flatten(batch, engine.shape, 1 / 40, 5))[: len(batch.target)]
        losses.append((found, engine.adapter.grads.clone()))
    assert error(losses[0][0], losses[1][0]) < 5e-3
    assert error(losses[0][1], losses[1][1]) < 2e-2


def test_dropout_in_a_graph_follows_the_seed_of_each_pass() -> None:
    model = lora_model(0.3, **BIG).to("cuda", torch.bfloat16)
    engine = Engine(model, shape_for(ROWS), checkpointing=True)
    engine.prepare()
    found = []
    for seed in (5, 6, 5):
        engine.begin_step()
        engine.learn(flatten(make_batch(ROWS), engine.shape, 1 / 40, seed))
        found.append(engine.adapter.grads.clone())
    assert torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])


@pytest.fixture(scope="module")
def big_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("big-base"), initializer_range=0.05, **{k: BIG[k] for k in list(BIG)[:3]})


@pytest.mark.parametrize("bits", [16, 4])
def test_a_fast_training_is_the_plain_one_within_bf16(bits: int, big_base: Path, tmp_path: Path) -> None:
    runs = {}
    for kernels in ("fast", "plain"):
        options = {"kernels": kernels, "bits": bits, "precision": "auto", "rank": 16, "learning_rate": 1e-3}
        runs[kernels] = write_run(tmp_path / kernels, big_base, **options)
        assert train(runs[kernels])["kernels"] == kernels
    for found, expected in zip(measured(runs["fast"]), measured(runs["plain"]), strict=True):
        assert found == pytest.approx(expected, rel=0.03)
    fast, plain_one = (read_record(runs[name]) for name in ("fast", "plain"))
    assert fast["order"] == plain_one["order"]
    assert fast["gpu_memory_mib"]["in_all"] > fast["gpu_memory_mib"]["reserved"]
    for who, loss in fast["measures"]["held_out_loss"].items():
        assert loss == pytest.approx(plain_one["measures"]["held_out_loss"][who], rel=0.01)


def test_a_fast_training_with_a_contrast_is_the_plain_one_within_bf16(big_base: Path, tmp_path: Path) -> None:
    logs = []
    for kernels in ("fast", "plain"):
        options: dict[str, Any] = {"precision": "auto", "rank": 16, "learning_rate": 1e-3, "contrast": 0.5}
        run = write_run(tmp_path / kernels, big_base, kernels=kernels, **options)
        assert train(run)["kernels"] == kernels
        logs.append(read_log(run))
    for fast, plain_one in zip(*logs, strict=True):
        assert fast["against"] == plain_one["against"]
        assert fast["loss"] == pytest.approx(plain_one["loss"], rel=0.03)
        assert fast["contrast"] == pytest.approx(plain_one["contrast"], abs=0.1)


@pytest.mark.parametrize(
    "options",
    [
        {"dropout": 0.1},
        {"dropout": 0.1, "contrast": 0.5, "checkpointing": True},
        {"bits": 4, "optimizer": "adamw-8bit", "adapter_bits": 16, "checkpointing": True, "offload": True},
    ],
    ids=str,
)
def test_a_fast_training_that_was_stopped_ends_as_the_uninterrupted_one(
    options: dict[str, Any], big_base: Path, tmp_path: Path
) -> None:
    given = {"kernels": "fast", "precision": "auto", "rank": 16, "accumulation": 2} | options
    whole, stopped = (write_run(tmp_path / name, big_base, **given) for name in ("whole", "stopped"))
    train(whole)
    with pytest.raises(Stopped):
        train(stopped, report=stop_at(3))
    train(stopped, resume=True)
    assert result(stopped) == result(whole)


@pytest.mark.parametrize("bits", [16, 4])
def test_voices_trained_fast_are_those_trained_plainly_within_bf16(bits: int, big_base: Path, tmp_path: Path) -> None:
    records = []
    for kernels in ("fast", "plain"):
        options = VOICES | {"kernels": kernels, "bits": bits, "precision": "auto", "voice_rows": 2, "dev": 0}
        options |= {"rank": 16, "learning_rate": 1e-3, "voice_learning_rate": 1e-3}
        records.append(train(write_run(tmp_path / kernels, big_base, **options)))
        assert records[-1]["voice_kernels"] == kernels
    fast, plain_one = (record["measures"]["held_out_loss"] for record in records)
    for who, losses in fast.items():
        assert losses["after"] != losses["adapter"]
        assert losses["after"] == pytest.approx(plain_one[who]["after"], rel=0.02)


def test_fast_voices_that_were_stopped_end_as_the_uninterrupted_ones(big_base: Path, tmp_path: Path) -> None:
    given = VOICES | {"kernels": "fast", "precision": "auto", "rank": 16, "dropout": 0.1, "voice_rows": 2}
    whole, stopped = (write_run(tmp_path / name, big_base, **given) for name in ("whole", "stopped"))
    train(whole)
    done = 0
    adapter = [row.get("voices") for row in read_log(whole)].count(None)
    for at in (adapter, adapter + 2):
        with pytest.raises(Stopped):
            train(stopped, resume=done > 0, report=stop_at(at - done))
        done = at
    train(stopped, resume=True)
    assert result_with_voices(stopped) == result_with_voices(whole)
