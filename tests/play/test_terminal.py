"""The chat in a terminal: what a person types, sees, and can save."""

from __future__ import annotations

import io
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scripted import CAST, ScriptedPlayer, prompt_text, scripted

from mrp.cast import OTHER, Cast
from mrp.data.read import read_dialogues
from mrp.dialogue import Scene, Turn
from mrp.errors import InputError
from mrp.lore import LoreEntry
from mrp.play.chat_commands import COMMANDS
from mrp.play.terminal import TerminalChat
from mrp.play.transcript import latest_chat, load_chat
from mrp.report import ConsoleReporter

GREETING = "Sun Wukong: Ha! Who calls Old Monkey?"
HEAD = "You talk with Sun Wukong. /help lists the commands."


class Session:
    """A chat with lines from a pipe; `out` and `err` are what was printed, `row` what came back."""

    def __init__(
        self, player: ScriptedPlayer, *lines: str, as_: str | None = None, me: str | None = None, **more: Any
    ) -> None:
        report = ConsoleReporter(io.StringIO(), quiet=more.pop("quiet", False))
        report.err.file = io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))
            self.chat = TerminalChat(player, as_, me, more.pop("seed", None), report, **more)
            self.row = self.chat.run()
        self.player = player
        self.out = report.out.file.getvalue().splitlines()  # type: ignore[attr-defined]
        self.err = report.err.file.getvalue()  # type: ignore[attr-defined]


def read_back(path: Path) -> Scene:
    (scene,) = read_dialogues(path, CAST)
    assert isinstance(scene, Scene), scene
    return scene


# -- talking -------------------------------------------------------------------------------------------------------


def test_the_greeting_comes_first_and_is_part_of_what_was_said() -> None:
    session = Session(scripted(CAST, "Old Monkey!", "East."), "Who are you?", "", "Where from?")
    assert session.out == [HEAD, GREETING, "Sun Wukong: Old Monkey!", "Sun Wukong: East."]
    assert "Who calls Old Monkey?" in prompt_text(session.player, 0)
    assert [t["speaker"] for t in session.row["turns"]] == ["wukong", OTHER, "wukong", OTHER, "wukong"]


def test_a_character_without_a_greeting_waits() -> None:
    assert Session(scripted(CAST), as_="Pigsy").out == ["You talk with Zhu Bajie. /help lists the commands."]


def test_quiet_prints_what_is_said_and_nothing_else() -> None:
    session = Session(scripted(CAST, "Aye!", max_new_tokens=1), "Hm?", "/as bajie", quiet=True)
    assert session.out == [GREETING, "Sun Wukong: A"]


@pytest.mark.parametrize("last", [["/quit", "Are you there?"], []])
def test_quit_and_the_end_of_input_end_the_chat(last: list[str]) -> None:
    session = Session(scripted(CAST, "Old Monkey!"), "Who are you?", *last)
    assert len(session.player.engine.prompts) == 1
    assert session.row["turns"][-1] == {"speaker": "wukong", "text": "Old Monkey!"}


def test_a_person_with_a_name_is_called_by_it() -> None:
    session = Session(scripted(CAST, "Hm.", "Buns."), "Hello", "/as bajie", "Eat!", me=" Bob ")
    assert session.row["participants"] == ["wukong", "bajie", "Bob"]
    assert "Bob: Eat!" in prompt_text(session.player)


def test_a_person_may_play_a_character() -> None:
    session = Session(scripted(CAST, "Pig!"), "Where is the food?", me="Pigsy")
    assert session.row["participants"] == ["wukong", "bajie"]
    assert session.row["turns"][1] == {"speaker": "bajie", "text": "Where is the food?"}


