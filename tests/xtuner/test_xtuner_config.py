"""XTuner's configs are read without being run: equal to what mmengine resolves, or named as unread, never guessed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrp.errors import InputError
from mrp.xtuner.config import XtunerConfig, read_config
from mrp.xtuner.scope import Dotted, Unread


def write(folder: Path, **files: str) -> Path:
    """Files by stem (`a__b` lies in the folder a); returns the path of `config.py`."""
    for stem, text in files.items():
        path = folder.joinpath(*stem.split("__")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder / "config.py"


def read(folder: Path, text: str, **others: str) -> XtunerConfig:
    return read_config(write(folder, config=text, **others))


# -- equal to mmengine -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["xiyou_tiny", "sft_custom_a"])
def test_golden_configs_resolve_as_mmengine_resolves_them(shared: Path, name: str) -> None:
    golden = shared / "golden/xtuner-a"
    config = read_config(golden / f"{name}.py")
    assert config.as_json() == json.loads((golden / f"{name}.resolved.json").read_text(encoding="utf-8"))
    assert config.unread == ()


def as_python(value: Any, imports: set[str]) -> str:
    """A resolved config's value as the source that gives it: dotted names become imports."""
    if isinstance(value, dict):
        return "dict(" + ", ".join(f"**{{{key!r}: {as_python(item, imports)}}}" for key, item in value.items()) + ")"
    if isinstance(value, list):
        return "[" + ", ".join(as_python(item, imports) for item in value) + "]"
    if isinstance(value, str) and value.split(".")[0] in ("torch", "transformers", "xtuner", "mmengine", "peft"):
        imports.add(value.split(".")[0])
        return value
    return repr(value)


@pytest.mark.parametrize("name", ["original_xiyou_1_8b", "xiyou_tiny", "sft_custom_a"])
def test_a_config_written_from_resolved_values_gives_them_back(shared: Path, tmp_path: Path, name: str) -> None:
    path = shared / f"golden/xtuner-a/{name}.resolved.json"
    wanted = json.loads(path.read_text(encoding="utf-8"))
    imports: set[str] = set()
    lines = [f"{key} = {as_python(value, imports)}" for key, value in wanted.items()]
    found = read(tmp_path, "\n".join([*(f"import {name}" for name in sorted(imports)), *lines]))
    assert found.as_json() == wanted


leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(leaves, lambda v: st.lists(v) | st.tuples(v, v) | st.dictionaries(st.text(), v), max_leaves=12)


