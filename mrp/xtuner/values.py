"""Python expressions of a config, worked out without running Python: the safe half of `config.py`.

    evaluate(ast.parse("dict(lr=2e-4 / 2)", mode="eval").body, scope)      # {"lr": 0.0001}

Known are literals, names, arithmetic on numbers and texts, f-strings, `dict(...)`, `list(...)` and the like, and names
of packages, which stay dotted names. Anything else raises `CannotRead` with its reason; inside a list or a mapping it
becomes an `Unread` in its place, so that one strange value does not take the others with it.
"""

from __future__ import annotations

import ast
import posixpath
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mrp.xtuner.arithmetic import COMPARED, MAX_WIDTH, UNARY, combine, whole
from mrp.xtuner.scope import AlreadyUnread, BaseDict, CannotRead, Dotted, Scope, Unread, fresh


def evaluate(node: ast.expr, scope: Scope) -> Any:
    """The value of an expression; `Unread` (noted in the scope) where it has none that is known."""
    try:
        return exact(node, scope)
    except CannotRead as error:
        return scope.note(error.reason, error.node)
    except AlreadyUnread as error:
        return error.unread


def exact(node: ast.expr, scope: Scope) -> Any:
    """As `evaluate`, but raises where the expression as a whole has no known value."""
    reader = READERS.get(type(node))
    if reader is None:
        cause = scope.note(f"{_kind(node)} is code, and configs are read, not run", node)
        if could_change(node):
            doubt_names(node, cause, scope)
        raise AlreadyUnread(cause)
    value = scope.known(reader(node, scope))
    if isinstance(value, Unread):
        raise AlreadyUnread(value)
    return value


def _kind(node: ast.AST) -> str:
    """What a piece of syntax is called: ListComp as "a list comp"."""
    words = re.sub(r"(?<!^)(?=[A-Z])", " ", type(node).__name__).lower()
    return f"a{'n' if words[0] in 'aeiou' else ''} {words}"


# -- literals and names ----------------------------------------------------------------------------------------------


def _constant(node: ast.Constant, scope: Scope) -> Any:
    if isinstance(node.value, str):
        return fill_predefined(node.value, node, scope)
    if node.value is None or isinstance(node.value, bool | int | float):
        return node.value
    raise CannotRead(f"{type(node.value).__name__} is no type of an option", node)


def fill_predefined(text: str, node: ast.AST, scope: Scope) -> str:
    """mmengine's {{ fileDirname }} and the like in a config of the old style, filled as mmengine does."""
    if scope.is_new_style or "{{" not in text:
        return text
    if re.search(r"\{\{\s*\$", text):
        raise CannotRead("it depends on an environment variable", node)
    path = Path(scope.path).absolute()
    known = {
        **{"fileDirname": path.parent.as_posix(), "fileBasename": path.name},
        **{"fileBasenameNoExtension": path.stem, "fileExtname": path.suffix},
    }
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda found: known.get(found[1], found[0]), text)


def _name(node: ast.Name, scope: Scope) -> Any:
    if node.id in scope.names:
        return scope.names[node.id]
    raise CannotRead(f"the name {node.id!r} is not known here", node)


def _attribute(node: ast.Attribute, scope: Scope) -> Any:
    owner = exact(node.value, scope)
    if isinstance(owner, Dotted):
        return Dotted(f"{owner}.{node.attr}")
    if isinstance(owner, BaseDict) and node.attr in owner:
        return owner[node.attr]
    raise CannotRead(f"no {node.attr!r} is known of this {type(owner).__name__}", node)


def _subscript(node: ast.Subscript, scope: Scope) -> Any:
    owner = exact(node.value, scope)
    if isinstance(owner, dict | list | tuple) or type(owner) is str:
        try:
            return owner[_index(node.slice, scope)]
        except (LookupError, TypeError, ValueError) as error:
            raise CannotRead(f"[{ast.unparse(node.slice)[:40]}] is not in it ({type(error).__name__})", node) from None
    raise CannotRead("nothing is known inside it", node)


