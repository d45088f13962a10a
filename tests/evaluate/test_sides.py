"""The two sides of an evaluation: their names change with all that answers depend on; voices are heard."""

from __future__ import annotations

from pathlib import Path

import pytest
from projects import write_project

pytest.importorskip("torch")

import torch

from mrp.config import Run, TrainOptions, load_run
from mrp.errors import InputError
from mrp.evaluate.sides import judging, sides
from mrp.models.load import hardware, load_model
from mrp.models.voices import new_voices, save_voices
from mrp.train.lora import add_adapter, save_adapter


@pytest.fixture
def run(tmp_path: Path, tiny_base: Path) -> Run:
    """A run with an adapter, as far as a side needs it."""
    made = load_run(write_project(tmp_path, tiny_base))
    model = add_adapter(load_model(tiny_base, hardware("fp32")), TrainOptions(rank=2, alpha=2), 0)
    save_adapter(model, made.adapter, "tiny")
    return made


def test_a_voice_gives_the_tuned_side_another_name_and_is_heard(run: Run, tiny_base: Path) -> None:
    base, tuned = sides(run, {})
    assert (base.id, tuned.id) == ("base", "tuned") and base.name != tuned.name and tuned.adapter == run.adapter
    assert sides(run, {})[1].name == tuned.name
    with judging(tuned) as judge:
        assert judge.voices is None
    bank = new_voices(load_model(tiny_base, hardware("fp32")), ["bajie"], rank=2, alpha=2, seed=0)
    with torch.no_grad():
        for parameter in bank.parameters().values():
            parameter.fill_(0.05)
    save_voices(bank, run.voices, "tiny")
    again, voiced = sides(run, {})
    assert again.name == base.name and voiced.name != tuned.name
    with judging(voiced) as judge:
        assert judge.voices is not None and judge.voices.ids == ["bajie"]
        ids = torch.tensor([[5, 6, 7, 8]])
        with torch.no_grad():
            plain = judge.model(input_ids=ids).logits
            with judge.voices.speaking(["bajie"]):
                spoken = judge.model(input_ids=ids).logits
        assert not torch.allclose(plain, spoken)


def test_another_adapter_is_another_model(run: Run, tiny_base: Path) -> None:
    first = sides(run, {})[1].name
    model = add_adapter(load_model(tiny_base, hardware("fp32")), TrainOptions(rank=2, alpha=2), 1)
    save_adapter(model, run.adapter, "tiny")
    assert sides(run, {})[1].name != first


def test_both_sides_have_the_bits_asked_for(run: Run) -> None:
    """4 bit needs a GPU: here it is refused before a model is loaded, and 16 is what "auto" takes."""
    assert [side.bits for side in sides(run, {})] == [side.bits for side in sides(run, {}, "16", 8)] == [16, 16]
    assert [side.name for side in sides(run, {})] == [side.name for side in sides(run, {}, "16", 8)]
    with pytest.raises(InputError, match="4-bit weights need a GPU"):
        sides(run, {}, "4")


def test_without_anything_trained_it_is_said(tmp_path: Path, tiny_base: Path) -> None:
    with pytest.raises(InputError, match="nothing is trained"):
        sides(load_run(write_project(tmp_path, tiny_base)), {})
