"""A YAML file into a typed model, with every fault named by file, line and key.

    cast = check_value(read_yaml(path), Cast, path, key_lines(path))

Strict: unknown keys are refused with the nearest known one, keys given twice are refused, types are not guessed.
Raises `InputError` (or `ManyFaults`: all of them in one pass).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from mrp.errors import InputError, MrpError, nearest, raise_all

Model = TypeVar("Model", bound=pydantic.BaseModel)
KeyPath = tuple[str | int, ...]


class StrictModel(pydantic.BaseModel):
    """The base of everything read from a file: no unknown keys, no silent conversions, not changed after."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)


_STRANGE_BREAKS = re.compile("[\x85\u2028\u2029]")  # YAML takes them for line ends; in quotes they are escaped


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 2e-4 is a number (YAML 1.2; in 1.1 it wants a dot, and is a text without one)."""


_Loader.add_implicit_resolver(  # type: ignore[no-untyped-call]
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+"), list("-+.0123456789")
)


def read_yaml(path: Path) -> Any:
    """The plain value of a YAML file; an empty file is an empty mapping."""
    value = parse_yaml(_text(path), str(path))
    return {} if value is None else value


def parse_yaml(text: str, where: str) -> Any:
    """The plain value of a YAML text; `where` tells a person where the text stands."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise _broken(error, where, "\n" in text) from None
    except (ValueError, RecursionError) as error:  # such as the date 2026-02-31
        fix = "put quotes around texts that YAML takes for something else"
        raise InputError(f"broken YAML: {error}", where, fix) from None


def _broken(error: yaml.YAMLError, where: str, has_lines: bool) -> InputError:
    mark = getattr(error, "problem_mark", None)
    place = f"{where}:{mark.line + 1}" if mark and has_lines else where
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be read"
    return InputError(f"broken YAML: {problem}", place, "look at the indent and the quotes there")


class _Dumper(yaml.SafeDumper):
    """Long texts as blocks, one line of the text a line of the file; quotes where `_Loader` would see a number."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style: str | None = None
    if "\n" in text and text == text.strip() and not _STRANGE_BREAKS.search(text):
        style = "|"
    elif _STRANGE_BREAKS.search(text) or (len(text) < 40 and _is_another_value(text)):  # such as the number 1e5
        style = '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _is_another_value(text: str) -> bool:
    try:
        return bool(parse_yaml(text, "") != text)
    except InputError:
        return True


_Dumper.add_representer(str, _represent_text)


def dump_yaml(value: Any, **options: Any) -> str:
    """`value` as YAML text that `parse_yaml` reads back as it is; `options` go to PyYAML."""
    return str(yaml.dump(value, Dumper=_Dumper, allow_unicode=True, sort_keys=False, **options))


def check_value(
    value: Any, model: type[Model], path: Path, lines: dict[KeyPath, int], flags: Collection[str] = ()
) -> Model:
    """`value` as a `model`; faults are placed at `path` and the line of their key, or at the flag that gave it."""
    try:
        return model.model_validate(value)
    except pydantic.ValidationError as error:
        items = sorted(error.errors(include_url=False), key=lambda item: lines.get(_known(lines, item["loc"]), 0))
        faults = [_fault(item, model, path, lines, flags) for item in items]
    raise_all(path.name, faults)
    raise AssertionError("a validation error without faults")


def key_lines(path: Path) -> dict[KeyPath, int]:
    """The line (from 1) of every key and list item in a YAML file; refuses keys given twice and broken YAML."""
    try:
        root = yaml.compose(_text(path), Loader=_Loader)
    except yaml.YAMLError as error:
        raise _broken(error, str(path), True) from None
    lines: dict[KeyPath, int] = {}
    faults: list[MrpError] = []

    def walk(node: yaml.Node | None, at: KeyPath) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    place = f"{path}:{key.start_mark.line + 1}"
                    faults.append(InputError("a key is a list or a mapping", place, "write `key: value` lines"))
                    continue
                here = (*at, key.value)
                line = key.start_mark.line + 1
                if here in lines:
                    place = f"{path}:{line}, {key_text(here)}"
                    faults.append(
                        InputError(f"key given twice (first on line {lines[here]})", place, "delete one of them")
                    )
                lines[here] = line
                walk(value, here)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                lines[(*at, index)] = item.start_mark.line + 1
                walk(item, (*at, index))

    try:
        walk(root, ())
    except RecursionError:
        fix = "take out anchors (&) and aliases (*)"
        raise InputError("the YAML goes deeper than any file of mrp does", str(path), fix) from None
    raise_all(path.name, faults)
    return lines


def place_of(path: Path, lines: dict[KeyPath, int], at: Sequence[str | int]) -> str:
    """ "cast.yaml:12, characters[0].name": the file, the line of the key (or of its nearest parent) and the key."""
    known = _known(lines, at)
    line = f":{lines[known]}" if known else ""
    return f"{path}{line}" + (f", {key_text(at)}" if at else "")


def _known(lines: dict[KeyPath, int], at: Sequence[str | int]) -> KeyPath:
    """The key path `at`, or the nearest of its parents that has a line."""
    known = tuple(at)
    while known and known not in lines:
        known = known[:-1]
    return known


def key_text(at: Sequence[str | int]) -> str:
    """("characters", 0, "name") as characters[0].name."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in at).lstrip(".")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(
            f"no such file: {path.name}", str(path), "check the path; `mrp init DIR` makes new files"
        ) from None
    except IsADirectoryError:
        raise InputError("a folder stands where a file is wanted", str(path), "name the file in it") from None
    except NotADirectoryError:
        raise InputError(f"no such file: {path.name}", str(path), "check the path") from None
    except PermissionError:
        raise InputError("the file may not be read", str(path), "give yourself permission to read it") from None
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 text (byte {error.start})", str(path), "save the file as UTF-8") from None


def _fault(
    item: Any, model: type[pydantic.BaseModel], path: Path, lines: dict[KeyPath, int], flags: Collection[str]
) -> MrpError:
    at: KeyPath = tuple(item["loc"])
    where = f"--set {key_text(at)}" if key_text(at) in flags else place_of(path, lines, at)
    if item["type"] == "extra_forbidden":
        known = _fields_at(model, at[:-1])
        return InputError(f"unknown key {str(at[-1])!r}", where, nearest(str(at[-1]), known))
    if item["type"] == "missing":
        return InputError(f"the key {str(at[-1])!r} is missing", where, f"add `{at[-1]}: ...`")
    if item["type"] == "value_error":  # our own validators: "what|fix"
        what, _, fix = str(item["ctx"]["error"]).partition("|")
        return InputError(what, where, fix)
    if item["type"] in ("model_type", "dict_type"):
        return InputError(f"wanted are `key: value` lines, not {_short(item['input'])}", where, "correct the value")
    message = item["msg"][:1].lower() + item["msg"][1:]
    return InputError(f"{message}, not {_short(item['input'])}", where, "correct the value")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _fields_at(model: type[pydantic.BaseModel], at: KeyPath) -> list[str]:
    """The known keys of the (nested) model at a key path."""
    current: Any = model
    for part in at:
        if isinstance(part, int):
            continue
        field = current.model_fields.get(part)
        if field is None:
            return []
        current = _model_in(field.annotation) or current
    return list(current.model_fields)


def _model_in(annotation: Any) -> type[pydantic.BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _model_in(argument)
        if found:
            return found
    return None
