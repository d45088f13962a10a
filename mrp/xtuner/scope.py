"""The names of a config file while it is read, the values that they may have, and what of them is in doubt.

    scope = Scope("config.py", is_new_style=True)
    scope.names["lr"] = 2e-4
    cause = scope.note("a for loop is code", node)       # something that was not run ...
    scope.doubt(scope.names["hooks"], cause)             # ... may have changed this list: it has no known value now

The ground of `values.py` (expressions), `arithmetic.py` and `statements.py`.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

MAX_ITEMS = 100_000  # values of a whole config, and items of a list or a text that arithmetic makes


class Dotted(str):
    """The dotted name of something that a package holds, such as `torch.optim.AdamW`; it is never imported."""


class BaseDict(dict[str, Any]):
    """A mapping that came from a base config: mmengine's `update` goes down into it, and its keys are attributes."""


class CannotRead(Exception):
    """Why an expression has no known value."""

    def __init__(self, reason: str, node: ast.AST) -> None:
        self.reason, self.node = reason, node
        super().__init__(reason)


@dataclass(eq=False)
class Unread:
    """A place of a config that could not be read; it stands where its value would be."""

    where: str  # "config.py:12"
    reason: str
    keys: list[str] = field(default_factory=list)  # the options that have no value because of it

    def __str__(self) -> str:
        return f"could not be read ({self.where}: {self.reason})"


class Scope:
    """The names of one file while it is read, and what of them is in doubt."""

    def __init__(self, path: str, is_new_style: bool) -> None:
        self.path, self.is_new_style = path, is_new_style
        self.names: dict[str, Any] = {}
        self.imported: set[str] = set()  # names that are no options
        self.functions: dict[str, ast.AST] = {}
        self.unread: list[Unread] = []
        self._doubts: dict[int, tuple[Any, Unread]] = {}  # by id; the container is kept, so that ids stay taken

    def note(self, reason: str, node: ast.AST) -> Unread:
        """Remember that something could not be read."""
        found = Unread(f"{self.path}:{getattr(node, 'lineno', 1)}", reason)
        self.unread.append(found)
        return found

    def doubt(self, value: Any, cause: Unread) -> None:
        """A list or mapping, and all below it, may have been changed by something that was not run."""
        if isinstance(value, tuple) and not any(isinstance(item, dict | list | tuple) for item in value):
            return  # numbers and texts cannot change
        if isinstance(value, dict | list | tuple) and id(value) not in self._doubts:
            self._doubts[id(value)] = (value, cause)
            for item in value.values() if isinstance(value, dict) else value:
                self.doubt(item, cause)

    def known(self, value: Any) -> Any:
        """`value`, or the `Unread` that put it into doubt."""
        found = self._doubts.get(id(value))
        return found[1] if found else value


class AlreadyUnread(Exception):
    """The value hangs on something that was found unreadable before."""

    def __init__(self, unread: Unread) -> None:
        self.unread = unread
        super().__init__()


def fresh(
    value: Any,
    kind: type[dict[str, Any]] | None = None,
    known: Callable[[Any], Any] = lambda v: v,
    left: list[int] | None = None,
) -> Any:
    """A copy in which nothing stands twice; mappings are of `kind`, or as they are; `known` is asked of each value.

    Raises `ValueError` where values that hold one another would make it grow beyond `MAX_ITEMS`.
    """
    left = [MAX_ITEMS] if left is None else left
    left[0] -= 1
    if left[0] < 0:
        raise ValueError("more values than any config has")
    value = known(value)
    if isinstance(value, dict):
        return (kind or type(value))({key: fresh(item, kind, known, left) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return type(value)(fresh(item, kind, known, left) for item in value)
    return value