def _index(node: ast.expr, scope: Scope) -> Any:
    if not isinstance(node, ast.Slice):
        return exact(node, scope)
    parts = [None if part is None else exact(part, scope) for part in (node.lower, node.upper, node.step)]
    return slice(*parts)


# -- containers ------------------------------------------------------------------------------------------------------


def _items(nodes: Iterable[ast.expr], scope: Scope) -> list[Any]:
    found: list[Any] = []
    for node in nodes:
        if isinstance(node, ast.Starred):
            inner = exact(node.value, scope)
            if not isinstance(inner, list | tuple):
                raise CannotRead("only lists can be spread with *", node)
            found += inner
        else:
            found.append(evaluate(node, scope))
    return found


def _mapping(pairs: Iterable[tuple[ast.expr | None, ast.expr]], scope: Scope) -> dict[str, Any]:
    """Of (key, value) nodes; a key of None is `**value`."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key is None:
            inner = exact(value, scope)
            if not isinstance(inner, dict):
                raise CannotRead("only mappings can be spread with **", value)
            found.update(inner)
        else:
            name = exact(key, scope)
            if isinstance(name, list | dict | set):
                raise CannotRead("a list or mapping is no key", key)
            found[name] = evaluate(value, scope)
    return found


def _set(node: ast.Set, scope: Scope) -> Any:
    """{{ _base_.name }} of the old style looks to Python like a set in a set; other sets are no options."""
    inner = node.elts[0] if len(node.elts) == 1 else None
    if isinstance(inner, ast.Set) and len(inner.elts) == 1 and not scope.is_new_style:
        return exact(inner.elts[0], scope)
    raise CannotRead("a set is no type of an option", node)


# -- arithmetic and texts --------------------------------------------------------------------------------------------


def _binary(node: ast.BinOp, scope: Scope) -> Any:
    return combine(type(node.op), exact(node.left, scope), exact(node.right, scope), node)


def _unary(node: ast.UnaryOp, scope: Scope) -> Any:
    value = exact(node.operand, scope)
    try:
        return UNARY[type(node.op)](value)
    except TypeError as error:
        raise CannotRead(f"it cannot be computed: {error}", node) from None


def _logical(node: ast.BoolOp, scope: Scope) -> Any:
    value: Any = None
    for part in node.values:
        value = exact(part, scope)
        if bool(value) is isinstance(node.op, ast.Or):
            break
    return value


def _comparison(node: ast.Compare, scope: Scope) -> bool:
    left = whole(exact(node.left, scope), node)
    for kind, part in zip(node.ops, node.comparators, strict=True):
        right = whole(exact(part, scope), node)
        try:
            if not COMPARED[type(kind)](left, right):
                return False
        except TypeError as error:
            raise CannotRead(f"it cannot be compared: {error}", node) from None
        left = right
    return True


def _choice(node: ast.IfExp, scope: Scope) -> Any:
    return exact(node.body if exact(node.test, scope) else node.orelse, scope)


def _joined(node: ast.JoinedStr, scope: Scope) -> str:
    return "".join(str(exact(part, scope)) for part in node.values)


def _formatted(node: ast.FormattedValue, scope: Scope) -> str:
    value = whole(exact(node.value, scope), node)
    layout = exact(node.format_spec, scope) if node.format_spec else ""
    if isinstance(value, Dotted) or any(int(width) > MAX_WIDTH for width in re.findall(r"\d+", layout)):
        raise CannotRead("this cannot be put into a text", node)
    value = {-1: value, 115: str(value), 114: repr(value), 97: ascii(value)}[node.conversion]
    try:
        return format(value, layout)
    except (TypeError, ValueError) as error:
        raise CannotRead(f"it cannot be put into a text: {error}", node) from None


# -- the few calls that only make values -----------------------------------------------------------------------------


PLAIN_CALLS: dict[str, Callable[..., Any]] = {
    **{"int": int, "float": float, "str": str, "bool": bool, "len": len, "list": list, "tuple": tuple},
    **{"min": min, "max": max, "abs": abs, "round": round},
}
PACKAGE_CALLS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("os.path.join", "posixpath.join"), posixpath.join),
    **dict.fromkeys(("copy.deepcopy", "copy.copy"), fresh),
}


def _call(node: ast.Call, scope: Scope) -> Any:
    called = node.func
    if isinstance(called, ast.Name) and called.id not in scope.names:
        if called.id == "dict" and len(node.args) <= 1:
            given: list[tuple[ast.expr | None, ast.expr]] = [(None, arg) for arg in node.args]
            given += [(ast.Constant(k.arg) if k.arg else None, k.value) for k in node.keywords]
            return _mapping(given, scope)
        if called.id in PLAIN_CALLS and not node.keywords:
            return _plain_call(PLAIN_CALLS[called.id], node, scope)
    elif isinstance(called, ast.Attribute) and not node.keywords:
        owner = evaluate(called.value, scope)
        if isinstance(owner, dict) and called.attr == "get":
            return _plain_call(owner.get, node, scope)
        if isinstance(owner, Dotted) and f"{owner}.{called.attr}" in PACKAGE_CALLS:
            return _plain_call(PACKAGE_CALLS[f"{owner}.{called.attr}"], node, scope)
    elif isinstance(called, ast.Name) and scope.names[called.id] in PACKAGE_CALLS and not node.keywords:
        return _plain_call(PACKAGE_CALLS[scope.names[called.id]], node, scope)
    cause = scope.note(f"a call of {ast.unparse(called)[:60]}: configs are read, not run", node)
    doubt_names(node, cause, scope)
    raise AlreadyUnread(cause)


def _plain_call(function: Callable[..., Any], node: ast.Call, scope: Scope) -> Any:
    values = [whole(exact(arg, scope), node) for arg in node.args]
    if any(isinstance(value, Dotted) for value in values):
        raise CannotRead("nothing can be computed with the name of a package's object", node)
    try:
        return function(*values)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise CannotRead(f"it cannot be computed: {error}", node) from None


def could_change(node: ast.AST) -> bool:
    """True if running this could change a list or a mapping that has a name."""
    for part in ast.walk(node):
        if isinstance(part, ast.Call):
            is_plain = isinstance(part.func, ast.Name) and part.func.id in ("dict", *PLAIN_CALLS)
        else:
            is_plain = not isinstance(part, ast.AugAssign)
        if not is_plain:
            return True
        if isinstance(part, ast.Attribute | ast.Subscript) and not isinstance(part.ctx, ast.Load):
            return True
    return False


def doubt_names(node: ast.AST, cause: Unread, scope: Scope) -> None:
    """Code that was not run could have changed every list and mapping that it names, or that its functions name."""
    for part in ast.walk(node):
        if isinstance(part, ast.Name) and part.id in scope.names:
            scope.doubt(scope.names[part.id], cause)
        if isinstance(part, ast.Name) and part.id in scope.functions:
            doubt_names(scope.functions.pop(part.id), cause, scope)


READERS: dict[type[ast.expr], Callable[[Any, Scope], Any]] = {
    ast.Constant: _constant,
    ast.Name: _name,
    ast.Attribute: _attribute,
    ast.Subscript: _subscript,
    ast.List: lambda node, scope: _items(node.elts, scope),
    ast.Tuple: lambda node, scope: tuple(_items(node.elts, scope)),
    ast.Dict: lambda node, scope: _mapping(zip(node.keys, node.values, strict=True), scope),
    ast.Set: _set,
    ast.BinOp: _binary,
    ast.UnaryOp: _unary,
    ast.BoolOp: _logical,
    ast.Compare: _comparison,
    ast.IfExp: _choice,
    ast.JoinedStr: _joined,
    ast.FormattedValue: _formatted,
    ast.Call: _call,
}
