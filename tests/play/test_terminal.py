"""The chat in a terminal: what a person types, sees, and can save."""

from __future__ import annotations

import io
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from scripted import CAST, ScriptedPlayer, prompt_text, scripted

from mrp.cast import OTHER
from mrp.data.read import read_dialogues
from mrp.dialogue import Scene, Turn
from mrp.errors import InputError
from mrp.play.terminal import TerminalChat
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
            self.row = TerminalChat(player, as_, me, more.pop("seed", None), report).run()
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


# -- commands ------------------------------------------------------------------------------------------------------


def test_help_lists_every_command() -> None:
    out = "\n".join(Session(scripted(CAST), "/help").out)
    for name in ("/as NAME", "/retry", "/save FILE", "/help", "/quit", "Ctrl-C", "Ctrl-D"):
        assert name in out


@pytest.mark.parametrize(
    ("line", "fix"), [("/hlp", "'/help'"), ("/AS x", "'/as'"), ("/foo", "known: /as, /help"), ("/", "known: ")]
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
