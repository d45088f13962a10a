"""Plain replies are nobody's: no persona, no setting of the cast, and play asks as training showed."""

from __future__ import annotations

import pytest
from shapes import SHAPES, Shape

from mrp.cast import OTHER, PLAIN, Cast, Character
from mrp.data.samples import Sample
from mrp.data.show import show_samples
from mrp.data.view import Message, opening_text, system_text, view, view_for_reply
from mrp.dialogue import Turn
from mrp.errors import MrpError
from mrp.evaluate.held_out import Mean, overall
from mrp.render import ChatTemplate, render_sample

CAST = Cast(
    scenario="A road in the hills.",
    characters=[Character(id="tang", name="Tang Sanzang", persona="You are Tang, a monk.")],
)
TURNS = (Turn(OTHER, "What is 2 + 2?"), Turn(PLAIN, "It is 4."), Turn(OTHER, "And 3 + 3?"), Turn(PLAIN, "6."))
HEAD = (OTHER, PLAIN)


def sample(*turns: Turn, scenario: str = "") -> Sample:
    loss = tuple(turn.speaker == PLAIN for turn in turns)
    return Sample("p@plain", PLAIN, "p", HEAD, turns, loss, "general.jsonl:1", scenario)


def template_of(shape: Shape) -> ChatTemplate:
    return ChatTemplate(shape.tokenizer())


def test_a_plain_reply_has_neither_persona_nor_the_casts_setting() -> None:
    assert view(TURNS, [t.speaker == PLAIN for t in TURNS], HEAD, PLAIN, CAST) == [
        Message("user", "What is 2 + 2?"),
        Message("assistant", "It is 4.", True),
        Message("user", "And 3 + 3?"),
        Message("assistant", "6.", True),
    ]
    assert view_for_reply(TURNS[:1], HEAD, PLAIN, CAST) == [Message("user", "What is 2 + 2?")]
    assert system_text(CAST, PLAIN) == opening_text(CAST, character=PLAIN) == ""


def test_a_system_prompt_of_general_data_is_the_whole_system_message() -> None:
    messages = view(TURNS, [False] * 4, HEAD, PLAIN, CAST, " Answer briefly. ")
    assert messages[0] == Message("system", "Answer briefly.")
    assert [m.role for m in messages[1:]] == ["user", "assistant", "user", "assistant"]


def test_nothing_said_gives_no_message_at_all() -> None:
    assert view((), (), HEAD, PLAIN, CAST) == []
    assert view(TURNS[:1], (False,), HEAD, PLAIN, CAST) == []


def test_the_id_is_kept_for_it() -> None:
    for made in (
        {"id": "Plain", "name": "A"},
        {"id": "a", "name": "plain"},
        {"id": "a", "name": "A", "aliases": ["PLAIN"]},
    ):
        with pytest.raises(ValueError, match="kept for the model itself"):
            Character(**made)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=str)
@pytest.mark.parametrize("scenario", ["", "Answer briefly."])
def test_play_asks_for_a_plain_reply_as_training_showed_it(shape: Shape, scenario: str) -> None:
    template = template_of(shape)
    pieces, too_long = render_sample(template, CAST, sample(*TURNS, scenario=scenario))
    assert not too_long
    for count in (1, 3):
        asked = template.prompt(view_for_reply(TURNS[:count], HEAD, PLAIN, CAST, scenario))
        assert any(piece.input_ids[: len(asked)] == asked and piece.loss[len(asked)] for piece in pieces)
    learnt = "".join(text for piece in pieces for text, is_learnt in template.texts(piece) if is_learnt)
    shown = "".join(text for piece in pieces for text, _ in template.texts(piece))
    assert "It is 4." in learnt and "6." in learnt and "2 + 2" not in learnt
    assert "Tang" not in shown and "hills" not in shown
    assert (scenario in shown) and (scenario not in learnt or not scenario)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=str)
def test_where_a_template_adds_a_system_message_plain_replies_get_just_that(shape: Shape) -> None:
    """As everybody who asks the base without a system message gets it; SmolLM2 and Qwen2.5 add one."""
    template, tokenizer = template_of(shape), shape.tokenizer()
    said = [{"role": "user", "content": "What is 2 + 2?"}]
    options = {"tokenize": False, "add_generation_prompt": True, "date_string": "01 Jan 2026"} | shape.options
    text = tokenizer.apply_chat_template(said, **options)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert template.prompt(view_for_reply(TURNS[:1], HEAD, PLAIN, CAST)) == ids
    if shape.name in ("chatml", "qwen2_5"):
        assert "You are" in text


@pytest.mark.parametrize("shape", SHAPES.values(), ids=str)
def test_a_plain_reply_is_never_learnt_without_what_it_answers(shape: Shape) -> None:
    """A window over a long dialogue begins with a prompt; a reply that does not fit with its prompt is left out."""
    template = template_of(shape)
    turns = [
        turn
        for n in range(12)
        for turn in (Turn(OTHER, f"What is {n} + {n}?" + " Really?" * n), Turn(PLAIN, f"It is {n + n}, I think."))
    ]
    whole = len(template.sample(view(turns, [t.speaker == PLAIN for t in turns], HEAD, PLAIN, CAST))[-1].input_ids)
    for limit in (whole // 2, whole // 4):
        pieces, too_long = render_sample(template, CAST, sample(*turns), limit)
        learnt = 0
        for piece in pieces:
            assert len(piece.input_ids) <= limit
            before = ""
            for text, is_learnt in template.texts(piece):
                if is_learnt:
                    learnt += 1
                    number = int(text.split("It is ")[1].split(",")[0]) // 2
                    assert f"What is {number} + {number}?" in before
                before += text
        assert learnt + too_long == 12


def test_a_dialogue_that_the_model_opens_still_learns_no_system_text() -> None:
    template = template_of(SHAPES["chatml"])
    pieces, _ = render_sample(template, CAST, sample(Turn(PLAIN, "Hello, I help."), *TURNS))
    learnt = [text for text, is_learnt in template.texts(pieces[0]) if is_learnt]
    assert learnt == ["Hello, I help.<|im_end|>", "It is 4.<|im_end|>", "6.<|im_end|>"]


def test_the_mean_over_characters_does_not_count_plain_replies() -> None:
    losses = {"tang": Mean(2.0, 10), "wukong": Mean(4.0, 10), PLAIN: Mean(9.0, 1000)}
    assert overall(losses) == 3.0


def test_a_plain_sample_can_be_shown() -> None:
    template = template_of(SHAPES["chatml"])

    def rendered(one: Sample) -> list[tuple[str, bool]]:
        return [text for piece in render_sample(template, CAST, one)[0] for text in template.texts(piece)]

    (text,) = show_samples([sample(*TURNS)], rendered, colour=False)
    assert "character plain" in str(text) and "⟦It is 4.<|im_end|>⟧" in str(text)


def test_errors_are_ours() -> None:
    """A template that cannot do without a system message says so."""
    needs = "{%- if messages[0]['role'] != 'system' %}{{ raise_exception('a system message first') }}{% endif %}"
    shape = SHAPES["chatml"]
    template = ChatTemplate(shape.tokenizer(), needs + shape.template())
    with pytest.raises(MrpError, match="a system message first"):
        render_sample(template, CAST, sample(*TURNS))
