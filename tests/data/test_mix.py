"""General chat data beside the cast: its replies are the model's own, whatever format they come in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from projects import write_rows

from mrp.cast import OTHER, PLAIN
from mrp.data import mix as module
from mrp.data.mix import general_fault, write_base_replies
from mrp.data.plain import plain_prompts
from mrp.data.read import read_dialogues
from mrp.data.record import Rejected
from mrp.dialogue import Scene, Turn

ASKED, ANSWERED = "What is 2 + 2?", "It is 4."
SAME: dict[str, Any] = {
    "xtuner": {"conversation": [{"system": "", "input": ASKED, "output": ANSWERED}]},
    "messages": {"messages": [{"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWERED}]},
    "sharegpt": {"conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": ANSWERED}]},
    "alpaca": {"instruction": ASKED, "input": "", "output": ANSWERED},
    "prompt": {"prompt": ASKED, "completion": ANSWERED},
    "named": {
        "messages": [{"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWERED, "name": "Bo"}]
    },
    "scene": {"turns": [{"speaker": OTHER, "text": ASKED}, {"speaker": PLAIN, "text": ANSWERED}]},
}
SYSTEM = "You are a helpful assistant."
WITH_SYSTEM: dict[str, Any] = {
    "xtuner": {"conversation": [{"system": SYSTEM, "input": ASKED, "output": ANSWERED}]},
    "messages": {
        "messages": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": ASKED},
            {"role": "assistant", "content": ANSWERED},
        ]
    },
    "sharegpt": {
        "system": SYSTEM,
        "conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": ANSWERED}],
    },
    "alpaca": {"system": SYSTEM, "instruction": ASKED, "output": ANSWERED},
    "scene": {"scenario": SYSTEM, "turns": [{"speaker": OTHER, "text": ASKED}, {"speaker": PLAIN, "text": ANSWERED}]},
}


def read(folder: Path, *rows: Any) -> list[Scene | Rejected]:
    path = folder / "general.jsonl"
    write_rows(path, list(rows))
    return list(read_dialogues(path, None, PLAIN, path.name))


@pytest.mark.parametrize("kind", SAME)
def test_replies_of_any_format_are_the_models_own(kind: str, tmp_path: Path) -> None:
    (scene,) = read(tmp_path, SAME[kind])
    assert isinstance(scene, Scene)
    assert scene.turns == (Turn(OTHER, ASKED), Turn(PLAIN, ANSWERED))
    assert set(scene.participants) == {PLAIN, OTHER}
    assert (scene.scenario, scene.source) == ("", "general.jsonl:1")


@pytest.mark.parametrize("kind", WITH_SYSTEM)
def test_a_system_prompt_of_any_format_travels_as_the_scenario(kind: str, tmp_path: Path) -> None:
    (scene,) = read(tmp_path, WITH_SYSTEM[kind])
    assert isinstance(scene, Scene)
    assert (scene.scenario, scene.turns) == (SYSTEM, (Turn(OTHER, ASKED), Turn(PLAIN, ANSWERED)))


def test_a_system_prompt_that_names_somebody_makes_nobody_speak(tmp_path: Path) -> None:
    row = {"conversation": [{"system": "wukong", "input": ASKED, "output": ANSWERED}]}
    (scene,) = read(tmp_path, row)
    assert isinstance(scene, Scene)
    assert (scene.speakers(), scene.scenario) == ([OTHER, PLAIN], "wukong")


def test_a_user_called_like_the_model_stays_the_user(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": ASKED, "name": PLAIN}, {"role": "assistant", "content": ANSWERED}]}
    (scene,) = read(tmp_path, row)
    assert isinstance(scene, Scene)
    assert scene.turns == (Turn(OTHER, ASKED), Turn(PLAIN, ANSWERED))


@pytest.mark.parametrize("kind", [*SAME, *WITH_SYSTEM])
def test_a_prompt_and_its_reply_can_be_general_data(kind: str, tmp_path: Path) -> None:
    for row in (SAME.get(kind), WITH_SYSTEM.get(kind)):
        if row:
            (scene,) = read(tmp_path, row)
            assert isinstance(scene, Scene) and not general_fault(scene)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (
            {"messages": [{"role": "assistant", "content": "Hello!"}, {"role": "user", "content": "Hi."}]},
            "speaks first",
        ),
        ({"turns": [{"speaker": "Ann", "text": "Hello."}, {"speaker": "Bob", "text": "Hi."}]}, "nobody here is"),
    ],
)
def test_a_scene_that_cannot_be_general_data_says_why(row: Any, why: str, tmp_path: Path) -> None:
    (scene,) = read(tmp_path, row)
    assert isinstance(scene, Scene) and why in general_fault(scene)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": ASKED, "completion": ""}, "no-reply"),
        ("{", "broken-json"),
        ({"messages": [{"role": "user", "content": ASKED}, {"role": "tool", "content": "4"}]}, "tool-message"),
        ({"messages": [{"role": "user", "content": ASKED}, {"role": "wukong", "content": "4"}]}, "wrong-type"),
    ],
)
def test_a_line_without_a_reply_of_the_model_is_rejected_with_its_place(row: Any, reason: str, tmp_path: Path) -> None:
    good, bad = read(tmp_path, SAME["prompt"], row)
    assert isinstance(good, Scene) and isinstance(bad, Rejected)
    assert (bad.reason, bad.source) == (reason, "general.jsonl:2")


def test_what_the_base_answered_is_a_file_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def answered(base: Path, prompts: list[str], *_: Any) -> list[Scene]:
        asked.append(prompts)
        turns = [(Turn(OTHER, prompt), Turn(PLAIN, f"{base.name}:\n{prompt}")) for prompt in prompts[:9]]
        return [
            Scene(f"own-reply-{n}", (PLAIN, OTHER), pair, source=f"own-replies:{n}") for n, pair in enumerate(turns)
        ]

    monkeypatch.setattr(module, "own_replies", answered)
    path = tmp_path / "base.jsonl"
    assert write_base_replies(Path("some/base"), "en", tmp_path / "cache", path) == 9
    assert asked == [plain_prompts("en", "for_training")]
    scenes = list(read_dialogues(path, None, PLAIN))
    wanted = answered(Path("some/base"), asked[0])
    assert [replace(s, source="") for s in scenes if isinstance(s, Scene)] == [replace(s, source="") for s in wanted]
    assert not any(general_fault(s) for s in wanted)