@pytest.mark.parametrize(
    ("as_", "me", "what"),
    [
        ("nobody", None, "no character 'nobody' in the cast"),
        ("wukong", "Monkey King", "cannot be you and the one who answers"),
        (None, " ", "is no name"),
        (None, "Bob\nEve", "is no name"),
    ],
)
def test_names_that_cannot_be_are_told(as_: str | None, me: str | None, what: str) -> None:
    with pytest.raises(InputError, match=what) as caught:
        Session(scripted(CAST), as_=as_, me=me)
    assert caught.value.where in ("--as", "--me") and caught.value.fix


def test_a_plain_model_answers_as_itself() -> None:
    session = Session(scripted(None, "Hello!"), "Hi", "/as wukong")
    assert session.out == [
        "You talk with the plain model (no cast was given). /help lists the commands.",
        "model: Hello!",
    ]
    assert "this model has no cast" in session.err
    with pytest.raises(InputError, match="no cast"):
        Session(scripted(None), as_="wukong")


def test_equal_seeds_give_equal_seeds_to_the_engine_and_each_reply_its_own() -> None:
    lines = ("Hi", "/retry", "More")
    seeds = [
        [s.seed for s in Session(scripted(CAST, "a", "b", "c"), *lines, seed=seed).player.engine.samplings]
        for seed in (5, 5, None)
    ]
    assert seeds[0] == seeds[1] and len(set(seeds[0])) == 3
    assert seeds[2] == [None, None, None]


def test_a_reply_that_was_cut_and_one_that_is_empty_are_told() -> None:
    session = Session(scripted(CAST, "Aye!", "\n", max_new_tokens=1), "Hm?", "Hm?")
    assert "(cut off after 1 tokens; chat.max_new_tokens allows more)" in session.out
    empty = Session(scripted(CAST, "Zhu Bajie: Buns!"), "Hm?")
    assert empty.out[-1] == "(said nothing; /retry asks again)"


def test_what_no_longer_fits_is_counted_for_the_person() -> None:
    replies = ["Old Monkey fears nothing under heaven!"] * 6
    session = Session(
        scripted(CAST, *replies, context_tokens=150, max_new_tokens=40), *["And what do you say to that?"] * 6
    )
    told = [line for line in session.out if "no longer fit" in line]
    assert told and told[-1].startswith("(the ")


def test_a_line_too_long_for_the_model_is_told_and_taken_back() -> None:
    session = Session(scripted(CAST, "Aye.", context_tokens=120, max_new_tokens=20), "word " * 200, "Short?")
    assert "tokens are allowed" not in session.err and "are allowed" in session.err
    assert [t["text"] for t in session.row["turns"][1:]] == ["Short?", "Aye."]


def test_ctrl_c_stops_a_reply_and_not_the_chat() -> None:
    player = scripted(CAST, "One two three four.", "Five!")
    player.engine.interrupt_at = 4
    session = Session(player, "Count.", "Go on.")
    assert session.out[2].endswith(" ...") and session.out[3] == "Sun Wukong: Five!"
    shown = session.out[2].removeprefix("Sun Wukong: ").removesuffix(" ...")
    assert session.row["turns"][2] == {"speaker": "wukong", "text": shown}
    assert shown and "One two three four.".startswith(shown)


def test_ctrl_c_before_the_first_word_leaves_the_line_to_be_answered_again() -> None:
    player = scripted(CAST, "One two.", "Again!")
    player.engine.interrupt_at = 0
    session = Session(player, "Count.", "/retry")
    assert [t["text"] for t in session.row["turns"][1:]] == ["Count.", "Again!"]


# -- who answers ---------------------------------------------------------------------------------------------------


