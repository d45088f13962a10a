"""README.zh-CN.md says what README.md says: the same commands, outputs, figures and links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENGLISH, CHINESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))


def commands(text: str) -> list[str]:
    """The lines of all code blocks, without the comments, which are translated."""
    blocks = re.findall(r"^```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [re.split(r"\s+# ", line)[0] for block in blocks for line in block.splitlines()]


def figures(text: str) -> list[str]:
    """The decimal numbers, in order."""
    return re.findall(r"(?<![\w.])\d+\.\d+(?!\w|\.\d)", text)


def links(text: str) -> list[str]:
    return [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("README")]


def inline(text: str) -> set[str]:
    """What is typed: code within the text."""
    outside = re.sub(r"^```\n.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return set(re.findall(r"`([^`\n]+)`", outside))


@pytest.mark.parametrize("found", [commands, figures, links, inline], ids=lambda f: str(f.__name__))
def test_both_readmes_say_the_same(found: object) -> None:
    assert callable(found)
    english = found(ENGLISH)
    assert len(english) > 3
    assert found(CHINESE) == english
