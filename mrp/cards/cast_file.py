"""Characters appended to a cast file as text, so that comments and layout of what stands there stay as they are.

with_characters(text, "cast.yaml", [{"id": "ada", "name": "Ada"}])     # the new text, proven to parse as meant
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from mrp.errors import InputError
from mrp.yamlfile import dump_yaml, parse_yaml

WIDTH = 110
_LINE = re.compile(r"[^\n]*\n|[^\n]+")


def new_cast_text(language: str, characters: list[dict[str, Any]]) -> str:
    """A cast file of these characters."""
    head = "# Who is played; `mrp data check .` names every fault.\n"
    return f"{head}language: {language}\ncharacters:\n{_items(characters, '  ')}"


def with_characters(text: str, where: str, characters: list[dict[str, Any]]) -> str:
    """The cast file `text` with `characters` after those that it has.

    Raises `InputError` where the file is written in a way that cannot be added to.
    """
    before = parse_yaml(text, where)
    wanted = {**before, "characters": [*before["characters"], *characters]}
    node = _characters_node(text)
    if node is not None:
        ways = [_in_flow] if node.flow_style else [_after_last_line, _at_end_of_block]
        for way in ways:
            changed = way(text, node, characters)
            if _value(changed) == wanted:
                return changed
    fix = "write `characters:` as a list with one `- id: ...` item each, as `mrp init` does"
    raise InputError("the characters of this cast file are written in a way that mrp cannot add to", where, fix)


def _value(text: str) -> Any:
    try:
        return parse_yaml(text, "")
    except InputError:
        return None


def _characters_node(text: str) -> yaml.SequenceNode | None:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if isinstance(root, yaml.MappingNode):
        for key, value in root.value:
            if key.value == "characters" and isinstance(value, yaml.SequenceNode) and value.value:
                return value
    return None


def _in_flow(text: str, node: yaml.SequenceNode, characters: list[dict[str, Any]]) -> str:
    """After the last item of [...]."""
    end = node.value[-1].end_mark.index
    items = "".join(", " + dump_yaml(c, default_flow_style=True, width=2**30).strip() for c in characters)
    return text[:end] + items + text[end:]


def _after_last_line(text: str, node: yaml.SequenceNode, characters: list[dict[str, Any]]) -> str:
    """Before the blank lines and comments that follow the last item, as those belong to what comes next."""
    lines = _lines_up_to(text, node)
    while lines and _is_outer_comment(lines[-1], node.start_mark.column):
        lines.pop()
    return _inserted(text, len("".join(lines)), node, characters)


def _at_end_of_block(text: str, node: yaml.SequenceNode, characters: list[dict[str, Any]]) -> str:
    """Right before what comes next: where blank lines are part of the last text."""
    return _inserted(text, len("".join(_lines_up_to(text, node))), node, characters)


def _lines_up_to(text: str, node: yaml.SequenceNode) -> list[str]:
    """The lines before the key (or the end) that follows the sequence."""
    end = node.end_mark.index
    return _lines(text[: end - node.end_mark.column if end < len(text) else end])


def _is_outer_comment(line: str, dash_column: int) -> bool:
    """True for a blank line, and a comment that is not further in than the dashes (else it may be text of an item)."""
    stripped = line.strip()
    return not stripped or (stripped.startswith("#") and len(line) - len(line.lstrip()) <= dash_column)


def _inserted(text: str, at: int, node: yaml.SequenceNode, characters: list[dict[str, Any]]) -> str:
    items = _items(characters, " " * node.start_mark.column)
    if at and text[at - 1] != "\n":
        items = "\n" + items
    if "\r\n" in text:
        items = items.replace("\n", "\r\n")
    return text[:at] + items + text[at:]


def _items(characters: list[dict[str, Any]], indent: str) -> str:
    """Block items, each line behind `indent` (blank lines of texts stay blank)."""
    text = dump_yaml(characters, width=WIDTH)
    return "".join(indent + line if line.strip() else line for line in _lines(text))


def _lines(text: str) -> list[str]:
    """The lines with their ends; other than `splitlines`, only at line feeds."""
    return _LINE.findall(text)
