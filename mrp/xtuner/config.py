"""XTuner's (mmengine's) config files, read without running them.

    config = read_config(Path("xiyou_1_8b.py"))
    config.find("optim_wrapper.optimizer.lr")      # 0.0002
    config.unread                                  # what could not be read: file:line, why, and which options

A config is a Python file whose names at the end are its options. Read are assignments, imports (as dotted names;
nothing is imported), `if` with a known condition, `x.update(...)` and the like (`statements.py`, `values.py`), and both
ways to build on another config: `_base_ = [...]`, merged as mmengine merges (`_delete_` included), and
`with read_base(): from .other import *`, whose names are taken over. Everything else is named, with its consequence,
and never guessed. The rules are those of mmengine 0.10.7 (mmengine/config/config.py).
"""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrp.errors import InputError
from mrp.xtuner.scope import BaseDict, Scope, Unread, fresh
from mrp.xtuner.statements import DELETE, MISSING, Reading, existing
from mrp.xtuner.values import evaluate

BASE = "_base_"
MAX_BYTES = 4 * 2**20


@dataclass(frozen=True)
class XtunerConfig:
    """A config's options with the values that mmengine would give them."""

    path: Path
    values: dict[str, Any]  # plain values, `Dotted` names, and `Unread` where there is no value
    unread: tuple[Unread, ...]

    def find(self, key: str, default: Any = MISSING) -> Any:
        """The value at a dotted key ("model.lora.r"); `default` where there is none."""
        value: Any = self.values
        for part in key.split("."):
            if isinstance(value, Unread):
                return value
            if not isinstance(value, dict) or part not in value:
                return default
            value = value[part]
        return value

    def as_json(self) -> Any:
        """The options as JSON has them: tuples as lists, classes and functions as dotted names."""
        return _json(self.values)


