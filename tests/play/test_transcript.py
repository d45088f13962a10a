"""The file of a chat: whatever was said is in it, at every moment, however the chat ends."""

from __future__ import annotations

import json
import os
import random
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scripted import CAST, scripted

from mrp.cast import OTHER, PLAIN
from mrp.dialogue import Scene, Turn
from mrp.errors import InputError, MrpError
from mrp.play.conversation import Conversation
from mrp.play.recall import Recall
from mrp.play.transcript import Transcript, latest_chat, load_chat, markdown, scene_row


@pytest.fixture
def chat() -> Conversation:
    chat = Conversation(scripted(CAST), ["wukong"], "Bob", "At the inn.")
    chat.say("Ha!", "wukong")
    return chat


def path_of(transcript: Transcript) -> Path:
    assert transcript.path is not None
    return transcript.path


def test_nothing_is_kept_before_the_person_says_something(chat: Conversation, tmp_path: Path) -> None:
    transcript = Transcript(tmp_path / "chats")
    transcript.sync(chat, "wukong")
    assert not (tmp_path / "chats").exists()
    chat.say("Hello.")
    transcript.sync(chat, "wukong")
    kept = load_chat(path_of(transcript), CAST)
    assert kept.turns == chat.turns and kept.scenario == "At the inn."
    assert (kept.participants, kept.person, kept.character) == (["wukong", "Bob"], "Bob", "wukong")


def test_after_every_change_the_file_holds_the_chat_and_only_grows(chat: Conversation, tmp_path: Path) -> None:
    transcript, before = Transcript(tmp_path), b""
    changes = [
        lambda: chat.say("One"),
        lambda: chat.say("Aye\nof two lines 俺", "wukong"),
        lambda: chat.turns.pop(),
        lambda: chat.say("Nay", "wukong"),
        lambda: chat.join("bajie"),
        lambda: chat.turns.__delitem__(slice(1, None)),
        lambda: chat.say("Two"),
        lambda: chat.turns.__setitem__(0, Turn("wukong", "Ho!")),
        lambda: chat.turns.clear(),
    ]
    for change in changes:
        change()
        transcript.sync(chat, "bajie")
        data = path_of(transcript).read_bytes()
        assert data.startswith(before)
        before = data
        kept = load_chat(path_of(transcript), CAST)
        assert (kept.turns, kept.participants, kept.character) == (chat.turns, chat.participants, "bajie")