def test_with_auto_whoever_is_called_answers_until_another_is() -> None:
    lines = ("Who are you?", "Pigsy, any buns?", "How many?", "/why", "And you, Monkey King?", "/why")
    session = Session(scripted(CAST, "Me.", "Buns.", "Nine.", "Old Monkey!"), *lines, as_="auto")
    assert session.out[0] == (
        "You talk with Sun Wukong, Zhu Bajie, Tang Sanzang; whoever you call answers. /help lists the commands."
    )
    assert [t["speaker"] for t in session.row["turns"]] == [
        *("wukong", OTHER, "wukong", OTHER, "bajie", OTHER, "bajie", OTHER, "wukong")
    ]
    told = "\n".join(session.out)
    assert "Zhu Bajie answers on: nobody is named" in told and "'monkey king' is called at the end" in told
    assert session.row["participants"] == ["wukong", "bajie", OTHER]


def test_as_pins_a_character_and_as_auto_frees_the_choice() -> None:
    lines = ("/as tang", "Pigsy, come!", "/why", "/as auto", "Pigsy, come!")
    session = Session(scripted(CAST, "Peace.", "Coming."), *lines, as_="auto")
    assert [t["speaker"] for t in session.row["turns"]][2::2] == ["tang", "bajie"]
    assert any("you chose" in line for line in session.out)


def test_a_person_who_plays_a_character_is_never_who_answers() -> None:
    session = Session(scripted(CAST, "Who?", "No."), "Monkey King, come!", "Me?", as_="auto", me="wukong")
    assert {t["speaker"] for t in session.row["turns"]} == {"wukong", "bajie"}
    assert session.row["participants"] == ["bajie", "wukong"]


def test_a_call_of_nobody_is_told_with_the_nearest_name() -> None:
    session = Session(scripted(CAST), "@Pigzy are you there?", as_="auto")
    assert "nobody here is called 'Pigzy'" in session.err and "'pigsy'" in session.err
    assert len(session.row["turns"]) == 1


# -- what goes wrong -----------------------------------------------------------------------------------------------


def dies_after(player: ScriptedPlayer, count: int) -> None:
    """The engine of `player` dies once, after so many tokens."""
    stream = player.engine.stream

    def dying(request: Any) -> Any:
        for number, token in enumerate(stream(request)):
            if number == count:
                player.engine.stream = stream  # type: ignore[method-assign]
                raise RuntimeError("out of memory")
            yield token

    player.engine.stream = dying  # type: ignore[method-assign]


def test_an_engine_that_dies_ends_neither_the_chat_nor_what_was_said(tmp_path: Path) -> None:
    player = scripted(CAST, "One two three four five.", "Again!", "More.")
    dies_after(player, 6)
    session = Session(player, "Count.", "Go on.", folder=tmp_path)
    assert "the reply failed: RuntimeError: out of memory" in session.err and "Traceback" not in session.err
    texts = [t["text"] for t in session.row["turns"]]
    assert (
        texts[1] == "Count." and "One two three four five.".startswith(texts[2]) and texts[3:] == ["Go on.", "Again!"]
    )
    (path,) = tmp_path.glob("*.jsonl")
    assert [t.text for t in load_chat(path, CAST).turns] == texts


def test_an_engine_that_dies_before_the_first_word_leaves_the_line(tmp_path: Path) -> None:
    player = scripted(CAST, "One.", "Two.")
    dies_after(player, 0)
    session = Session(player, "Count.", "/retry", folder=tmp_path)
    assert [t["text"] for t in session.row["turns"][1:]] == ["Count.", "Two."]


def test_a_retry_during_which_the_engine_dies_keeps_a_reply() -> None:
    player = scripted(CAST, "One.", "Two three four.")
    session = Session(player, "Count.")
    dies_after(player, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.StringIO("/retry\n"))
        row = session.chat.run()
    assert row["turns"][2] == {"speaker": "wukong", "text": "One."}


def test_a_line_of_a_megabyte_is_refused_and_the_chat_goes_on() -> None:
    session = Session(scripted(CAST, "Aye."), "x" * 2**20, "Short?")
    assert "1,048,576 characters is too long" in session.err and len(session.err) < 1000
    assert [t["text"] for t in session.row["turns"][1:]] == ["Short?", "Aye."]


