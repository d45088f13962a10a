"""The Python API: the examples of its page, and what they leave out."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from projects import write_project
from scripted import CAST, prompt_text, scripted

import mrp
from mrp.cast import OTHER
from mrp.config import load_run
from mrp.data.build import build_data
from mrp.dialogue import Turn
from mrp.errors import InputError
from mrp.play.engine import Sampling
from mrp.play.room import room_of
from mrp.play.troupe import Troupe

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


def test_the_examples_of_the_page_run(
    tmp_path: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    options = {"chat.max_new_tokens": "6", "chat.context_tokens": "256"}
    given = f"mrp.load({str(tiny_base)!r}, cast={str(tmp_path / 'cast.yaml')!r}, options={options!r})"
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) >= 16
    names: dict[str, Any] = {"mrp": mrp, "asyncio": asyncio, "Sampling": Sampling}
    for example in examples:
        exec(compile(example.replace('mrp.load("runs/pilgrims")', given), str(PAGE), "exec"), names)
    assert [a.character for a in asyncio.run(names["ask_both"]())] == ["wukong", "bajie"]
    assert "".join(asyncio.run(names["tell"]())) and capsys.readouterr().out
    assert asyncio.run(names["play"]()) and "".join(asyncio.run(names["play_slowly"]()))
    assert names["before"] and names["after"] and (tmp_path / "inn.scene.jsonl").is_file()
    assert isinstance(names["troupe"], mrp.Troupe) and names["route"].character == "bajie"
    names["troupe"].close()


def test_a_run_has_its_router_and_its_chats_in_its_folder(tmp_path: Path, tiny_base: Path) -> None:
    pytest.importorskip("sklearn")
    path = write_project(tmp_path / "project", tiny_base)
    build_data(load_run(path))
    room = room_of(path, scripted(load_run(path).cast))
    assert room.router is not None and room.router.classifier is not None
    assert room.chats.resolve() == (tmp_path / "project" / "run" / "chats").resolve()


def test_a_model_folder_has_its_chats_in_the_cache(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MRP_HOME", str(tmp_path / "home"))
    assert room_of(tiny_base, scripted(CAST)).chats == tmp_path / "home" / "chats"
    assert room_of(tiny_base, scripted(None)).router is None


def test_what_holds_no_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        mrp.load(tmp_path / "nowhere")


def test_importing_mrp_imports_nothing_heavy() -> None:
    code = "import sys, mrp; assert 'torch' not in sys.modules and 'mrp.play' not in sys.modules; mrp.load"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_whoever_is_called_answers_and_stays() -> None:
    troupe = Troupe(scripted(CAST, "Buns!", "More buns!"))
    first = troupe.reply("Pigsy, any buns?")
    assert (first.character, str(first)) == ("bajie", "Buns!") and first.route and first.route.confidence == 1
    second = troupe.reply("How many?", history=first.history)
    assert second.character == "bajie"
    assert second.history == (
        Turn(OTHER, "Pigsy, any buns?"),
        Turn("bajie", "Buns!"),
        Turn(OTHER, "How many?"),
        Turn("bajie", "More buns!"),
    )


def test_history_may_hold_others_by_any_of_their_names() -> None:
    player = scripted(CAST, "Ha!")
    answer = Troupe(player).reply("You?", "Monkey King", history=[("Pigsy", "Buns!"), ("Bob", "Eat.")], me="Bob")
    assert [turn.speaker for turn in answer.history] == ["bajie", "Bob", "Bob", "wukong"] and answer.route is None
    assert "Zhu Bajie: Buns!\nBob: Eat.\nYou?" in prompt_text(player)


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"text": "Hi", "as_": "wukon"}, "no character 'wukon'"),
        ({"text": " \x00"}, "the message is empty"),
        ({"text": "Hi", "as_": "bajie", "me": "Pigsy"}, "cannot be you"),
        ({"text": "x" * 2**20}, "too long"),
        ({"text": "word " * 3000, "as_": "bajie"}, "too small"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_asked(given: dict[str, str], what: str) -> None:
    troupe = Troupe(scripted(CAST, "Ha!"))
    with pytest.raises(InputError, match=what) as caught:
        troupe.stream(**given)
    assert caught.value.fix and not troupe.player.engine.prompts  # type: ignore[attr-defined]


def test_a_plain_model_answers_as_itself() -> None:
    answer = Troupe(scripted(None, "Hello!")).reply("Hi")
    assert (answer.character, answer.text) == ("plain", "Hello!")
    with pytest.raises(InputError, match="no cast"):
        Troupe(scripted(None)).route("Hi")
    with pytest.raises(InputError, match="no cast"):
        Troupe(scripted(None)).reply("Hi", "wukong")


def test_a_stream_that_is_closed_is_an_answer_so_far() -> None:
    stream = Troupe(scripted(CAST, "One two three four.")).stream("Count.", "wukong")
    piece = next(iter(stream))
    stream.close()
    assert stream.answer.text == piece and stream.answer.history[-1] == Turn("wukong", piece)


def test_a_cancelled_task_stops_its_reply() -> None:
    player = scripted(CAST, "One two three four five six seven eight.")
    go, begun = threading.Event(), threading.Event()
    stream = player.engine.stream

    def slow(request: Any) -> Any:
        for token in stream(request):
            yield token
            begun.set()
            assert go.wait(10)

    player.engine.stream = slow  # type: ignore[method-assign]

    async def cancel() -> None:
        task = asyncio.create_task(Troupe(player).areply("Count.", "wukong"))
        await asyncio.to_thread(begun.wait, 10)
        task.cancel()
        await asyncio.sleep(0)
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert player.engine.closed == 1 and player.engine.given < 10


def test_replies_asked_for_at_once_do_not_mix() -> None:
    troupe = Troupe(scripted(CAST, *["Ha!"] * 8))

    async def ask() -> list[mrp.Answer]:
        return await asyncio.gather(*(troupe.areply(f"Line {n}", "wukong") for n in range(8)))

    assert [a.history[0].text for a in asyncio.run(ask())] == [f"Line {n}" for n in range(8)]


def test_the_model_is_freed_at_the_end_of_a_block() -> None:
    player = scripted(CAST)
    closed = []
    player.engine.close = lambda: closed.append(True)  # type: ignore[method-assign]
    with Troupe(player) as troupe:
        assert troupe.characters == ["wukong", "bajie", "tang"]
    assert closed == [True]
