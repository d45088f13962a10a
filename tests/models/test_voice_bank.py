"""Voices: each row of a batch with its own, equal to PEFT with two adapters, and kept in PEFT's format."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from mrp.errors import InputError

torch = pytest.importorskip("torch")

from mrp.config import TrainOptions  # noqa: E402
from mrp.models.load import hardware, load_model  # noqa: E402
from mrp.models.voices import VoiceBank, load_voices, new_voices, save_voices, voices_in  # noqa: E402
from mrp.train.lora import add_adapter, save_adapter  # noqa: E402

IDS = torch.arange(40, 100).view(3, 20)


@pytest.fixture
def model(tiny_base: Path) -> Any:
    """A base with a cast adapter that says something."""
    found = add_adapter(load_model(tiny_base, hardware("fp32")), TrainOptions(rank=4), 0)
    return stirred(found.eval(), found.parameters())


def stirred(model: Any, parameters: Any) -> Any:
    torch.manual_seed(5)
    for parameter in parameters:
        if parameter.requires_grad:
            parameter.data.normal_(std=0.1)
    return model


def bank_of(model: Any, rank: int = 4) -> VoiceBank:
    bank = new_voices(model, ["wukong", "bajie"], rank, 8, seed=0)
    stirred(model, bank.parameters().values())
    return bank


def logits(model: Any, ids: Any = IDS) -> Any:
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def test_a_new_voice_adds_nothing_and_its_start_does_not_hang_on_the_others(model: Any) -> None:
    before = logits(model)
    bank = new_voices(model, ["wukong", "bajie"], 4, 8, seed=0)
    with bank.speaking(["wukong", "bajie", None]):
        assert torch.equal(logits(model), before)
    alone = new_voices(model, ["bajie"], 4, 8, seed=0)
    for name, parameter in alone.parameters().items():
        assert torch.equal(parameter, bank.parameters()[name])


def test_each_row_speaks_with_its_own_voice_and_outside_nobody_does(model: Any) -> None:
    bank = bank_of(model)
    plain = logits(model)
    alone = {}
    for who in bank.ids:
        with bank.speaking([who]):
            alone[who] = logits(model)
        assert (alone[who] - plain).abs().max() > 0.05
    with bank.speaking(["wukong", None, "bajie"]):
        mixed = logits(model)
    for row, whole in ((0, alone["wukong"]), (1, plain), (2, alone["bajie"])):
        torch.testing.assert_close(mixed[row], whole[row], atol=2e-5, rtol=1e-4)
    assert torch.equal(logits(model), plain)


def test_cast_adapter_and_voice_equal_both_adapters_in_peft(model: Any, tiny_base: Path, tmp_path: Path) -> None:
    import peft

    save_adapter(model, tmp_path / "adapter", "base")
    bank = bank_of(model)
    save_voices(bank, tmp_path / "voices", "base")
    with bank.speaking(["bajie"]):
        ours = logits(model)
    other: Any = peft.PeftModel.from_pretrained(load_model(tiny_base, hardware("fp32")), str(tmp_path / "adapter"))
    other.load_adapter(str(tmp_path / "voices" / "bajie"), "bajie")
    other.base_model.set_adapter(["default", "bajie"])
    torch.testing.assert_close(ours, logits(other.eval()), atol=2e-5, rtol=1e-4)


def test_what_was_saved_is_loaded_also_beside_voices_of_another_rank(model: Any, tmp_path: Path) -> None:
    bank = bank_of(model)
    with bank.speaking(["wukong", "bajie", None]):
        before = logits(model)
    save_voices(bank, tmp_path / "voices", "base")
    bank.remove()
    wide = bank_of(model, rank=8)
    save_voices(wide, tmp_path / "wide", "base")
    with wide.speaking(["wukong"]):
        of_wide = logits(model)
    wide.remove()
    shutil.copytree(tmp_path / "wide" / "wukong", tmp_path / "voices" / "nezha")
    assert voices_in(tmp_path / "voices") == ["bajie", "nezha", "wukong"]
    loaded = load_voices(model, tmp_path / "voices")
    with loaded.speaking(["wukong", "bajie", None]):
        torch.testing.assert_close(logits(model), before, atol=2e-5, rtol=1e-4)
    with loaded.speaking(["wukong", "nezha", "bajie"]):
        torch.testing.assert_close(logits(model)[1], of_wide[1], atol=2e-5, rtol=1e-4)


def test_a_row_learns_for_its_own_voice_only(model: Any) -> None:
    bank = bank_of(model)
    bank.is_training = True
    with bank.speaking(["wukong"]):
        model(input_ids=IDS[:1], use_cache=False).logits.square().mean().backward()
    for name, parameter in bank.parameters().items():
        assert (parameter.grad is not None) == name.startswith("wukong/"), name


def test_a_voice_of_another_model_is_refused_by_name(model: Any, tmp_path: Path) -> None:
    bank = bank_of(model)
    layer = next(iter(bank.voices["bajie"].a))
    bank.voices["bajie"].a[layer] = torch.nn.Parameter(torch.zeros(4, 3))
    save_voices(bank, tmp_path / "voices", "base")
    with pytest.raises(InputError, match="'bajie' does not fit"):
        load_voices(model, tmp_path / "voices")
    with pytest.raises(InputError, match="no trained adapter"):
        load_voices(model, tmp_path / "voices", ["tang"])