def test_a_line_of_nothing_but_controls_is_not_said() -> None:
    session = Session(scripted(CAST), "\x01\x02")
    assert "nothing is left of this line" in session.err and len(session.row["turns"]) == 1


def test_a_line_that_imitates_another_is_mended_with_a_word() -> None:
    session = Session(scripted(CAST, "Hm."), "Zhu Bajie: I agree")
    assert session.row["turns"][1]["text"] == "Zhu Bajie, I agree"
    assert "(your line began like somebody else's turn, so its colon became a comma)" in session.out


# -- kept while it is said -----------------------------------------------------------------------------------------


def test_the_chat_is_kept_line_by_line_and_load_goes_on_with_it(tmp_path: Path) -> None:
    first = Session(scripted(CAST, "Old Monkey!", "Buns."), "Who?", "/as bajie", "And you?", me="Bob", folder=tmp_path)
    (path,) = tmp_path.glob("*.jsonl")
    assert first.out[-1] == f"(kept in {path}; /load goes on with it)"
    again = Session(scripted(CAST, "More buns."), "/load", "More?", folder=tmp_path)
    assert again.row["turns"] == [*first.row["turns"], *again.row["turns"][-2:]]
    assert again.row["turns"][-2:] == [{"speaker": "Bob", "text": "More?"}, {"speaker": "bajie", "text": "More buns."}]
    assert f"loaded {path}: 5 lines:" in again.out
    newest = latest_chat(tmp_path, path)
    assert newest is not None and [t.text for t in load_chat(newest, CAST).turns] == [
        t["text"] for t in again.row["turns"]
    ]


def test_a_saved_chat_is_loaded_too(tmp_path: Path) -> None:
    saved = Session(scripted(CAST, "Aye."), "Hm?", f"/save {tmp_path / 'c.jsonl'}")
    again = Session(scripted(CAST, "Aye!"), f"/load {tmp_path / 'c.jsonl'}", "/retry", as_="bajie")
    assert again.row["turns"] == [*saved.row["turns"][:-1], {"speaker": "wukong", "text": "Aye!"}]
    plain = Session(scripted(None, "Hello!"), "Hi", f"/save {tmp_path / 'p.jsonl'}")
    back = Session(scripted(None, "Yes."), f"/load {tmp_path / 'p.jsonl'}", "Sure?")
    assert back.row["turns"] == [*plain.row["turns"], *back.row["turns"][2:]] and len(back.row["turns"]) == 4


@pytest.mark.parametrize("line", ["/load", "/load nowhere.jsonl"])
def test_a_chat_that_is_not_there_is_told(line: str, tmp_path: Path) -> None:
    session = Session(scripted(CAST, "Aye."), line, "Hm?", folder=tmp_path)
    assert "fix:" in session.err and session.row["turns"][-1]["text"] == "Aye."


def test_a_folder_that_takes_no_chat_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    session = Session(scripted(CAST, "Aye.", "Aye!"), "Hm?", "Hm!", folder=tmp_path / "file")
    assert session.err.count("no longer kept") == 1 and session.row["turns"][-1]["text"] == "Aye!"


def test_opening_and_leaving_keeps_nothing(tmp_path: Path) -> None:
    Session(scripted(CAST), "/quit", folder=tmp_path)
    assert not list(tmp_path.iterdir())


# -- commands ------------------------------------------------------------------------------------------------------


def test_help_lists_every_command() -> None:
    out = "\n".join(Session(scripted(CAST), "/help").out)
    for name in (*COMMANDS, "/as NAME", "/save FILE", "Ctrl-C", "Ctrl-D"):
        assert name in out


@pytest.mark.parametrize(
    ("line", "fix"), [("/hlp", "'/help'"), ("/AS x", "'/as'"), ("/foo", "known: /as, /edit"), ("/", "known: ")]
)
def test_an_unknown_command_is_told_with_the_nearest_and_not_said(line: str, fix: str) -> None:
    session = Session(scripted(CAST), line)
    assert f"unknown command {line.split()[0]!r}" in session.err and fix in session.err
    assert len(session.row["turns"]) == 1  # the greeting


