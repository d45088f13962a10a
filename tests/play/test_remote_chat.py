"""Chats and scenes with a model in a server, one that takes token ids and one that does not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from command import fails, mrp
from loopback_llm import LLM, Fault, llm
from projects import write_project
from scripted import CAST, TEMPLATE

from mrp.cast import OTHER
from mrp.config import ChatOptions
from mrp.dialogue import Turn
from mrp.lore import LoreEntry
from mrp.play.conversation import Conversation
from mrp.play.recall import Recall
from mrp.play.remote import OpenAIEngine
from mrp.play.reply import Player
from mrp.play.scene import Stage
from mrp.play.scene_plan import ScenePlan
from mrp.play.troupe import load
from mrp.play.wire import RemoteError

TELLING = CAST.model_copy(update={"lore": [LoreEntry(keys=["staff"], text="It is heavy.")]})
CHAT = "/v1/chat/completions"


@pytest.fixture(params=[True, False], ids=["ids", "messages"])
def server(request: pytest.FixtureRequest) -> Iterator[LLM]:
    with llm(replies=["Ha! 俺老孙！"], takes_ids=request.param) as running:
        yield running


@pytest.fixture
def player(server: LLM) -> Iterator[Player]:
    engine = OpenAIEngine(f"{server.url}/v1", first_wait_s=0.01, warn=lambda _: None)
    yield Player(engine, TEMPLATE, TELLING, TEMPLATE.stop_ids())
    engine.close()


def asked(server: LLM) -> list[str]:
    """Each prompt that the server was asked with, as text; messages as ChatML, as this template has them."""
    found = []
    for path, body in server.bodies:
        if body.get("stream") and path == CHAT:
            rows = [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in body["messages"]]
            found.append("".join(rows) + "<|im_start|>assistant\n")
        elif body.get("stream") and server.takes_ids:
            found.append(str(TEMPLATE.tokenizer.decode(body["prompt"])))
    return found


def test_a_chat_shows_the_same_prompt_to_a_server_that_takes_ids_and_one_that_takes_messages(
    server: LLM, player: Player
) -> None:
    chat = Conversation(player, ["wukong"], recall=Recall(TELLING))
    chat.say("Ha!", "wukong")
    chat.say("How is your staff?")
    assert "".join(chat.reply("wukong")) == "Ha! 俺老孙！"
    assert asked(server) == [
        "<|im_start|>system\nYou are Sun Wukong, proud and quick.<|im_end|>\n<|im_start|>assistant\nHa!<|im_end|>\n"
        "<|im_start|>user\nHow is your staff?\n\n[Known to Sun Wukong: It is heavy.]<|im_end|>\n<|im_start|>assistant\n"
    ]
    assert bool(server.asked(CHAT)) != server.takes_ids


def test_old_messages_are_left_out_and_summed_up_in_both_forms(server: LLM, player: Player) -> None:
    line = "We walk on and on, and the road does not end before the night falls."
    server.replies = [line]
    small = replace(player, options=ChatOptions(context_tokens=400, max_new_tokens=90))
    chat = Conversation(small, ["wukong"], recall=Recall(TELLING))
    for number in range(7):
        chat.say(f"Question {number}?")
        list(chat.reply("wukong"))
    summaries = [text for text in asked(server) if "Write the summary alone" in text]
    assert summaries and all("You are Sun Wukong" not in text for text in summaries)
    last = asked(server)[-1]
    assert f"[Earlier: {line}]" in last and "Question 0?" not in last and "Question 6?" in last


def test_a_scene_goes_to_a_server_in_both_forms(server: LLM, player: Player) -> None:
    stage = Stage(player, ScenePlan(participants=["tang", "wukong"], scenario="Dusk."))
    for who in ("tang", "wukong"):
        list(stage.reply(who))
    assert [turn.text for turn in stage.turns] == ["Ha! 俺老孙！"] * 2
    opens, answers = asked(server)
    assert "Tang Sanzang" in opens and answers.endswith("Ha! 俺老孙！<|im_end|>\n<|im_start|>assistant\n")


def test_a_server_that_dies_in_a_reply_leaves_what_was_shown(server: LLM, player: Player) -> None:
    server.faults = [Fault(after=4)]
    chat = Conversation(player, ["wukong"])
    chat.say("Who are you?")
    with pytest.raises(RemoteError):
        list(chat.reply("wukong"))
    assert [(turn.speaker, turn.text) for turn in chat.turns] == [(OTHER, "Who are you?"), ("wukong", "Ha!")]


# -- the commands ------------------------------------------------------------------------------------------------------


@pytest.fixture
def tokenizer(tiny_base: Path, tmp_path: Path) -> Path:
    """A folder with a tokenizer and a cast, and no weights."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_base, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    write_project(tmp_path / "project")
    shutil.copy(tmp_path / "project" / "cast.yaml", folder / "cast.yaml")
    return folder


def test_a_chat_and_a_scene_are_played_by_a_server_without_loading_weights(
    server: LLM, tokenizer: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MRP_HOME", str(tmp_path / "home"))
    at = ("--base-url", f"{server.url}/v1")
    done = mrp("chat", tokenizer, *at, "--as", "bajie", "--json", stdin="Who are you?\n")
    assert done.json["turns"][-1] == {"speaker": "bajie", "text": "Ha! 俺老孙！"}, done.err
    done = mrp("scene", tokenizer, *at, "--with", "bajie,wukong", "--turns", 2, "--json")
    assert [turn["text"] for turn in done.json["turns"]] == ["Ha! 俺老孙！"] * 2, done.err


def test_a_server_that_dies_ends_no_chat_and_what_was_said_is_kept(
    server: LLM, tokenizer: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MRP_HOME", str(tmp_path / "home"))
    server.faults = [Fault(after=4)]
    at = ("--base-url", f"{server.url}/v1")
    done = mrp("chat", tokenizer, *at, "--as", "bajie", "--json", stdin="Who are you?\n/retry\n")
    assert "broke off" in done.err
    assert done.json["turns"][-1] == {"speaker": "bajie", "text": "Ha! 俺老孙！"}
    (kept,) = (tmp_path / "home" / "chats").glob("*.jsonl")
    rows = kept.read_text(encoding="utf-8")
    assert '{"speaker": "bajie", "text": "Ha!"}' in rows and '{"speaker": "bajie", "text": "Ha! 俺老孙！"}' in rows


def test_a_program_is_answered_by_a_server_too(server: LLM, tokenizer: Path) -> None:
    with load(tokenizer, base_url=f"{server.url}/v1") as troupe:
        assert str(troupe.reply("Who are you?", "bajie")) == "Ha! 俺老孙！"
        (turn,) = troupe.scene("bajie", turns=1)
        assert turn == Turn("bajie", "Ha! 俺老孙！")


@pytest.mark.parametrize("flags", [("--model", "x"), ("--base-url", "http://127.0.0.1:9/v1", "--bits", "8")])
def test_flags_that_do_not_go_together_are_named(tokenizer: Path, flags: tuple[str, ...]) -> None:
    fails(mrp("chat", tokenizer, *flags), 2, "--base-url")
