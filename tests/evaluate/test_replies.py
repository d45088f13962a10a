"""One question to every character, each in a conversation of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripted import CAST, prompt_text, scripted

from mrp.config import ChatOptions
from mrp.evaluate.replies import ask_everybody
from mrp.play.open import load_player


def test_everybody_is_asked_alone_with_their_own_persona() -> None:
    player = scripted(CAST, " Old Monkey! ", "A pig.", "A monk.\nSun Wukong: and I!")
    told: list[None] = []
    replies = ask_everybody(player, "Who are you?", 3, lambda: told.append(None))
    assert replies == {"wukong": "Old Monkey!", "bajie": "A pig.", "tang": "A monk."}
    assert len(told) == 3
    for number, character in enumerate(CAST):
        text = prompt_text(player, number)
        assert character.persona in text and text.count("Who are you?") == 1
        assert "Old Monkey" not in text.replace(character.persona, "")
    assert {s.seed for s in player.engine.samplings} == {3}


def test_equal_seeds_give_equal_replies(tiny_base: Path) -> None:
    pytest.importorskip("torch")
    player = load_player(tiny_base, None, CAST, ChatOptions(max_new_tokens=8, temperature=1.0), "fp32")
    first, again, other = (ask_everybody(player, "Who?", seed) for seed in (1, 1, 2))
    assert first == again != other