def test_another_character_answers_and_knows_who_said_what() -> None:
    session = Session(scripted(CAST, "Old Monkey!", "Buns."), "Who are you?", "/as Pigsy", "And you?")
    assert session.out[-2:] == ["Now Zhu Bajie answers.", "Zhu Bajie: Buns."]
    assert session.row["participants"] == ["wukong", "bajie", OTHER]
    assert "Sun Wukong: Old Monkey!\nSomeone: And you?" in prompt_text(session.player)


@pytest.mark.parametrize(
    ("line", "what"),
    [("/as", "Zhu Bajie (/as bajie)"), ("/as Monky King", "did you mean 'Monkey King'?"), ("/as bajie", "is you")],
)
def test_a_name_that_cannot_answer_is_told(line: str, what: str) -> None:
    session = Session(scripted(CAST, "Aye."), line, "Still there?", me="bajie")
    assert what in session.err
    assert session.out[-1] == "Sun Wukong: Aye."


def test_retry_gives_another_reply_to_the_same_line() -> None:
    player = scripted(CAST, "Old Monkey!", "The Great Sage!", "Ha!")
    session = Session(player, "Who are you?", "/retry", "/retry")
    assert player.engine.prompts[0] == player.engine.prompts[1] == player.engine.prompts[2]
    assert [t["text"] for t in session.row["turns"][1:]] == ["Who are you?", "Ha!"]


def test_retry_after_a_switch_lets_the_other_answer_instead() -> None:
    session = Session(scripted(CAST, "Old Monkey!", "A pig."), "Who are you?", "/as bajie", "/retry")
    assert session.row["turns"][1:] == [
        {"speaker": OTHER, "text": "Who are you?"},
        {"speaker": "bajie", "text": "A pig."},
    ]
    assert "Old Monkey!" not in prompt_text(session.player)


def test_retry_before_anything_was_said_keeps_the_greeting() -> None:
    session = Session(scripted(CAST, "Aye."), "/retry", "Hm?")
    assert "say something first" in session.err
    assert [t["text"] for t in session.row["turns"]] == ["Ha! Who calls Old Monkey?", "Hm?", "Aye."]


def test_a_retry_that_fails_keeps_the_reply_that_was() -> None:
    wordy = CAST.characters[2].model_copy(update={"persona": "You are a monk. " * 50})
    cast = CAST.model_copy(update={"characters": [*CAST.characters[:2], wordy]})
    session = Session(scripted(cast, "Aye.", context_tokens=200, max_new_tokens=20), "Hm?", "/as tang", "/retry")
    assert "are allowed" in session.err
    assert session.row["turns"][-1] == {"speaker": "wukong", "text": "Aye."}


