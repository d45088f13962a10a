"""What `mrp chat RUN` opens: a run with its merged model or its adapter, a model folder, an adapter with its base."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from command import fails, mrp
from projects import change_yaml, write_project, write_yaml
from scripted import CAST

from mrp.config import load_run
from mrp.data.build import build_data
from mrp.errors import InputError
from mrp.models.load import hardware
from mrp.models.merge import merge_run
from mrp.plan.chat import MORE_GRAPHS, predict_chat
from mrp.plan.shapes import shape_of_folder
from mrp.plan.training import CONTEXT
from mrp.play.conversation import Conversation
from mrp.play.engine import Sampling
from mrp.play.open import choose_bits, model_of, open_player, room_for_chats
from mrp.play.reply import Player
from mrp.train.loop import train

GREEDY = Sampling(temperature=0, max_new_tokens=12)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A project whose adapter is trained and merged; not to be changed."""
    run_file = write_project(tmp_path_factory.mktemp("open") / "project", tiny_base)
    run = load_run(run_file)
    build_data(run)
    train(run)
    merge_run(run)
    return run_file


@pytest.fixture
def project(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(trained.parent, tmp_path / "project")) / "mrp.yaml"


def answer(player: Player, character: str = "wukong") -> str:
    chat = Conversation(player, [character])
    chat.say("Where is the river?")
    return "".join(chat.reply(character, GREEDY))


def has_adapter(player: Player) -> bool:
    model: Any = player.engine.model  # type: ignore[attr-defined]
    return hasattr(model, "peft_config")