def _json(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    return str(value) if isinstance(value, str | Unread) else value


def read_config(path: Path) -> XtunerConfig:
    """Read a config and all that it builds on. Nothing is run or imported.

    Raises `InputError` for a file that is no Python (file:line), for a missing or circular base, and for a config that
    mmengine itself would refuse to merge.
    """
    unread: list[Unread] = []
    try:
        names, imported = _read_file(path, (), unread)
        values = {key: fresh(value, dict) for key, value in names.items() if key not in imported}
    except (RecursionError, MemoryError, ValueError) as error:
        fix = "shorten what it nests or multiplies"
        raise InputError(f"the config is nested too deeply, or grows too large: {error}", str(path), fix) from None
    _mark(values, "")
    return XtunerConfig(path, values, tuple(unread))


def read_config_text(text: str, where: str) -> XtunerConfig:
    """As `read_config`, for a config that stands alone, such as the one kept in a checkpoint."""
    unread: list[Unread] = []
    scope = Scope(where, is_new_style=True)
    scope.unread = unread

    def follow(base: Path) -> tuple[dict[str, Any], set[str]]:
        raise InputError(
            f"the config builds on {base.name}, which it does not hold", where, "name the CONFIG.py itself"
        )

    try:
        Reading(scope, Path(where), follow).body(_parse_text(text, where).body)
        values = {key: fresh(v, known=scope.known) for key, v in scope.names.items() if key not in scope.imported}
    except (RecursionError, MemoryError, ValueError) as error:
        raise InputError(f"the config cannot be read: {error}", where, "name the CONFIG.py itself") from None
    _mark(values, "")
    return XtunerConfig(Path(where), values, tuple(unread))


def _mark(value: Any, at: str) -> None:
    """Tell every `Unread` which options it leaves without a value."""
    if isinstance(value, Unread):
        value.keys.append(at)
    elif isinstance(value, dict | list | tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            _mark(item, f"{at}.{key}".lstrip("."))


# -- a file ----------------------------------------------------------------------------------------------------------


def _read_file(path: Path, above: tuple[Path, ...], unread: list[Unread]) -> tuple[dict[str, Any], set[str]]:
    """The names of one file, its bases merged in, and which of them are imports and functions: no options."""
    if path.resolve() in above:
        raise InputError("the config builds on itself", str(path), f"take it out of `{BASE}` there")
    tree = _parse(path)
    bases = next((node for node in tree.body if _assigns_base(node)), None)
    scope = Scope(str(path), is_new_style=bases is None and _is_new_style(tree))
    scope.unread = unread
    above = (*above, path.resolve())
    inherited = BaseDict()
    if bases is not None:
        inherited = _old_bases(bases, scope, path, above)
        scope.names[BASE] = inherited

    def follow(base: Path) -> tuple[dict[str, Any], set[str]]:
        return _read_lazily(base, above, unread)

    Reading(scope, path, follow).body([node for node in tree.body if node is not bases])
    own = {
        name: fresh(value, known=scope.known)
        for name, value in scope.names.items()
        if not name.startswith("__") and name != BASE
    }
    if bases is not None:
        options = {key: fresh(value, BaseDict) for key, value in own.items() if key not in scope.imported}
        own = merge_old(options, inherited, path)
    return own, scope.imported


def _is_new_style(tree: ast.Module) -> bool:
    """As mmengine tells it: `read_base()`, or an import of something that is not Python's own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.With):
            return True
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or "."]
        if any(name.split(".")[0] not in sys.stdlib_module_names for name in names):
            return True
    return False


def _parse(path: Path) -> ast.Module:
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"no such file: {path.name}", str(path), "check the path of the config") from None
    except IsADirectoryError:
        raise InputError("a folder stands where a config is wanted", str(path), "name the CONFIG.py in it") from None
    if len(data) > MAX_BYTES:
        raise InputError(f"{len(data):,} bytes are too many for a config", str(path), "name the CONFIG.py of the run")
    try:
        return _parse_text(data.decode("utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 text (byte {error.start})", str(path), "save the file as UTF-8") from None


def _parse_text(text: str, where: str) -> ast.Module:
    try:
        return ast.parse(text)
    except SyntaxError as error:
        place = f"{where}:{error.lineno}" if error.lineno else where
        raise InputError(f"not Python: {error.msg}", place, "correct the line, or copy the config anew") from None
    except ValueError as error:  # a null byte
        raise InputError(f"not Python: {error}", where, "copy the config anew") from None


def _assigns_base(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Assign)
        and len(node.targets) == 1
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id == BASE
    )


# -- what a config builds on -------------------------------------------------------------------------------------------


def _old_bases(node: ast.stmt, scope: Scope, path: Path, above: tuple[Path, ...]) -> BaseDict:
    assert isinstance(node, ast.Assign)
    value = evaluate(node.value, scope)
    names = value if isinstance(value, list) else [value]
    where = f"{path}:{node.lineno}"
    merged = BaseDict()
    for name in names:
        if type(name) is not str or not name.endswith(".py") or "::" in name:
            what = f"the base {name if isinstance(name, str) else ast.unparse(node.value)[:60]!r} cannot be followed"
            raise InputError(what, where, "copy that config beside this one and name it by its relative path (.py)")
        found, imported = _read_file(existing(path.parent / name, where), above, scope.unread)
        found = {key: value for key, value in found.items() if key not in imported}
        if twice := sorted(found.keys() & merged.keys()):
            what = f"two bases give {', '.join(twice[:5])}, which mmengine refuses"
            raise InputError(what, where, "take the option out of one of them")
        merged.update({key: fresh(item, BaseDict) for key, item in found.items()})
    return merged


def merge_old(new: dict[str, Any], base: dict[str, Any], path: Path) -> BaseDict:
    """mmengine's merge for `_base_`: mappings go into mappings, key by key, unless they say `_delete_`."""
    merged = BaseDict(base)
    for key, value in new.items():
        if not isinstance(value, dict) or key not in merged or value.pop(DELETE, False):
            merged[key] = value
        elif isinstance(merged[key], dict):
            merged[key] = merge_old(value, merged[key], path)
        elif isinstance(merged[key], Unread):
            continue  # what the base has there is not known, so the sum is not either
        else:
            what = f"{key!r} is a mapping here and {type(merged[key]).__name__} in the base, which mmengine refuses"
            raise InputError(what, str(path), f"add `{DELETE}=True` to the mapping, or correct the base")
    return merged


def _read_lazily(path: Path, above: tuple[Path, ...], unread: list[Unread]) -> tuple[dict[str, Any], set[str]]:
    """A base of the new style: its names, mappings as mmengine's, and which are imports (those above it see them)."""
    if any(_assigns_base(node) for node in _parse(path).body):
        what = f"{path.name} builds on others by `{BASE}`, and is itself read by read_base(): mmengine refuses the mix"
        raise InputError(what, str(path), "use one way of inheriting for all of them")
    names, imported = _read_file(path, above, unread)
    return {key: fresh(value, BaseDict) for key, value in names.items()}, imported
