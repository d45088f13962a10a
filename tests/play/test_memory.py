"""The memory of a long chat: what goes, what is summed up, and what happens where the model cannot."""

from __future__ import annotations

import pytest
from scripted import CAST, TEMPLATE, prompt_text, scripted

from mrp.data.view import Message
from mrp.errors import InputError
from mrp.play.memory import Memory, fit, summarise

HEAD = Message("system", "You are Sun Wukong.")


def talk(exchanges: int) -> list[Message]:
    pairs = [(Message("user", f"Question {k}?"), Message("assistant", f"Answer {k}.")) for k in range(exchanges)]
    return [HEAD, *(message for pair in pairs for message in pair), Message("user", "And now?")]


def test_nothing_goes_while_all_of_it_fits() -> None:
    prompt = fit(scripted(CAST), talk(4), Memory(), 2000)
    assert (prompt.ids, prompt.dropped) == (TEMPLATE.prompt(talk(4)), 0)


def test_what_goes_leaves_half_of_the_room_and_stays_gone() -> None:
    player, messages = scripted(CAST), talk(12)
    limit = len(TEMPLATE.prompt(messages)) - 1
    prompt = fit(player, messages, Memory(), limit)
    ids, dropped = prompt.ids, prompt.dropped
    fixed = len(TEMPLATE.prompt([HEAD]))
    assert dropped > 2 and messages[1 + dropped].role == "user"
    assert len(ids) <= fixed + (limit - fixed) // 2
    longer = [*messages, Message("assistant", "Now."), Message("user", "So?")]
    after = fit(player, longer, Memory(dropped=dropped), limit)
    assert after.dropped == dropped
    assert after.ids[: len(ids)] == ids


def test_the_summary_stands_where_messages_went() -> None:
    player = scripted(CAST)
    prompt = fit(player, talk(12), Memory("They talked.", 20), 2000)
    text = str(TEMPLATE.tokenizer.decode(prompt.ids))
    assert text.index("You are Sun Wukong.") < text.index("[Earlier: They talked.]") < text.index("Question 10?")
    assert "Question 9?" not in text


def test_what_cannot_fit_says_what_to_cut() -> None:
    with pytest.raises(InputError, match="the context is too small") as caught:
        fit(scripted(CAST), talk(1), Memory("They talked. " * 20, 2), 10, known="He is heavy.")
    assert caught.value.fix.startswith("cut the memory;")
    assert all(part in caught.value.what for part in ("the persona", "the lore", "the last message"))


def test_the_model_sums_up_as_itself_and_greedily() -> None:
    player = scripted(CAST, "  They\ntalked. ")
    assert summarise(player, "Old notes.", talk(2)[1:], "Sun Wukong") == ("They talked.", "")
    asked = prompt_text(player)
    assert all(part in asked for part in ("Old notes.", "Question 0?", "Sun Wukong: Answer 1."))
    assert "You are Sun Wukong" not in asked
    assert player.engine.samplings[0].temperature == 0
    assert CAST.get(str(player.engine.voices[0])) is None  # no character's voice


@pytest.mark.parametrize(("reply", "wrong"), [("", "no summary"), ("and on and on " * 30, "no whole sentence")])
def test_a_model_that_cannot_sum_up_leaves_the_old_summary(reply: str, wrong: str) -> None:
    summary, why = summarise(scripted(CAST, reply), "Old notes.", talk(1)[1:], "Sun Wukong", 20)
    assert summary == "Old notes." and wrong in why


def test_a_summary_that_is_cut_off_ends_with_its_last_whole_sentence() -> None:
    reply = "They met. " + "They walked on and on " * 30
    assert summarise(scripted(CAST, reply), "", talk(1)[1:], "Sun Wukong", 24) == ("They met.", "")


def test_more_than_the_model_can_read_is_summed_up_from_its_end() -> None:
    player = scripted(CAST, "Short.", context_tokens=300, max_new_tokens=20)
    assert summarise(player, "", talk(60)[1:], "Sun Wukong", 40) == ("Short.", "")
    assert len(player.engine.prompts[0]) <= 260
    assert "Answer 59." in prompt_text(player) and "Question 0?" not in prompt_text(player)
    nothing = scripted(CAST, context_tokens=64, max_new_tokens=20)
    assert summarise(nothing, "Old.", talk(60)[1:], "Sun Wukong", 40)[0] == "Old."
    assert not nothing.engine.prompts