def error_of(*path: Path, **given: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        open_player(*path, **given)
    return caught.value


def test_a_run_its_folder_and_its_model_play_the_same(trained: Path) -> None:
    players = [open_player(p, flags={}) for p in (trained, trained.parent, trained.parent / "run")]
    merged = open_player(trained.parent / "run" / "merged", flags={"chat.max_new_tokens": "12"})
    assert not any(has_adapter(p) for p in [*players, merged])
    assert all(p.cast and p.cast["wukong"].persona == "You are Sun Wukong." for p in [*players, merged])
    assert len({answer(p) for p in [*players, merged]}) == 1
    assert merged.options.max_new_tokens == 12


def test_without_a_merge_base_and_adapter_play_as_the_merged_model_does(project: Path) -> None:
    wanted = answer(open_player(project))
    run = load_run(project)
    cast = run.folder / "cast.yaml"
    alone = open_player(run.adapter, base=run.config.base, cast=cast, flags={"chat.context_tokens": "256"})
    shutil.rmtree(run.merged)
    player = open_player(project)
    assert has_adapter(player) and has_adapter(alone)
    assert answer(player) == answer(alone) == wanted


def test_a_merge_of_an_earlier_adapter_is_not_played(project: Path) -> None:
    change_yaml(project, train__learning_rate=1e-3)
    run = load_run(project)
    assert model_of(run) == (run.merged, None)
    train(run)
    assert model_of(run) == (Path(run.config.base), run.adapter)


def test_a_merged_model_is_enough_by_itself(project: Path) -> None:
    run = load_run(project)
    shutil.rmtree(run.adapter)
    assert model_of(run) == (run.merged, None)


def test_chat_options_come_from_the_run_and_from_flags(trained: Path) -> None:
    player = open_player(trained, flags={"chat.temperature": "0"})
    assert (player.options.temperature, player.options.max_new_tokens) == (0, 6)


def test_a_plain_model_folder_has_no_cast_until_one_is_given(tiny_base: Path, trained: Path) -> None:
    assert open_player(tiny_base).cast is None
    player = open_player(tiny_base, cast=trained.parent / "cast.yaml")
    assert player.cast and answer(player, "bajie")


def test_a_cast_given_goes_before_the_runs_own(trained: Path, tmp_path: Path) -> None:
    write_yaml(tmp_path / "other.yaml", CAST.model_dump())
    for path in (trained, trained.parent / "run" / "merged"):
        player = open_player(path, cast=tmp_path / "other.yaml")
        assert player.cast and player.cast.get("tang")


def test_another_template_is_taken_for_the_models_own(tiny_base: Path, tmp_path: Path) -> None:
    template = tmp_path / "t.jinja"
    text = open_player(tiny_base).template.text
    template.write_text("{#- mine -#}" + text, encoding="utf-8")
    assert open_player(tiny_base, template=template).template.text == "{#- mine -#}" + text


def test_nothing_to_play_is_told_with_the_reason(tiny_base: Path, trained: Path, tmp_path: Path) -> None:
    fresh = write_project(tmp_path / "fresh", tiny_base)
    empty = tmp_path / "empty"
    empty.mkdir()
    run = load_run(trained)
    for error, what in (
        (error_of(fresh), "nothing is trained here yet"),
        (error_of(tmp_path / "no"), "no such file or folder: no"),
        (error_of(empty), "holds neither a run nor a model"),
        (error_of(run.adapter), "needs its base model"),
        (error_of(run.adapter, base="nobody"), "unknown base model 'nobody'"),
        (error_of(tiny_base, base="x"), "--base goes with an adapter folder"),
        (error_of(trained, base="x"), "--base goes with an adapter folder"),
        (error_of(tiny_base, cast=tmp_path / "no.yaml"), "no such file: no.yaml"),
        (error_of(tiny_base, template=tmp_path / "no.jinja"), "the chat template cannot be read"),
        (error_of(tiny_base, flags={"train.rank": "1"}), "chat options only"),
    ):
        assert what in error.what and error.fix, error


@pytest.mark.parametrize("text", ["{% for", "{{ messages[0].nothing.at_all }}", "always the same", "\xff"])
def test_a_template_that_cannot_be_used_is_told(tiny_base: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "t.jinja").write_bytes(text.encode("latin-1"))
    assert "t.jinja" in error_of(tiny_base, template=tmp_path / "t.jinja").where


def test_a_runs_voices_are_heard(project: Path) -> None:
    import torch

    from mrp.models.load import load_model
    from mrp.models.voices import new_voices, save_voices

    run = load_run(project)
    without = {who: answer(open_player(project), who) for who in ("wukong", "bajie")}
    bank = new_voices(load_model(Path(run.config.base), hardware("fp32")), ["wukong"], rank=4, alpha=8, seed=0)
    for name, weights in bank.parameters().items():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(weights.data, std=0.3, generator=torch.Generator().manual_seed(1))
    save_voices(bank, run.voices, run.config.base)
    merged = open_player(project)
    shutil.rmtree(run.merged)
    beside_adapter = open_player(project)
    assert has_adapter(beside_adapter) and not has_adapter(merged)
    for player in (merged, beside_adapter):
        assert answer(player, "bajie") == without["bajie"]
        assert answer(player, "wukong") != without["wukong"]


# -- bits of the weights -------------------------------------------------------------------------------------------

SEVEN = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 92544,
}


@pytest.mark.parametrize(
    ("gib", "wanted"), [(24, (16, 4096)), (14, (8, 4096)), (7.5, (4, 4096)), (6.2, (4, None)), (4, None)]
)
def test_auto_takes_the_most_bits_that_the_free_memory_holds(
    gib: float, wanted: tuple[int, int | None] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SEVEN), encoding="utf-8")
    monkeypatch.setattr("mrp.play.open._free_memory", lambda: int(gib * 2**30))
    on = dataclasses.replace(hardware("fp32"), device="cuda")
    if wanted is None:
        with pytest.raises(InputError, match="cannot chat in"):
            choose_bits("auto", on, tmp_path, 4096)
        return
    bits, tokens = choose_bits("auto", on, tmp_path, 4096)
    assert bits == wanted[0]
    assert tokens == wanted[1] if wanted[1] else 256 <= tokens < 4096
    assert choose_bits("8", on, tmp_path, 4096) == (8, 4096)  # whoever insists gets it


