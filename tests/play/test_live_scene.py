"""A scene played from a program."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from scripted import CAST, ScriptedPlayer, prompt_text, scripted

from mrp.data.read import read_dialogues
from mrp.dialogue import Scene, Turn
from mrp.errors import InputError, MrpError
from mrp.lore import LoreEntry
from mrp.play.live_scene import LiveScene
from mrp.play.scene_command import Asked, play_scene
from mrp.play.troupe import Troupe

ROUND: dict[str, Any] = {"director": "round-robin"}
LINES = ["Who is there?", "Me!", "Peace.", "Food?"]


def player_of(scene: LiveScene) -> ScriptedPlayer:
    assert isinstance(scene.stage.player, ScriptedPlayer)
    return scene.stage.player


def troupe(*replies: str, **options: float) -> Troupe:
    return Troupe(scripted(CAST, *replies, **options))


def test_characters_play_until_the_scene_is_over() -> None:
    scene = troupe(*LINES).scene("Tang Sanzang", "Monkey King", scenario="At dusk.", turns=3, **ROUND)
    assert [(turn.speaker, turn.text) for turn in scene] == list(zip(["tang", "wukong", "tang"], LINES, strict=False))
    assert scene.over == scene.stage.ended == "3 lines were said" and scene.waits_for is None
    assert list(scene) == [] and scene.next() is None
    assert "At dusk." in prompt_text(player_of(scene), 0)


def test_the_whole_cast_plays_where_nobody_is_named() -> None:
    assert troupe().scene().present == ("wukong", "bajie", "tang")


def test_a_program_plays_what_the_terminal_plays(tmp_path: Path) -> None:
    script = tmp_path / "inn.yaml"
    script.write_text(
        "participants: [tang, wukong]\nseed: 3\nturns: 6\nsteps:\n  - {speaker: Guard, text: Halt!}\n"
        "  - {next: wukong}\n  - {leave: tang}\n  - {enter: Pigsy}\n  - {free: 1}\n  - {enter: tang}\n".replace(
            "[tang, wukong]", "[tang, wukong, Guard]"
        ),
        encoding="utf-8",
        newline="\n",
    )
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    play_scene(scripted(CAST, *LINES, "So."), Asked(script=script), out=one)
    scene = troupe(*LINES, "So.").scene(script=script, out=two)
    kinds = [turn.row() for turn in scene]
    assert {"leave": "tang"} in kinds and {"enter": "bajie"} in kinds and kinds[0]["text"] == "Halt!"
    assert two.read_bytes() == one.read_bytes()


def test_a_scene_stops_for_a_person_and_goes_on_after_its_line() -> None:
    scene = troupe("Welcome.", "Two coins? Ha!").scene("tang", "wukong", persons=["Innkeeper"], turns=4, **ROUND)
    assert [turn.speaker for turn in scene] == ["tang", "wukong"]
    assert scene.waits_for == "Innkeeper" and scene.over == ""
    with pytest.raises(InputError, match="it is Innkeeper's turn"):
        scene.stream()
    with pytest.raises(InputError, match="has no text"):
        scene.say("Innkeeper", " \x00 ")
    assert scene.say("Innkeeper", "Rooms are two coins.\x07") == Turn("Innkeeper", "Rooms are two coins.")
    assert scene.waits_for is None


def test_a_step_of_a_person_is_taken_up_by_its_line_or_its_silence() -> None:
    steps = [{"next": "Bob"}, {"next": "wukong"}, {"next": "Bob"}, {"next": "wukong"}]
    scene = troupe("Ha!", "Ho!").scene("wukong", persons=["Bob"], steps=steps)
    assert list(scene) == [] and scene.waits_for == "Bob"
    scene.say("Bob", "Hello.")
    assert [turn.text for turn in scene] == ["Ha!"] and scene.waits_for == "Bob"
    scene.skip("Bob")
    assert [turn.text for turn in scene] == ["Ho!"] and scene.over == "the script is at its end"


def test_with_a_manual_director_the_program_names_who_speaks() -> None:
    scene = troupe("Food?", "").scene("wukong", "bajie", director="manual")
    assert list(scene) == [] and scene.waits_for == ""
    with pytest.raises(InputError, match="nobody decides"):
        scene.stream()
    assert scene.next("Pigsy") == Turn("bajie", "Food?")
    assert scene.next("wukong") is None and scene.stage.silences == ["wukong"]
    with pytest.raises(InputError, match="no character 'wukon'") as caught:
        scene.next("wukon")
    assert "wukong" in caught.value.fix
    with pytest.raises(InputError, match="is not there"):
        scene.next("tang")


def test_who_is_away_does_not_hear() -> None:
    scene = troupe("Ha!").scene("tang", "wukong", director="manual")
    scene.leave("tang")
    scene.say("wukong", "The peach is mine.")
    scene.enter("Tang Sanzang")
    scene.next("tang")
    assert "peach" not in prompt_text(player_of(scene)) and scene.present == ("wukong", "tang")


def test_a_line_comes_in_pieces_and_one_that_is_closed_was_not_said() -> None:
    scene = troupe("One two three.", "One two three.").scene("tang", "wukong", steps=[{"leave": "tang"}, {"free": 1}])
    spoken = scene.stream()
    assert spoken.speaker == "wukong" and scene.present == ("wukong",)
    next(iter(spoken))
    spoken.close()
    assert spoken.turn is None
    again = scene.stream()
    assert "".join(again) == "One two three." and again.turn == Turn("wukong", "One two three.")
    with pytest.raises(InputError, match="the scene is over"):
        scene.stream()


def test_the_same_for_asyncio() -> None:
    async def play() -> tuple[list[str], str, list[str]]:
        scene = troupe(*LINES).scene("tang", "wukong", turns=4, **ROUND)
        first = await scene.anext()
        piece = [piece async for piece in scene.stream()]
        assert first is not None and first.text == LINES[0]
        return [turn.text async for turn in scene], "".join(piece), [turn.text for turn in scene.turns]

    assert asyncio.run(play()) == (LINES[2:], LINES[1], LINES)


def test_scenes_at_once_do_not_mix() -> None:
    here = troupe(*["Ha!"] * 8)

    async def play(name: str) -> list[str]:
        return [turn.text async for turn in here.scene("tang", "wukong", scenario=name, turns=2)]

    async def both() -> list[list[str]]:
        return await asyncio.gather(play("An inn."), play("A road."))

    assert asyncio.run(both()) == [["Ha!", "Ha!"]] * 2
    prompts = [prompt_text(here.player, k) for k in range(4)]  # type: ignore[arg-type]
    assert sum("An inn." in text for text in prompts) == sum("A road." in text for text in prompts) == 2


def test_a_cancelled_task_leaves_the_line_unsaid() -> None:
    here = troupe("One two three four five six seven eight.")
    go, begun = threading.Event(), threading.Event()
    engine: Any = here.player.engine
    stream = engine.stream

    def slow(request: Any) -> Any:
        for token in stream(request):
            yield token
            begun.set()
            assert go.wait(10)

    engine.stream = slow
    scene = here.scene("tang")

    async def cancel() -> None:
        task = asyncio.create_task(scene.anext())
        await asyncio.to_thread(begun.wait, 10)
        task.cancel()
        await asyncio.sleep(0)
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert engine.closed == 1 and scene.turns == ()


def test_a_file_keeps_a_scene_that_goes_on_from_it(tmp_path: Path) -> None:
    out = tmp_path / "inn.jsonl"
    scene = troupe(*LINES).scene("tang", "wukong", turns=4, out=out, **ROUND)
    assert scene.next() and scene.next()
    again = troupe(*LINES[2:]).scene(out=out)
    assert [turn.text for turn in again] == LINES[2:]
    with pytest.raises(InputError, match="another scene"):
        troupe().scene("tang", out=out)
    native, readable = again.save(tmp_path / "kept")
    (found,) = read_dialogues(native, CAST)
    assert isinstance(found, Scene) and [turn.text for turn in found.turns] == LINES
    assert "**Tang Sanzang:** Who is there?" in readable.read_text(encoding="utf-8")


def test_lore_and_memory_can_be_seen_and_told_anew() -> None:
    cast = CAST.model_copy(update={"lore": [LoreEntry(keys=["staff"], text="It is heavy.")]})
    line = "We walk on and on, and the road does not end before the night falls upon us."
    here = Troupe(scripted(cast, *[line] * 30, context_tokens=500, max_new_tokens=40))
    scene = here.scene("tang", "wukong", memory=0, turns=30, **ROUND)
    with pytest.raises(InputError, match="still sees everything"):
        scene.remember("tang", "A peach.")
    scene.say("tang", "Your staff?")
    assert [(used.place, used.why) for used in scene.lore("Monkey King")] == [("cast.lore[0]", "staff")]
    while not scene.memory("wukong").dropped:
        assert scene.next()
    scene.remember("Monkey King", "I owe a peach.")
    assert scene.memory("wukong").summary == "I owe a peach."


@pytest.mark.parametrize(
    ("characters", "options", "words"),
    [
        (["wukon"], {}, ["no character 'wukon'", "participants.0", "did you mean 'wukong'"]),
        (["tang"], {"turns": 0}, ["turns"]),
        (["tang"], {"directr": "natural", "each": 0}, ["directr", "each"]),
        (["tang"], {"steps": [{"next": "bajie"}]}, ["is not there", "steps.0.next"]),
        (["tang"], {"steps": [{"free": 1, "next": "tang"}]}, ["a step is one thing"]),
    ],
)
def test_what_cannot_be_played_is_told(characters: list[str], options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(MrpError) as caught:
        troupe().scene(*characters, **options)
    assert all(word in str(caught.value) for word in words)


def test_a_plain_model_plays_no_scene() -> None:
    with pytest.raises(InputError, match="has no cast"):
        Troupe(scripted(None)).scene()


def test_an_engine_that_dies_leaves_the_scene_as_it_was_before_the_line(tmp_path: Path) -> None:
    out = tmp_path / "inn.jsonl"
    here = troupe("Who is there?", "Me!")
    scene = here.scene("tang", "wukong", turns=2, out=out, **ROUND)
    assert scene.next()
    engine: Any = here.player.engine
    stream = engine.stream

    def dying(request: Any) -> Any:
        yield next(stream(request))
        raise RuntimeError("out of memory")

    engine.stream = dying
    with pytest.raises(RuntimeError):
        scene.next()
    assert [turn.text for turn in scene.turns] == ["Who is there?"]
    assert [turn.text for turn in troupe("Me!").scene(out=out)] == ["Me!"]