@given(values)
@settings(max_examples=150, deadline=None)
def test_every_literal_is_read_as_python_reads_it(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    config = read(tmp_path_factory.mktemp("literal"), f"value = {value!r}\nagain = dict(a=value)")
    assert config.values == {"value": value, "again": {"a": value}}


numbers = st.integers(-1000, 1000) | st.floats(-1e6, 1e6)
OPERATORS = ("+", "-", "*", "/", "//", "%", "<", "==", ">=", "and", "or")


@given(numbers, st.lists(st.tuples(st.sampled_from(OPERATORS), numbers), max_size=5))
@settings(max_examples=200, deadline=None)
def test_arithmetic_is_pythons(
    tmp_path_factory: pytest.TempPathFactory, first: float, rest: list[tuple[str, float]]
) -> None:
    text = f"({first!r})" + "".join(f" {sign} ({number!r})" for sign, number in rest)
    found = read(tmp_path_factory.mktemp("sum"), f"value = {text}")
    try:
        wanted = eval(text)  # a text of numbers that the test itself made
    except ZeroDivisionError:
        assert isinstance(found.values["value"], Unread)
    else:
        assert repr(found.values["value"]) == repr(wanted) and not found.unread


PYTHON = """
import torch
from torch.optim import AdamW as Optim
from xtuner.utils import PROMPT_TEMPLATE
max_epochs = 3
sizes = a, (b, c) = 1, (2, 3)
lr = 2e-4 / 2 ** 3
template = PROMPT_TEMPLATE.internlm2_chat
words = 'x' * 3 + f'{lr:.1e}|{"z"!r}|{max_epochs:>4}' + '%s-%d' % ('a', 3)
mapping = {'k': [1, 2, 3][-1], **dict(b=2), 'c': dict(a=1).get('a', 5)}
more = [*sizes[1], 4] if max_epochs > 2 and not lr == 1 else None
both = dict(type=Optim, dtype=torch.float16)
alias = both
alias['lr'] = lr
hooks = [both]
if max_epochs == 3:
    hooks += [dict(type=Optim)]
else:
    hooks = whatever()
max_epochs *= 2
count: int = len(hooks) + min(1, 2) + int('3')
del c
"""


def test_the_python_of_configs_gives_what_python_gives(tmp_path: Path) -> None:
    config = read(tmp_path, PYTHON)
    assert not config.unread
    both = {"type": "torch.optim.AdamW", "dtype": "torch.float16", "lr": 2.5e-05}
    assert config.values == {
        **{"max_epochs": 6, "sizes": (1, (2, 3)), "a": 1, "b": 2, "lr": 2.5e-05},
        **{"template": "xtuner.utils.PROMPT_TEMPLATE.internlm2_chat", "words": "xxx2.5e-05|'z'|   3a-3"},
        **{"mapping": {"k": 3, "b": 2, "c": 1}, "more": [2, 3, 4], "both": both, "alias": both},
        **{"hooks": [both, {"type": "torch.optim.AdamW"}], "count": 6},
    }
    assert isinstance(config.values["template"], Dotted)


OLD_BASE = """
model = dict(type='SFT', llm=dict(path='./p', dtype='fp16'), lora=dict(r=64, alpha=16, extra=dict(a=1)))
loader = dict(batch_size=1, dataset=dict(files=['a', 'b'], max_length=2048), sampler=dict(type='S', shuffle=True))
hooks = [dict(type='A')]
lr = 2e-4
"""
OLD_CHILD = """
_base_ = ['./base.py', 'sub/runtime.py']
lr = 1e-4
model = dict(lora=dict(_delete_=True, r=8), llm=dict(path=_base_.model.llm.path + '-chat'))
loader = dict(batch_size=2, sampler=dict(shuffle=False))
hooks = _base_.hooks + [dict(type='C')]
copied = {{ _base_.model.lora }}
"""


def test_base_files_are_merged_as_mmengine_merges_them(tmp_path: Path) -> None:
    files = {"base": OLD_BASE, "child": OLD_CHILD, "sub__runtime": "level = 'INFO'\nname = '{{ fileBasename }}'"}
    config = read(tmp_path, "_base_ = 'child.py'\nloader = dict(dataset=dict(_delete_=True, n=3))", **files)
    # The values that mmengine 0.10.7 gives for these very files.
    assert config.values == {
        "model": {"type": "SFT", "llm": {"path": "./p-chat", "dtype": "fp16"}, "lora": {"r": 8}},
        "loader": {"batch_size": 2, "dataset": {"n": 3}, "sampler": {"type": "S", "shuffle": False}},
        **{"hooks": [{"type": "A"}, {"type": "C"}], "lr": 1e-4, "level": "INFO", "name": "runtime.py"},
        "copied": {"r": 64, "alpha": 16, "extra": {"a": 1}},
    }
    assert not config.unread


NEW_BASE = """
from torch.optim import AdamW
import torch
epochs = 3
tokenizer = dict(path='./p')
model = dict(llm=dict(dtype=torch.float16, tokenizer=tokenizer), lora=dict(r=64, extra=dict(a=1, b=2)))
wrapper = dict(optimizer=dict(type=AdamW, lr=1e-3, betas=(0.9, 0.999)), n=1)
hooks = [dict(tokenizer=tokenizer)]
"""
NEW_CHILD = """
from mmengine.config import read_base
with read_base():
    from .sub.middle import *
model.lora.update(dict(r=8, extra=dict(a=9)))
model.merge(dict(llm=dict(_delete_=True, x=1)))
wrapper.optimizer.lr = 5e-4 / 2
wrapper['accumulation'] = 4 * epochs
wrapper.update(optimizer=dict(betas=(0.8, 0.9)))
tokenizer.update(dict(side='right'))
hooks.append(dict(type=AdamW))
local = dict(a=dict(b=1))
local.update(dict(a=dict(c=3)))
"""


def test_read_base_takes_names_over_as_mmengine_does(tmp_path: Path) -> None:
    middle = "from mmengine.config import read_base\nwith read_base():\n    from ..base import *\nlevel = 'DEBUG'"
    config = read(tmp_path, NEW_CHILD, base=NEW_BASE, sub__middle=middle)
    # The values that mmengine 0.10.7 gives for these very files.
    assert config.values == {
        **{"epochs": 3, "level": "DEBUG", "tokenizer": {"path": "./p", "side": "right"}},
        "model": {"llm": {"x": 1}, "lora": {"r": 8, "extra": {"a": 9, "b": 2}}},
        "wrapper": {
            "optimizer": {"type": "torch.optim.AdamW", "lr": 2.5e-4, "betas": (0.8, 0.9)},
            **{"n": 1, "accumulation": 12},
        },
        "hooks": [{"tokenizer": {"path": "./p"}}, {"type": "torch.optim.AdamW"}],
        "local": {"a": {"c": 3}},
    }
    assert not config.unread


# -- what cannot be read -----------------------------------------------------------------------------------------------


def test_nothing_of_a_config_is_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    text = f"""
import os, subprocess
from pathlib import Path
os.system('touch {mark}')
Path({str(mark)!r}).touch()
a = [Path({str(mark)!r}).touch() for _ in range(2)]
b = (lambda: open({str(mark)!r}, 'w'))()
c = f"{{open('{mark}', 'w')}}"
d = __import__('os').system('touch {mark}')
e = eval("1"), exec("2")
for f in (1, 2):
    Path({str(mark)!r}).touch()
class G:
    h = Path({str(mark)!r}).touch()
def i():
    Path({str(mark)!r}).touch()
i()
with open({str(mark)!r}, 'w') as j:
    pass
try:
    k = i()
finally:
    i()
assert i()
l = ().__class__.__base__.__subclasses__()
m = 3
"""
    config = read(tmp_path, text)
    assert not mark.exists()
    assert config.values["m"] == 3
    for name in ("a", "b", "c", "d", "j", "k", "l"):
        assert isinstance(config.values[name], Unread), name
    assert all(isinstance(part, Unread) for part in config.values["e"])
    assert {u.where for u in config.unread} >= {f"{tmp_path / 'config.py'}:{n}" for n in (4, 5, 6, 7, 8, 9, 11, 13)}


@pytest.mark.parametrize(
    ("line", "lost"),
    [
        ("model.setdefault('lora', dict(r=1))", "model"),
        ("change(model)", "model"),
        ("for key in ('a', 'b'):\n    model[key] = 1", "model"),
        ("if unknown():\n    lr = 5", "lr"),
        ("while lr < 1:\n    lr *= 2", "lr"),
        ("x = [hooks.append(n) for n in range(3)]", "hooks"),
        ("def change():\n    hooks.clear()\nchange()", "hooks"),
        ("copied = model\ncopied.pop('llm')", "model"),
        ("from settings import *\nlr = their_rate", "lr"),
        ("model[unknown()] = 3", "model"),
        ("model.update(**unknown)", "model"),
        ("model.update(unknown())", "model"),
        ("hooks.extend(unknown())", "hooks"),
        ("hooks.insert(0, 1)", "hooks"),
    ],
)
def test_what_unread_code_may_have_changed_has_no_value(tmp_path: Path, line: str, lost: str) -> None:
    """A value that a loop or a call could have changed is not known, even if it stood there before."""
    config = read(tmp_path, f"lr = 1e-4\nhooks = [1]\nmodel = dict(llm=dict(path='p'))\nkept = 2\n{line}\n")
    value = config.values[lost]
    doubtful = isinstance(value, Unread) or (config.unread and line.startswith("model["))
    assert doubtful and config.values["kept"] == 2
    assert config.unread[0].where.startswith(str(tmp_path / "config.py:"))
    others = {"lr", "model", "hooks"} - {lost}
    if not line.startswith(("for", "while", "def", "copied")):
        assert not any(isinstance(config.values[name], Unread) for name in others)


def test_one_unread_value_leaves_its_neighbours(tmp_path: Path) -> None:
    config = read(tmp_path, "model = dict(lora=dict(r=rank(), alpha=16), n=[1, pick()])")
    assert config.find("model.lora.alpha") == 16 and config.find("model.n")[0] == 1
    found = config.find("model.lora.r")
    assert isinstance(found, Unread) and found.keys == ["model.lora.r"] and found.where.endswith("config.py:1")
    assert config.find("model.lora.r.anything") is found and config.find("model.other", None) is None


@pytest.mark.parametrize(
    "text",
    [
        *("'a' * 10 ** 12", "9 ** 9 ** 9", "[0] * 10 ** 9", "f'{1:1000000000}'", "'%1000000000d' % 1", "1 << 10 ** 9"),
        *("'%*d' % (10 ** 9, 1)", "(1 << 4000) * (1 << 4000)"),
    ],
)
def test_values_cannot_fill_the_memory(tmp_path: Path, text: str) -> None:
    assert isinstance(read(tmp_path, f"value = {text}").values["value"], Unread)


@pytest.mark.parametrize(
    ("text", "what", "place"),
    [
        ("a = 1\nb = = 2", "not Python: invalid syntax", ":2"),
        ("a = (1,\n", "not Python", ":1"),
        ("a = 1\0", "not Python", ""),
        ("_base_ = 'config.py'", "builds on itself", ""),
        ("_base_ = ['missing.py']", "builds on missing.py, which is not there", ":1"),
        ("_base_ = ['mmpkg::x.py']", "cannot be followed", ":1"),
        ("_base_ = [other()]", "cannot be followed", ":1"),
        ("_base_ = ['one.py', 'two.py']", "two bases give lr", ":1"),
        ("_base_ = 'one.py'\nlr = dict(a=1)", "'lr' is a mapping here and float in the base", ""),
        ("with read_base():\n    from .missing import *", "builds on missing.py, which is not there", ":2"),
        ("with read_base():\n    from xtuner.configs import *", "cannot be followed", ":2"),
        ("with read_base():\n    from .one import absent", "one.py has no 'absent'", ":2"),
        ("x = " + "(" * 3000 + "1" + ")" * 3000, "", ""),
        ("x = " + "-" * 100_000 + "1", "", ""),
        ("a = []\na.append(a)", "nested too deeply", ""),
        ("a = [0] * 9\n" + "".join(f"a = [{', '.join('a' * 9)}]\n" for _ in range(20)), "grows too large", ""),
    ],
)
def test_broken_configs_are_named_with_file_and_line(tmp_path: Path, text: str, what: str, place: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, text, one="lr = 1e-4", two="lr = 2e-4")
    assert what in caught.value.what and caught.value.fix
    assert f"config.py{place}" in caught.value.where


@pytest.mark.parametrize(
    ("make", "what"), [("missing", "no such file"), ("folder", "a folder stands"), ("latin", "not UTF-8")]
)
def test_files_that_are_no_config_are_named(tmp_path: Path, make: str, what: str) -> None:
    path = tmp_path / "config.py"
    if make == "folder":
        path.mkdir()
    elif make == "latin":
        path.write_bytes("a = 'é'".encode("latin-1"))
    with pytest.raises(InputError, match=what):
        read_config(path)


def test_environment_variables_are_not_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "SECRET_OF_MINE", "hunter2")
    config = read(tmp_path, "a = '{{$SECRET_OF_MINE:none}}'")
    assert "hunter2" not in str(config.as_json()) and isinstance(config.values["a"], Unread)