def test_a_saved_chat_is_a_scene_that_data_build_reads(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "chat.jsonl"
    session = Session(
        scripted(CAST, "Red\x1b[31m\x07 Monkey\nof two lines", "Buns."),
        "Who are\x00 you?",
        "/as bajie",
        "And you?",
        f"/save {path}",
        "/quit",
    )
    assert session.out[-1] == f"saved {path}"
    scene = read_back(path)
    assert scene.participants == ("wukong", "bajie", OTHER)
    assert scene.turns == (
        Turn("wukong", "Ha! Who calls Old Monkey?"),
        Turn(OTHER, "Who are you?"),
        Turn("wukong", "Red[31m Monkey\nof two lines"),
        Turn(OTHER, "And you?"),
        Turn("bajie", "Buns."),
    )
    assert json.loads(path.read_text(encoding="utf-8")) == session.row


def test_a_chat_saved_as_markdown_is_for_people(tmp_path: Path) -> None:
    path = tmp_path / "chat.md"
    Session(scripted(CAST, "Aye."), "Hm?", f"/save {path}")
    assert path.read_text(encoding="utf-8") == (
        "**Sun Wukong:** Ha! Who calls Old Monkey?\n\n**Someone:** Hm?\n\n**Sun Wukong:** Aye.\n"
    )


def test_undo_takes_back_a_line_and_its_reply() -> None:
    session = Session(scripted(CAST, "One.", "Two."), "First.", "Second.", "/undo", "/undo", "/undo")
    assert [t["text"] for t in session.row["turns"]] == ["Ha! Who calls Old Monkey?"]
    assert "taken back: Second. (and 1 after it)" in session.out and "no line of yours to take back" in session.err


def test_edit_says_the_last_line_anew() -> None:
    session = Session(scripted(CAST, "One.", "Two."), "Frist.", "/edit First.", "/edit")
    assert [t["text"] for t in session.row["turns"][1:]] == ["First.", "Two."]
    assert "a text is missing" in session.err and "Frist" not in prompt_text(session.player)


def test_an_edit_that_cannot_be_asked_changes_nothing() -> None:
    long = "word " * 200
    session = Session(scripted(CAST, "One.", context_tokens=120, max_new_tokens=20), "First.", f"/edit {long}")
    assert [t["text"] for t in session.row["turns"][1:]] == ["First.", "One."]


def test_another_greeting_before_the_first_line() -> None:
    monkey = CAST.characters[0].model_copy(update={"alternate_greetings": ["Hey, {{user}}!", "Hm."]})
    cast = CAST.model_copy(update={"characters": [monkey, *CAST.characters[1:]]})
    session = Session(scripted(cast, "Aye."), "/greeting", "/greeting 2", "/greeting 9", "Hi", "/greeting 1", me="Bob")
    assert [t["text"] for t in session.row["turns"]] == ["Hey, Bob!", "Hi", "Aye."]
    assert "2. Hey, Bob!" in session.out
    assert "no greeting '9'" in session.err and "begun already" in session.err


def knowing() -> Cast:
    """The cast, where Sun Wukong knows of his staff and Zhu Bajie of buns."""
    lore = {
        "wukong": [
            LoreEntry(keys=["staff"], text="It is heavy."),
            LoreEntry(keys=["staff"], text="long " * 90, order=1),
        ],
        "bajie": [LoreEntry(keys=[], constant=True, text="One bun is left.")],
    }
    found = [c.model_copy(update={"lore": lore.get(c.id, [])}) for c in CAST.characters]
    return CAST.model_copy(update={"characters": found})


def test_lore_shows_what_the_next_prompt_holds_and_why() -> None:
    player = scripted(knowing(), "Ha!", "A good staff.")
    session = Session(player, "/lore", "Hm.", "Your staff?", "/lore", "/lore Pigsy", "/lore Wukon", lore=40)
    assert session.out[2] == "Sun Wukong is told nothing beside the persona now."
    shown = session.out[session.out.index("Sun Wukong: A good staff.") + 1 :]
    assert shown == [
        "wukong.lore[0] (staff): It is heavy.",
        "left out, as 40 tokens at most are told (--lore): wukong.lore[1]",
        "bajie.lore[0] (always): One bun is left.",
    ]
    assert "Known to Sun Wukong: It is heavy." in prompt_text(player) and "heavy" not in prompt_text(player, 0)
    assert "did you mean 'wukong'" in session.err


def long_chat(
    *after: str, folder: Path | None = None, on_prompt: Callable[[str], None] = lambda _: None, **more: Any
) -> Session:
    """A chat in which old messages no longer fit; where a summary is asked for, the engine writes one."""
    player = scripted(CAST, context_tokens=400, max_new_tokens=40)
    engine, line = player.engine, "We walk on and on, and the road does not end before the night falls."

    class Replies(list[list[int]]):
        def __getitem__(self, k: Any) -> Any:
            prompt = str(player.tokenizer.decode(engine.prompts[k]))
            on_prompt(prompt)
            return player.template.plain.ids("They walked." if "Write the summary" in prompt else line, "")

    engine.replies = Replies()
    return Session(player, *[f"Question {k}?" for k in range(10)], *after, folder=folder, **more)


def test_memory_is_told_shown_and_replaced() -> None:
    session = long_chat(
        "/memory", "/memory Monkey King I owe a peach.", "/retry", "/memory wukong", "/memory Pig x", "/memory bajie x"
    )
    (told, *_) = [line for line in session.out if "no longer fit" in line]
    assert told.endswith("; /memory wukong shows what is remembered of them)")
    memories = [line for line in session.out if "messages dropped" in line]
    assert memories[0].endswith("dropped) They walked.") and memories[1].endswith("dropped) I owe a peach.")
    assert memories[2] == memories[1], "/retry took the person's words away"
    assert "[Earlier: I owe a peach.]" in prompt_text(session.player)
    assert "did you mean 'Pigsy'" in session.err and "Zhu Bajie still sees everything" in session.err


def test_ctrl_c_while_something_is_summed_up_leaves_the_line_and_the_memory_as_they_were() -> None:
    class Stopped:
        done = False

    def summing_up(prompt: str) -> None:
        if "Write the summary" in prompt and not Stopped.done:
            Stopped.done = True
            raise KeyboardInterrupt

    session = long_chat("/memory", "/retry", "/memory", on_prompt=summing_up)
    assert Stopped.done and session.out.count("(said nothing; /retry asks again)") == 1
    assert session.out[-1].endswith("messages dropped) They walked.")
    assert [turn["text"] for turn in session.row["turns"] if turn["speaker"] == OTHER] == [
        f"Question {k}?" for k in range(10)
    ]


def test_without_a_memory_nothing_is_summed_up() -> None:
    session = long_chat("/memory", memory=0)
    assert any(line.endswith("oldest messages no longer fit into the context)") for line in session.out)
    assert session.out[-1].endswith("messages dropped) nothing")
    assert all(
        "Write the summary" not in prompt_text(session.player, k) for k in range(len(session.player.engine.prompts))
    )


def test_a_memory_is_kept_with_the_chat(tmp_path: Path) -> None:
    long_chat("/memory wukong I owe a peach.", folder=tmp_path)
    kept = latest_chat(tmp_path)
    assert kept is not None
    (last,) = load_chat(kept, CAST).memories["wukong"][-1:]
    assert last.summary == "I owe a peach." and 0 < last.turns <= len(load_chat(kept, CAST).turns)
    player = scripted(CAST, "Aye.", context_tokens=400, max_new_tokens=40)
    again = Session(player, f"/load {kept}", "/memory", "And?")
    assert any(line.endswith("dropped) I owe a peach.") for line in again.out)
    assert "[Earlier: I owe a peach.]" in prompt_text(player, 0)


def test_a_memory_of_what_was_taken_back_is_not_loaded(tmp_path: Path) -> None:
    long_chat(*["/undo"] * 10, "Hello.", folder=tmp_path)
    kept = latest_chat(tmp_path)
    assert kept is not None and '"memory"' in kept.read_text(encoding="utf-8")
    assert not any(load_chat(kept, CAST).memories.values())


def test_set_changes_how_the_next_reply_is_sampled() -> None:
    player = scripted(CAST, "a", "b", "c")
    session = Session(player, "Hi", "/set temperature 0.9", "/set chat.max_new_tokens=7", "/set seed 3", "Hi", "/set")
    first, second = player.engine.samplings
    assert (first.temperature, first.seed) == (0.7, None)
    assert (second.temperature, second.max_new_tokens, second.seed) == (0.9, 7, 4)
    assert "temperature is 0.9 from now on" in session.out and "temperature 0.9" in session.out


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("/set temprature 1", "did you mean 'temperature'"),
        ("/set temperature hot", "temperature: "),
        ("/set temperature -1", "temperature: "),
        ("/set max_new_tokens 999999", "leaves no room"),
        ("/set context_tokens 9000", "9000 are more"),
        ("/set seed x", "is no seed"),
        ("/set temperature [", "broken YAML"),
    ],
)
def test_an_option_that_cannot_be_is_told(line: str, what: str) -> None:
    session = Session(scripted(CAST, "Aye."), line, "Hm?")
    assert what in session.err and "fix:" in session.err
    assert session.player.engine.samplings[0].temperature == 0.7