def test_each_line_is_on_the_disk_before_the_next_thing_happens(
    chat: Conversation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[bytes] = []

    def fsync(handle: int) -> None:
        assert stat.S_ISREG(os.fstat(handle).st_mode)
        synced.append(path_of(transcript).read_bytes())

    transcript = Transcript(tmp_path)
    monkeypatch.setattr(os, "fsync", fsync)
    chat.say("One")
    transcript.sync(chat, "wukong")
    transcript.piece("wukong", "Aye. ")
    assert [b'"One"' in data for data in synced] == [True, True] and b"Aye. " in synced[-1]


def test_a_reply_that_a_crash_interrupts_is_kept_as_far_as_it_was_shown(chat: Conversation, tmp_path: Path) -> None:
    transcript = Transcript(tmp_path)
    chat.say("Tell me.")
    transcript.sync(chat, "wukong")
    for piece in ("Once", " upon a hill.", " There was", " a demon! And", " it"):
        transcript.piece("wukong", piece)
    kept = load_chat(path_of(transcript), CAST)
    assert kept.turns[-1] == Turn("wukong", "Once upon a hill. There was a demon! And")
    chat.say("Once upon a hill. There was a demon! And it", "wukong")
    transcript.sync(chat, "wukong")
    assert load_chat(path_of(transcript), CAST).turns == chat.turns


KILLED = """
import io, os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from scripted import CAST, scripted
from mrp.play.terminal import TerminalChat
from mrp.report import ConsoleReporter
player = scripted(CAST, "Ha!", "Buns! Many buns, and then some more.")
stream = player.engine.stream
def killed(request):
    for number, token in enumerate(stream(request)):
        yield token
        if len(player.engine.prompts) == 2 and number == 20:
            os.kill(os.getpid(), signal.SIGKILL)
player.engine.stream = killed
sys.stdin = io.StringIO("Who are you?\\nPigsy, any buns?\\n")
TerminalChat(player, "auto", "Bob", None, ConsoleReporter(), folder=Path(sys.argv[2])).run()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="only on systems with signals")
def test_a_chat_that_is_killed_in_a_reply_goes_on_where_it_was(tmp_path: Path) -> None:
    tests = str(Path(__file__).parent.parent)
    done = subprocess.run([sys.executable, "-c", KILLED, tests, str(tmp_path)], capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    (path,) = tmp_path.glob("*.jsonl")
    kept = load_chat(path, CAST)
    assert [turn.text for turn in kept.turns] == [
        "Ha! Who calls Old Monkey?",
        "Who are you?",
        "Ha!",
        "Pigsy, any buns?",
        "Buns!",
    ]
    assert (kept.character, kept.participants) == ("bajie", ["wukong", "bajie", "Bob"])


def test_a_last_line_cut_in_two_is_left_out_and_a_broken_one_before_is_told(chat: Conversation, tmp_path: Path) -> None:
    transcript = Transcript(tmp_path)
    chat.say("One")
    chat.say("Two")
    transcript.sync(chat, "wukong")
    path, whole = path_of(transcript), path_of(transcript).read_bytes()
    path.write_bytes(whole[:-9])
    assert load_chat(path, CAST).turns == chat.turns[:-1]
    path.write_bytes(whole.replace(b'{"speaker": "Bob", "text": "One"}', b'{"speaker": "Bob", "te'))
    with pytest.raises(InputError, match="not a line of a chat") as caught:
        load_chat(path, CAST)
    assert caught.value.where.endswith(":3")


def test_two_chats_at_once_have_files_of_their_own(chat: Conversation, tmp_path: Path) -> None:
    both = [Transcript(tmp_path), Transcript(tmp_path)]
    chat.say("One")
    for transcript in both:
        transcript.sync(chat, "wukong")
    assert path_of(both[0]) != path_of(both[1])
    assert latest_chat(tmp_path, path_of(both[1])) == path_of(both[0])
    assert latest_chat(tmp_path / "none") is None


def test_a_folder_that_cannot_be_written_is_told(chat: Conversation, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    chat.say("One")
    with pytest.raises(MrpError, match="cannot write"):
        Transcript(tmp_path / "file" / "chats").sync(chat, "wukong")


def test_a_saved_scene_is_loaded_with_its_person_last(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    turns = [{"speaker": "Bob", "text": "Hi"}, {"speaker": "bajie", "text": "Buns!"}]
    path.write_text(json.dumps({"participants": ["Bob", "bajie", "wukong"], "turns": turns}) + "\n")
    kept = load_chat(path, CAST)
    assert (kept.participants, kept.person, kept.character) == (["bajie", "wukong", "Bob"], "Bob", "bajie")
    path.write_text(path.read_text() * 2)
    with pytest.raises(InputError, match="2 scenes"):
        load_chat(path, CAST)
    path.write_text('{"participants": 3}\n')
    with pytest.raises(InputError):
        load_chat(path, CAST)


def test_markdown_shows_who_said_what() -> None:
    turns = (Turn("bajie", enters=True), Turn(OTHER, "Hi"), Turn("bajie", "Buns!\nMore."), Turn(PLAIN, "Hello"))
    assert markdown(Scene("s", ("wukong", OTHER), turns, "At the inn."), CAST) == (
        "*At the inn.*\n\n*Zhu Bajie comes in.*\n\n**Someone:** Hi\n\n"
        "**Zhu Bajie:** Buns!  \nMore.\n\n**model:** Hello\n"
    )


def test_who_comes_and_who_leaves_is_kept_as_in_a_scene(chat: Conversation, tmp_path: Path) -> None:
    chat.turns += [Turn("bajie", enters=True), Turn("bajie", "Food?"), Turn("bajie", leaves=True), Turn("Bob", "Gone.")]
    transcript = Transcript(tmp_path)
    transcript.sync(chat, "wukong")
    rows = [json.loads(line) for line in path_of(transcript).read_text(encoding="utf-8").splitlines()]
    assert rows[1:] == [turn.row() for turn in chat.turns]
    assert load_chat(path_of(transcript), CAST).turns == chat.turns
    shown = markdown(chat.scene("s"), CAST)
    assert "*Zhu Bajie comes in.*" in shown and "*Zhu Bajie leaves.*" in shown
    (tmp_path / "saved.jsonl").write_text(json.dumps(scene_row(chat.scene("s"))) + "\n", encoding="utf-8", newline="\n")
    assert load_chat(tmp_path / "saved.jsonl", CAST).turns == chat.turns


def summing_up(text: str) -> Conversation:
    """A chat with little room, whose engine sums up with `text` ({} in it is the number of the call)."""
    player = scripted(CAST, context_tokens=300, max_new_tokens=40)
    line = "We walk on and on, and the road does not end."

    class Replies(list[list[int]]):
        def __getitem__(self, k: Any) -> Any:
            asks = "Write the summary alone" in str(player.tokenizer.decode(player.engine.prompts[k]))
            return player.template.plain.ids(text.format(k) if asks else line, "")

    player.engine.replies = Replies()
    return Conversation(player, ["wukong", "bajie"], recall=Recall(CAST))


def test_the_same_memory_made_again_is_in_the_file_again(tmp_path: Path) -> None:
    chat, transcript = summing_up("They walked."), Transcript(tmp_path)
    made = []
    for _ in range(2):
        del chat.turns[:]
        transcript.sync(chat, "wukong")
        while not chat.memory("wukong").dropped:
            chat.say("Where to?")
            list(chat.reply("wukong"))
        transcript.sync(chat, "wukong")
        made.append(chat.memory("wukong"))
        assert load_chat(path_of(transcript), CAST).memories["wukong"] == [made[-1]]
    assert made[0] == made[1]
    transcript.close()


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_in_a_long_chat_its_file_holds_the_lines_and_what_is_remembered(
    seed: int, tmp_path: Path
) -> None:
    """Lines, replies of two characters, lines taken back, memories told anew, in any order; and the file is read."""
    draw = random.Random(seed)
    chat = summing_up("They walked {} days.")
    transcript, seen = Transcript(tmp_path), 0
    for step in range(60):
        what = draw.choice(["talk"] * 4 + ["undo", "undo all", "remember"])
        who = draw.choice(["wukong", "bajie"])
        if what == "talk":
            chat.say(f"Line {step} is said here.")
            list(chat.reply(who))
        elif what == "undo":
            del chat.turns[-draw.randint(1, 3) :]
        elif what == "undo all":
            del chat.turns[draw.randint(0, len(chat.turns)) :]
        elif chat.memory(who).dropped:
            chat.remember(who, f"What I say in step {step}.")
        transcript.sync(chat, who)
        if transcript.path is None:
            continue
        kept = load_chat(transcript.path, CAST)
        again = Conversation(chat.player, ["wukong", "bajie"], recall=Recall(CAST))
        again.turns[:] = kept.turns
        again.recall.restore(kept.turns, kept.memories)
        assert kept.turns == chat.turns
        for character in ("wukong", "bajie"):
            assert again.memory(character) == chat.memory(character)
            seen += bool(chat.memory(character).summary)
            shown = chat.memory(character).turns
            assert shown <= len(chat.turns), "a memory of lines that are not there"
    assert seen > 10, "hardly anything was ever remembered"
    transcript.close()
