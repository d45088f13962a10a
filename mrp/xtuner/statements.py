"""The statements of a config file, gone through in order without running Python: what `config.py` reads a file with.

    reading = Reading(scope, path, follow)      # `follow` reads a file that `read_base()` names
    reading.body(tree.body)                     # scope.names now holds what running the file would leave

What is not known is skipped: its names, and whatever it could have changed, lose their value and say why.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mrp.errors import InputError
from mrp.xtuner.arithmetic import combine
from mrp.xtuner.scope import BaseDict, CannotRead, Dotted, Scope, Unread
from mrp.xtuner.values import could_change, doubt_names, evaluate

DELETE = "_delete_"
MISSING = object()
Follow = Callable[[Path], tuple[dict[str, Any], set[str]]]  # the names of another config, and which are imports


class Reading:
    """The statements of one file, in order."""

    def __init__(self, scope: Scope, path: Path, follow: Follow) -> None:
        self.scope, self.path, self.follow = scope, path, follow

    def body(self, nodes: list[ast.stmt]) -> None:
        for node in nodes:
            try:
                self.statement(node)
            except CannotRead as error:
                self.skip(node, error.reason)

    def statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.Assign):
            value = evaluate(node.value, self.scope)
            for target in node.targets:
                self.assign(target, value)
        elif isinstance(node, ast.AnnAssign):
            if node.value is not None:
                self.assign(node.target, evaluate(node.value, self.scope))
        elif isinstance(node, ast.AugAssign):
            self.augment(node)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            self.imports(node)
        elif isinstance(node, ast.If):
            test = evaluate(node.test, self.scope)
            if isinstance(test, Unread):
                self.skip(node, "whether its condition holds is not known", test)
            else:
                self.body(node.body if test else node.orelse)
        elif isinstance(node, ast.With):
            self.bases(node)
        elif isinstance(node, ast.Expr):
            self.expression(node.value)
        elif isinstance(node, ast.Delete) and all(isinstance(target, ast.Name) for target in node.targets):
            for target in node.targets:
                self.scope.names.pop(target.id, None)  # type: ignore[attr-defined]
        elif not isinstance(node, ast.Pass):
            kind = type(node).__name__
            raise CannotRead(f"{STATEMENTS.get(kind, kind)} is code, and configs are read, not run", node)

    def assign(self, target: ast.expr, value: Any) -> None:
        if isinstance(target, ast.Name):
            self.scope.names[target.id] = value
        elif isinstance(target, ast.Tuple | ast.List):
            self.assign_parts(target, value)
        elif isinstance(target, ast.Attribute | ast.Subscript):
            owner = evaluate(target.value, self.scope)
            key = target.attr if isinstance(target, ast.Attribute) else evaluate(target.slice, self.scope)
            try:
                if not isinstance(owner, dict | list) or isinstance(key, Unread):
                    raise TypeError(f"nothing is known of {ast.unparse(target.value)[:40]}")
                owner[key] = value  # type: ignore[index]
            except (TypeError, LookupError) as error:
                raise CannotRead(f"it cannot be set: {error}", target) from None
        else:
            raise CannotRead("nothing can be assigned to this", target)

    def assign_parts(self, target: ast.Tuple | ast.List, value: Any) -> None:
        is_unread = isinstance(value, Unread)
        if not is_unread and (not isinstance(value, list | tuple) or len(value) != len(target.elts)):
            raise CannotRead("the two sides have different lengths", target)
        for index, part in enumerate(target.elts):
            self.assign(part, value if is_unread else value[index])

    def augment(self, node: ast.AugAssign) -> None:
        old, added = evaluate(node.target, self.scope), evaluate(node.value, self.scope)
        for value in (old, added):
            if isinstance(value, Unread):
                self.assign(node.target, value)
                return
        # Lists and mappings grow in place, as in Python: other names may stand for the same one.
        if isinstance(old, list) and isinstance(added, list | tuple) and isinstance(node.op, ast.Add):
            old.extend(added)
        elif isinstance(old, dict) and isinstance(added, dict) and isinstance(node.op, ast.BitOr):
            old.update(added)
        else:
            self.assign(node.target, combine(type(node.op), old, added, node))

    def imports(self, node: ast.Import | ast.ImportFrom) -> None:
        for alias in node.names:
            if isinstance(node, ast.Import):
                name = alias.asname or alias.name.split(".")[0]
                value = Dotted(alias.name if alias.asname else name)
            elif node.level or alias.name == "*":
                raise CannotRead("what this import brings is not known", node)
            else:
                name, value = alias.asname or alias.name, Dotted(f"{node.module}.{alias.name}")
            self.scope.names[name] = value
            self.scope.imported.add(name)

    def bases(self, node: ast.With) -> None:
        """`with read_base(): from .other import *`: the names of the other config, as if they stood here."""
        calls = [item.context_expr for item in node.items]
        name = calls[0].func if len(calls) == 1 and isinstance(calls[0], ast.Call) else None
        if not isinstance(name, ast.Name) or name.id != "read_base":
            raise CannotRead("a with block is code, and configs are read, not run", node)
        for inner in node.body:
            where = f"{self.path}:{inner.lineno}"
            if not isinstance(inner, ast.ImportFrom) or not inner.module or not inner.level:
                what = f"`{ast.unparse(inner)[:80]}` cannot be followed"
                fix = "copy that config beside this one, and write `from .NAME import *`"
                raise InputError(what, where, fix)
            folder = self.path.parent.joinpath(*[".."] * (inner.level - 1))
            path = existing(folder.joinpath(*inner.module.split(".")).with_suffix(".py"), where)
            found, imported = self.follow(path)
            for alias in inner.names:
                if alias.name == "*":
                    self.scope.names.update(found)
                    self.scope.imported |= imported
                elif alias.name in found:
                    self.scope.names[alias.asname or alias.name] = found[alias.name]
                else:
                    raise InputError(f"{path.name} has no {alias.name!r}", where, "correct the name there")

    def expression(self, node: ast.expr) -> None:
        """A line that only does something: a text or a name does nothing; a few methods change a list or a mapping."""
        if isinstance(node, ast.Constant | ast.Name):
            return
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner, method = evaluate(node.func.value, self.scope), node.func.attr
            if isinstance(owner, Unread):
                return  # told already
            if self.change(owner, method, node):
                return
        evaluate(node, self.scope)

    def change(self, owner: Any, method: str, node: ast.Call) -> bool:
        """Do `owner.method(...)` where that is one of the known ways to change a value; False if it is none."""
        if isinstance(owner, dict) and method in ("update", "merge") and len(node.args) <= 1:
            call = ast.Call(ast.Name("dict", ast.Load(), **PLACE), node.args, node.keywords, **PLACE)
            given = evaluate(ast.copy_location(call, node), self.scope)
            if isinstance(given, Unread):
                self.scope.doubt(owner, given)
                return True
            if method == "update":
                _update(owner, given)
                return True
            if isinstance(owner, BaseDict):
                merged = _merge_new(given, owner)
                owner.clear()
                owner.update(merged)
                return True
        elif isinstance(owner, list) and method in ("append", "extend") and len(node.args) == 1:
            value = evaluate(node.args[0], self.scope)
            if method == "append":
                owner.append(value)
                return True
            if isinstance(value, list | tuple):
                owner.extend(value)
                return True
        return False

    def skip(self, node: ast.stmt, reason: str, cause: Unread | None = None) -> None:
        """A statement that is not run: every name that it sets or could change has no known value any more."""
        cause = cause or self.scope.note(reason, node)
        if isinstance(node, ast.If):
            for inner in (*node.body, *node.orelse):
                self.skip(inner, reason, cause)
            return
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            # Its name is no option; only a use of it leaves an option without a value.
            self.scope.names[node.name] = cause
            self.scope.imported.add(node.name)
            if not isinstance(node, ast.ClassDef):
                self.scope.functions[node.name] = node
                return
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                self.scope.names[alias.asname or alias.name] = cause
                self.scope.imported.add(alias.asname or alias.name)
            return
        if could_change(node):
            doubt_names(node, cause, self.scope)
        if not isinstance(node, ast.ClassDef):
            for name in _set_by(node):
                self.scope.names[name] = cause


def _set_by(node: ast.AST) -> Iterator[str]:
    """The names that a statement sets in the file itself: not those inside functions, classes and comprehensions."""
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
        yield node.id
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, INNER):
            yield from _set_by(child)


INNER = (
    *(ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda),
    *(ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp),
)
PLACE = {"lineno": 1, "col_offset": 0}
STATEMENTS = {
    **{"For": "a for loop", "AsyncFor": "a for loop", "While": "a while loop", "FunctionDef": "a function"},
    **{"ClassDef": "a class", "AsyncFunctionDef": "a function", "Try": "a try block", "TryStar": "a try block"},
    **{"Assert": "an assert", "Raise": "a raise", "Match": "a match", "Global": "a global", "Delete": "this del"},
}


def existing(path: Path, where: str) -> Path:
    """`path`, if a config is there; `InputError` if not."""
    if not path.is_file():
        what = f"the config builds on {path.name}, which is not there: {path}"
        raise InputError(what, where, "copy that config too, to the same place beside this one")
    return path


def _merge_new(new: Any, old: Any) -> Any:
    """mmengine's `x.merge(...)` of the new style."""
    if not isinstance(new, dict):
        return new
    rest = {key: value for key, value in new.items() if key != DELETE}
    if not isinstance(old, dict):
        return rest
    kept = {} if new.get(DELETE) else {key: value for key, value in old.items() if key != DELETE}
    return BaseDict(kept | {key: _merge_new(value, kept.get(key, MISSING)) for key, value in rest.items()})


def _update(target: dict[str, Any], new: dict[str, Any]) -> None:
    """`target.update(new)`: of what came from a base, as mmengine does it, mappings inside too; else as Python does."""
    for key, value in new.items():
        if isinstance(target, BaseDict) and isinstance(target.get(key), dict) and isinstance(value, dict):
            _update(target[key], value)
        else:
            target[key] = value
