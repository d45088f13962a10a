"""Arithmetic on the plain values of a config: Python's own, bounded so that three lines cannot fill the memory.

combine(ast.Mult, 2, 0.5, node)        # 1.0; CannotRead for "a" * 10**12, or for names of packages
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from typing import Any

from mrp.xtuner.scope import MAX_ITEMS, AlreadyUnread, CannotRead, Dotted, Unread

MAX_BITS = 4096  # of a whole number
MAX_WIDTH = 999  # in a format such as {x:>20}
NUMERIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    **{ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv},
    **{ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow},
    **{ast.BitOr: operator.or_, ast.BitAnd: operator.and_, ast.BitXor: operator.xor},
    **{ast.LShift: operator.lshift, ast.RShift: operator.rshift},
}
COMPARED: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    **{ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt},
    **{ast.GtE: operator.ge, ast.Is: lambda a, b: a is b, ast.IsNot: lambda a, b: a is not b},
    **{ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b},
}
UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    **{ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Not: operator.not_, ast.Invert: operator.invert},
}


def combine(kind: type[ast.operator], left: Any, right: Any, node: ast.AST) -> Any:
    """`left` and `right` under an operator; raises `CannotRead` where that is no plain value, or too large a one."""
    if isinstance(left, Dotted) or isinstance(right, Dotted) or kind not in NUMERIC:
        raise CannotRead("nothing can be computed with the name of a package's object", node)
    if kind is ast.Mod:
        whole(right, node)
    if _is_too_large(kind, left, right):
        raise CannotRead("the result would be too large for any option", node)
    try:
        value = NUMERIC[kind](left, right)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise CannotRead(f"it cannot be computed: {error}", node) from None
    if isinstance(value, complex):
        raise CannotRead("a complex number is no type of an option", node)
    return value


def whole(value: Any, node: ast.AST, left: list[int] | None = None) -> Any:
    """`value`, if nothing in it is unread (a text made of the rest would be a guess), and if it is not too large."""
    left = [MAX_ITEMS] if left is None else left
    left[0] -= 1
    if left[0] < 0:
        raise CannotRead("it holds more values than any config has", node)
    if isinstance(value, Unread):
        raise AlreadyUnread(value)
    if isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            whole(item, node, left)
    return value


def _is_too_large(kind: type[ast.operator], left: Any, right: Any) -> bool:
    if kind is ast.Mod and isinstance(left, str):
        return any(int(width) > MAX_WIDTH for width in re.findall(r"\d+", left)) or "*" in left
    if isinstance(left, int) and isinstance(right, int):
        if kind in (ast.Pow, ast.LShift):
            grown = abs(right) * max(left.bit_length(), 1) if kind is ast.Pow else left.bit_length() + right
            return grown > MAX_BITS
        return kind is ast.Mult and left.bit_length() + right.bit_length() > MAX_BITS
    sizes = [len(side) for side in (left, right) if isinstance(side, str | list | tuple | dict)]
    if kind is ast.Mult and sizes:
        times = left if isinstance(left, int) else right
        return isinstance(times, int) and sizes[0] * max(times, 0) > MAX_ITEMS
    return sum(sizes) > MAX_ITEMS
