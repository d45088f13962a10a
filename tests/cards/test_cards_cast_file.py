"""Characters appended to a cast file as text: what stood there stays, and the whole parses as meant."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mrp.cards.cast_file import new_cast_text, with_characters
from mrp.errors import InputError
from mrp.yamlfile import parse_yaml

NEW = [{"id": "new", "name": "New", "persona": "One.\n\n  Two: # no comment"}]

BLOCK = """\
# who is played
language: en   # of the few words
characters:
  - id: ada                   # short
    name: Ada
    persona: >-
      You are Ada.
      # not a comment

  # - id: bruno  (later)

# scenes of several
dialogues: [a.jsonl]
"""


def test_new_characters_stand_after_the_last_and_comments_stay() -> None:
    text = with_characters(BLOCK, "cast.yaml", NEW)
    added = text[len(text) - len(text.removeprefix(BLOCK[: BLOCK.index("\n  # - id")])) :]
    assert added.startswith("  - id: new\n    name: New\n    persona: |-\n      One.\n\n        Two: # no comment\n")
    assert added.endswith(BLOCK[BLOCK.index("\n  # - id") :])
    assert parse_yaml(text, "")["characters"][1:] == NEW


@pytest.mark.parametrize(
    "text",
    [
        "characters:\n- id: a\n  name: A\n",
        "characters:\n- id: a\n  name: A",  # no last line end
        "characters:\n- id: a\n  name: A\n- id: b\n  name: B\nlanguage: zh\n",
        "characters:\n    -   id: a\n        name: A\n\n\n",
        "characters:\r\n  - id: a\r\n    name: A\r\ndialogues: []\r\n",
        "\ufeffcharacters:\n  - id: a\n    name: 悟空 🐒\ndialogues: []\n",
        "characters:\n  - id: a\n    name: A\n    persona: |+\n      text\n\n\ndialogues: []\n",  # blank lines count
        "characters:\n  - id: a\n    name: A\n    persona: |\n      text\n      # text\n",
        "characters: [{id: a, name: A}]\n",
        "characters: [\n  {id: a, name: A},  # the first\n  {id: b, name: B},\n]\ndialogues: []\n",
        "{language: zh, characters: [{id: a, name: A}], dialogues: []}\n",
        "---\ncharacters:\n  - {id: a, name: A}\n...\n",
        "characters:\n  - id: a\n    name: A\n    lore:\n    - keys: [x]\n      text: y\n  # end\n",
    ],
)
def test_every_layout_of_a_cast_can_be_added_to(text: str) -> None:
    before = parse_yaml(text, "")
    changed = with_characters(text, "cast.yaml", NEW)
    assert parse_yaml(changed, "") == {**before, "characters": [*before["characters"], *NEW]}
    cuts = [k for k in range(len(text) + 1) if changed.startswith(text[:k]) and changed.endswith(text[k:])]
    assert cuts  # one piece was put in, nothing else touched
    assert changed.count("\n") == changed.count("\r\n") or "\r\n" not in text


def test_a_layout_that_cannot_be_added_to_is_told() -> None:
    text = "x: &all\n  - {id: a, name: A}\ncharacters: *all\n"
    with pytest.raises(InputError, match="cannot add to") as caught:
        with_characters(text, "cast.yaml", NEW)
    assert caught.value.fix


TEXTS = st.text(
    st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\n\t #:-'\"{}[]|>&*!%@`,?"), max_size=30
)
TRICKY = st.sampled_from(
    ["1e5", "yes", "null", "~", "0x10", "1:30", "2026-02-31", "", " a", "a\n", "\n", "a \nb", "---"]
)
PEOPLE = st.lists(
    st.fixed_dictionaries({"id": st.just("x"), "name": TEXTS | TRICKY, "lore": st.lists(TEXTS | TRICKY, max_size=2)}),
    min_size=1,
    max_size=3,
)


@settings(deadline=None)
@given(PEOPLE, st.sampled_from([BLOCK, "characters: [{id: a, name: A}]\n", "characters:\n- id: a\n  name: A"]))
def test_any_text_comes_back_from_the_file(people: list[dict[str, Any]], text: str) -> None:
    assert parse_yaml(new_cast_text("en", people), "") == {"language": "en", "characters": people}
    changed = with_characters(text, "cast.yaml", people)
    assert parse_yaml(changed, "")["characters"][1:] == people
    assert yaml.safe_load(changed) is not None