def test_no_color_takes_the_colour_from_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, coloured in ((None, True), ("1", False)):
        monkeypatch.delenv("NO_COLOR", raising=False)
        if value:
            monkeypatch.setenv("NO_COLOR", value)
        report = ConsoleReporter(io.StringIO())
        report.out = Console(file=io.StringIO(), force_terminal=True, color_system="standard", highlight=False)
        TerminalChat(scripted(CAST), None, None, None, report).print_name("wukong")
        assert ("36" in report.out.file.getvalue()) == coloured  # type: ignore[attr-defined]


def test_a_chat_with_somebody_of_a_name_is_read_back_too(tmp_path: Path) -> None:
    Session(scripted(CAST, "Aye."), "Hm?", f"/save {tmp_path / 'chat.jsonl'}", me="Bob")
    assert read_back(tmp_path / "chat.jsonl").participants == ("wukong", "Bob")


def test_saving_never_writes_over_a_file_and_never_ends_the_chat(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    session = Session(
        scripted(CAST, "Aye."), "/save", f"/save {tmp_path / 'mine'}", f"/save {tmp_path / 'mine' / 'x'}", "Hm?"
    )
    assert "a file is missing" in session.err and "exists already" in session.err
    assert "a file stands where a folder is wanted" in session.err
    assert (tmp_path / "mine").read_text() == "mine"
    assert session.out[-1] == "Sun Wukong: Aye."
    assert "nothing was said yet" in Session(scripted(CAST), "/save x", as_="bajie").err


# -- a real terminal -----------------------------------------------------------------------------------------------

TALK = """
import sys
sys.path.insert(0, sys.argv[1])
from scripted import CAST, scripted
from mrp.play.terminal import TerminalChat
from mrp.report import ConsoleReporter
player = scripted(CAST, "Old Monkey!", "East.")
print("DONE", TerminalChat(player, None, None, None, ConsoleReporter()).run()["turns"])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="only on systems with pseudo terminals")
def test_a_terminal_shows_a_prompt_colours_and_the_line_typed_before() -> None:
    import pty

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", TALK, str(Path(__file__).parent.parent)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "100"},
        start_new_session=True,
    )
    os.close(theirs)
    seen = b""
    for key in (b"Who are you?\r", b"\x1b[A\r", b"\x04"):  # a line, the same line again by arrow up, the end
        seen += until_prompt(ours)
        os.write(ours, key)
    seen += until_prompt(ours, b"DONE")
    process.wait(10)
    text = seen.decode()
    assert text.count("> ") >= 3
    assert "\x1b[1;36mSun Wukong: \x1b[0m" in text.replace("\x1b[36;1m", "\x1b[1;36m")
    assert text.count("{'speaker': 'other', 'text': 'Who are you?'}") == 2
    assert process.returncode == 0


def until_prompt(terminal: int, prompt: bytes = b"> ", seconds: float = 60) -> bytes:
    """What a terminal shows until the prompt comes."""
    seen = b""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                seen += os.read(terminal, 65536)
            except OSError:  # the other side is closed
                return seen
        elif prompt in seen:
            return seen
    raise AssertionError(f"no prompt in {seen!r}")