def test_an_adapter_beside_the_model_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SEVEN), encoding="utf-8")
    (tmp_path / "adapter").mkdir()
    with (tmp_path / "adapter" / "adapter_model.safetensors").open("wb") as file:
        file.truncate(6 * 2**30)  # sparse
    monkeypatch.setattr("mrp.play.open._free_memory", lambda: 20 * 2**30)
    on = dataclasses.replace(hardware("fp32"), device="cuda")
    assert choose_bits("auto", on, tmp_path, 4096)[0] == 16
    assert choose_bits("auto", on, tmp_path, 4096, [tmp_path / "adapter", None])[0] == 8


def test_voices_count_once_for_each_character_and_once_for_each_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SEVEN), encoding="utf-8")
    for who in ("wukong", "bajie"):
        (tmp_path / "voices" / who).mkdir(parents=True)
        with (tmp_path / "voices" / who / "adapter_model.safetensors").open("wb") as file:
            file.truncate(2**30)  # sparse; half of it in 16 bit
    on = dataclasses.replace(hardware("fp32"), device="cuda")

    def least(voices: Path | None, chats: int) -> int:
        """MiB of free memory with which 16 bits are taken."""
        for free in range(15000, 30000, 64):
            monkeypatch.setattr("mrp.play.open._free_memory", lambda free=free: free * 2**20)
            if choose_bits("auto", on, tmp_path, 4096, [], voices, chats)[0] == 16:
                return free
        raise AssertionError

    for chats, more in ((1, 1024), (4, 1024 + 4 * 512)):
        assert abs(least(tmp_path / "voices", chats) - least(None, chats) - more) <= 128


def test_free_memory_goes_to_chats_and_what_they_leave_to_graphs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All chats that are planned come first; then graphs of other numbers of rows; then more that was read is kept."""
    (tmp_path / "config.json").write_text(json.dumps(SEVEN), encoding="utf-8")
    on = dataclasses.replace(hardware("fp32"), device="cuda")
    planned = predict_chat(shape_of_folder(tmp_path), 4, 4096)
    one, graph = planned.parts["keys and values"], planned.parts["CUDA graph"]
    for free in range(planned.working, 16 * 2**30, 2**28):
        monkeypatch.setattr("mrp.play.open._free_memory", lambda free=free: free)
        kept = room_for_chats(on, tmp_path, 4, 4096, None, 4)
        assert kept is not None and kept >= one
        left = free - planned.working - CONTEXT - kept
        if kept > 4 * one:
            assert MORE_GRAPHS * graph <= left < (MORE_GRAPHS + 10) * graph
        elif kept > one:
            assert left < (MORE_GRAPHS + 10) * graph
    assert kept > 4 * one
    assert room_for_chats(hardware("fp32"), tmp_path, 4, 4096, None, 4) is None


def test_every_command_that_plays_takes_bits(project: Path) -> None:
    """A number that none knows reaches the place where bits are chosen, whatever machine this is."""
    for command in (
        ["chat"],
        ["scene", "--turns", 1],
        ["serve", "--port", 0],
        ["eval"],
        ["route", "Well?", "--by", "model"],
    ):
        fails(mrp(command[0], project, *command[1:], "--bits", "5"), 2, "no such number of bits: '5'", "16, 8, 4")
    assert mrp("scene", project, "--turns", 1, "--bits", "16", "--set", "chat.max_new_tokens=2").code == 0


def test_few_bits_are_refused_on_the_cpu(tiny_base: Path) -> None:
    on = dataclasses.replace(hardware("fp32"), device="cpu")
    for bits in ("auto", "16"):
        assert choose_bits(bits, on, tiny_base, 99) == (16, 99)
    for bits, what in (("8", "8-bit weights need a GPU"), ("4", "4-bit weights need a GPU"), ("5", "no such number")):
        with pytest.raises(InputError, match=what):
            choose_bits(bits, on, tiny_base, 99)
