"""Voices ready to speak: rows give what each voice gives alone, whatever the others are, and follow what is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from mrp.models.load import hardware, load_model  # noqa: E402
from mrp.models.voice_rows import ReadyVoices  # noqa: E402
from mrp.models.voices import VoiceBank, linear_layers, new_voices  # noqa: E402

IDS = torch.arange(40, 100).view(3, 20)


@pytest.fixture
def model(tiny_base: Path) -> Any:
    return load_model(tiny_base, hardware("fp32"))


def stirred(bank: VoiceBank, seed: int = 5) -> VoiceBank:
    generator = torch.Generator().manual_seed(seed)
    for parameter in bank.parameters().values():
        parameter.data.normal_(std=0.1, generator=generator)
    return bank


def logits(model: Any, bank: VoiceBank, rows: list[str | None]) -> Any:
    with torch.no_grad(), bank.speaking(rows):
        return model(input_ids=IDS, use_cache=False).logits


def test_a_row_gives_what_its_low_rank_product_says(model: Any) -> None:
    """Every linear layer alone: output + scale * B A x, with other voices in the other rows and with none."""
    bank = stirred(new_voices(model, ["wukong", "bajie"], 4, 12, seed=0))
    rows = ReadyVoices(bank.voices).of(("bajie", None, "wukong"), torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, layer in linear_layers(model).items():
            x = torch.randn(3, 5, layer.in_features, generator=generator)
            plain = torch.randn(3, 5, layer.out_features, generator=generator)
            found = rows.added(name, x, plain.clone())
            assert torch.equal(found[1], plain[1])
            for row, who in ((0, "bajie"), (2, "wukong")):
                voice = bank.voices[who]
                wanted = plain[row] + 3 * x[row] @ voice.a[name].T @ voice.b[name].T
                torch.testing.assert_close(found[row], wanted, atol=1e-5, rtol=1e-4)


def test_layers_of_one_input_and_layers_of_their_own_inputs_are_told_apart(model: Any) -> None:
    """The shared product is of the very input that was given, whatever the layers' names promise."""
    bank = stirred(new_voices(model, ["wukong"], 4, 4, seed=0))
    query, key = (f"model.layers.0.self_attn.{name}" for name in ("q_proj", "k_proj"))
    layers, voice = linear_layers(model), bank.voices["wukong"]
    first, second = torch.randn(2, 1, 5, layers[query].in_features, generator=torch.Generator().manual_seed(2))
    for given in ((first, first), (first, second)):
        rows = ReadyVoices(bank.voices).of(("wukong",), torch.device("cpu"))
        with torch.no_grad():
            for name, x in zip((query, key), given, strict=True):
                found = rows.added(name, x, torch.zeros(1, 5, layers[name].out_features))
                wanted = x @ voice.a[name].T @ voice.b[name].T
                torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_rows_of_one_voice_are_as_that_voice_for_all(model: Any) -> None:
    bank = stirred(new_voices(model, ["wukong", "bajie"], 4, 8, seed=0))
    assert torch.equal(logits(model, bank, ["bajie"] * 3), logits(model, bank, ["bajie"]))


def test_voices_of_other_layers_and_other_ranks_speak_side_by_side(model: Any) -> None:
    names = list(linear_layers(model))
    some = stirred(new_voices(model, ["wukong"], 2, 4, seed=0, layers=[n for n in names if "mlp" in n]))
    others = stirred(new_voices(model, ["bajie"], 5, 8, seed=0, layers=[n for n in names if "k_proj" not in n]))
    alone = {who: logits(model, bank, [who]) for bank, who in ((some, "wukong"), (others, "bajie"))}
    plain = logits(model, some, [None])
    some.remove(), others.remove()
    both = VoiceBank(model, some.voices | others.voices)
    mixed = logits(model, both, ["bajie", None, "wukong"])
    for row, wanted in enumerate((alone["bajie"], plain, alone["wukong"])):
        torch.testing.assert_close(mixed[row], wanted[row], atol=2e-5, rtol=1e-4)


def test_what_was_trained_meanwhile_is_heard(model: Any) -> None:
    bank = stirred(new_voices(model, ["wukong", "bajie"], 4, 8, seed=0))
    rows: list[str | None] = ["wukong", "bajie", None]
    before = logits(model, bank, rows)
    bank.is_training = True
    with bank.speaking(rows):
        model(input_ids=IDS, use_cache=False)
    for name, parameter in bank.parameters().items():
        parameter.data *= 2 if name.startswith("bajie/") else 1
    with torch.no_grad(), bank.speaking(rows):
        wanted = model(input_ids=IDS, use_cache=False).logits
    bank.is_training = False
    after = logits(model, bank, rows)
    torch.testing.assert_close(after, wanted, atol=2e-5, rtol=1e-4)
    assert torch.equal(after[0], before[0]) and not torch.allclose(after[1], before[1], atol=1e-3)


def test_with_gradients_kept_the_layers_outputs_are_not_written_over(model: Any) -> None:
    bank = stirred(new_voices(model, ["wukong", "bajie"], 4, 8, seed=0))
    rows: list[str | None] = ["wukong", "bajie", None]
    wanted = logits(model, bank, rows)
    model.get_input_embeddings().weight.requires_grad_(True)
    with bank.speaking(rows):
        found = model(input_ids=IDS, use_cache=False).logits
    torch.testing.assert_close(found.detach(), wanted, atol=2e-5, rtol=1e-4)
    found.square().mean().backward()  # raises if what is needed on the way back was changed
    assert model.get_input_embeddings().weight.grad.abs().max() > 0


def test_whoever_comes_and_goes_each_row_has_the_voice_of_now(model: Any) -> None:
    """Rows that stay are not copied again, and never hold what another row left there."""
    names = ["wukong", "bajie", "tang", "wujing"]
    bank = stirred(new_voices(model, names, 4, 8, seed=0))
    layer = "model.layers.0.mlp.up_proj"
    ready, generator = ReadyVoices(bank.voices), torch.Generator().manual_seed(3)
    into, out = linear_layers(model)[layer].in_features, linear_layers(model)[layer].out_features
    for rows in (
        ("wukong", "bajie"),
        ("wukong", "bajie", "tang"),
        ("bajie", "tang"),
        ("tang", None, "bajie", "wukong", None),
        (None, "wujing"),
        ("tang", "wujing", "bajie", "wukong"),
    ):
        x = torch.randn(len(rows), 2, into, generator=generator)
        with torch.no_grad():
            found = ready.of(rows, x.device).added(layer, x, torch.zeros(len(rows), 2, out))
            fresh = ReadyVoices(bank.voices).of(rows, x.device).added(layer, x, torch.zeros(len(rows), 2, out))
        assert torch.equal(found, fresh), rows
