"""The command line as scripts see it: help, JSON, exit codes, and errors that say what, where and how to fix it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from command import fails, mrp
from projects import change_yaml, held_by_another_process, snapshot, write_project, write_rows, write_yaml

from mrp import __version__
from mrp.cli import app
from mrp.errors import InputError, Stopped

HEAVY = ("torch", "transformers", "peft", "yaml", "numpy", "huggingface_hub", "httpx", "filelock", "mrp.config")


def all_commands(group: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command and group below `group`, by path."""
    group = group or typer.main.get_command(app)
    yield path
    for name, child in getattr(group, "commands", {}).items():
        yield from all_commands(child, (*path, name))


COMMANDS = list(all_commands())
LEAVES = [c for c in COMMANDS if not any(other[:-1] == c for other in COMMANDS if other)]


def python(*arguments: str, **given: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, **given)


@pytest.fixture
def project(tmp_path: Path, tiny_base: Path) -> Path:
    return write_project(tmp_path / "project", tiny_base)


# -- help ----------------------------------------------------------------------------------------------------------


def test_all_commands_of_the_contract_that_are_built_are_here() -> None:
    assert set(COMMANDS) >= {
        ("init",),
        ("run",),
        ("pull",),
        ("train",),
        ("merge",),
        ("chat",),
        ("presets", "list"),
        ("presets", "copy"),
        ("data", "check"),
        ("data", "build"),
        ("data", "show"),
        ("data", "convert"),
        ("data", "recipe"),
        ("data", "merge"),
        ("plan",),
        ("export",),
        ("doctor",),
        ("import", "xtuner"),
        ("convert", "internlm2-to-llama"),
        ("convert", "llama-to-internlm2"),
        ("convert", "pth-to-hf"),
        ("card", "import"),
        ("card", "export"),
    }


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_of_every_command(command: tuple[str, ...]) -> None:
    done = mrp(*command, "--help")
    assert done.code == 0 and done.out.startswith("Usage: ") and not done.err


@pytest.mark.parametrize("command", LEAVES, ids=" ".join)
def test_every_command_takes_the_common_options(command: tuple[str, ...]) -> None:
    help_text = mrp(*command, "--help").out
    assert all(option in help_text for option in ("--json", "--debug", "-q, --quiet"))


def test_help_imports_nothing_heavy() -> None:
    script = """
import json, sys
from mrp.cli import app
for command in json.loads(sys.argv[1]):
    try:
        app([*command, "--help"])
    except SystemExit as end:
        assert end.code == 0, command
print("\\n" + json.dumps(sorted(sys.modules)))
"""
    done = python("-c", script, json.dumps(COMMANDS))
    assert done.returncode == 0, done.stderr
    assert not set(json.loads(done.stdout.splitlines()[-1])) & set(HEAVY)


def test_help_takes_less_than_a_second() -> None:
    seconds = []
    for _ in range(3):  # the quickest of three, since other work may run on this machine
        began = time.monotonic()
        assert python("-m", "mrp", "--help").returncode == 0
        seconds.append(time.monotonic() - began)
    assert min(seconds) < 1


def test_a_command_alone_shows_the_help() -> None:
    for command in ((), ("data",), ("presets",)):
        done = mrp(*command)
        assert done.code == 2 and "Usage:" in done.out + done.err


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("tain",), "No such command 'tain'"),
        (("train", "--ordr", "x"), "No such option: --ordr"),
        (("data", "show", "-n", "x"), "valid integer"),
        (("presets", "copy"), "Missing argument"),
    ],
)
def test_a_command_that_is_none_is_told(command: tuple[str, ...], words: str) -> None:
    done = mrp(*command)
    assert done.code == 2 and words in done.err and "--help" in done.err and not done.out


# -- results -------------------------------------------------------------------------------------------------------


def test_json_is_all_that_standard_output_holds(project: Path, tmp_path: Path) -> None:
    assert mrp("version", "--json").json == {"version": __version__}
    assert "lora-any-base" in mrp("presets", "list", "--json").json
    assert Path(mrp("presets", "copy", "lora-any-base", tmp_path / "p", "--json").json["file"]).is_file()
    assert len(mrp("init", tmp_path / "new", "--json").json["files"]) == 5
    assert mrp("data", "check", project.parent / "wukong.jsonl", "--json").json["ok"] is True
    assert mrp("data", "build", project, "--json").json["totals"]["kept"] == 12
    shown = mrp("data", "show", project, "--json", "-n", "2", "--character", "Zhu Bajie").json["samples"]
    assert [s["character"] for s in shown] == ["bajie", "bajie"]
    assert set(mrp("train", project, "--json").json) == {"measures", "order"}
    merged = Path(mrp("merge", project, "--json").json["folder"])
    assert (merged / "config.json").is_file()
    chat = mrp("chat", merged, "--json", "--set", "chat.max_new_tokens=2", stdin="Hi\n/as bajie\n/quit\n")
    assert chat.json["participants"] == ["wukong", "bajie", "other"] and "Now Zhu Bajie" in chat.err
    summary = mrp("run", project, "--json").json
    assert summary == json.loads((project.parent / "run" / "summary.json").read_text(encoding="utf-8"))


def test_quiet_leaves_the_result(project: Path, tmp_path: Path) -> None:
    assert mrp("version", "-q").out == f"{__version__}\n"
    assert "lora-any-base" in mrp("presets", "list", "-q").out
    assert mrp("init", tmp_path / "new", "-q").out == ""
    assert mrp("data", "build", project, "-q").out == ""
    assert "You are Sun Wukong" in mrp("data", "show", project, "-q", "--character", "wukong").out
    assert "Who are you?" in mrp("run", project, "-q").out


def test_what_is_shown_marks_what_is_learnt(project: Path) -> None:
    assert mrp("data", "build", project).code == 0
    text = mrp("data", "show", project, "-n", "1", "--character", "wukong").out
    assert "⟦Sun Wukong: " in text and "⟦<|im_start|>" not in text


def test_a_new_project_builds_and_runs(tmp_path: Path, tiny_base: Path) -> None:
    folder = tmp_path / "new"
    assert "dialogues/ada.jsonl" in mrp("init", folder).out
    assert mrp("data", "check", folder).code == 0
    assert mrp("data", "build", folder).code == 0
    tiny = (f"base={tiny_base}", "train.epochs=1", "train.precision=fp32", "chat.max_new_tokens=4")
    done = mrp("run", folder, *(word for setting in tiny for word in ("--set", setting)))
    assert done.code == 0, done.err
    assert "Ada the Clockmaker" in done.out and (folder / "run" / "summary.json").is_file()
    fails(mrp("init", folder), 2, "exists already", "fix:")


def test_the_working_directory_is_the_run_where_none_is_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.parent)
    assert mrp("data", "build").code == 0
    assert (project.parent / "run" / "data" / "train.jsonl").is_file()


def test_order_is_told_by_a_flag(project: Path) -> None:
    mrp("data", "build", project)
    assert mrp("train", project, "--order", "sequential", "--json").json["order"]["asked"] == "sequential"
    fails(mrp("train", project, "--order", "sideways"), 2, "sideways")


# -- exit codes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (InputError("bad", "here:1", "mend it"), 2, "error: bad\n  where: here:1\n  fix:   mend it\n"),
        (OSError(28, "No space left on device", "big"), 2, "error: no space left on the disk while writing big"),
        (OSError(27, "File too large"), 2, "error: a file is longer than a file may be here"),
        (PermissionError(13, "Permission denied", "mine"), 2, "error: cannot write mine"),
        (ZeroDivisionError("x"), 1, "error: ZeroDivisionError: x\n  fix:   this is a fault of mrp"),
        (KeyboardInterrupt(), 130, "interrupted; the same command again does the rest\n"),
        (Stopped("stopped", "there", "mrp run x"), 130, "stopped\n  where: there\n  fix:   mrp run x\n"),
    ],
)
def test_an_error_is_told_and_has_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, words: str
) -> None:
    def broken() -> None:
        raise error

    monkeypatch.setattr("mrp.presets.describe_presets", broken)
    done = mrp("presets", "list")
    fails(done, code)
    assert done.err.startswith(words) and not done.out
    as_json = mrp("presets", "list", "--json")
    assert as_json.code == code and set(as_json.json) == {"error"} and as_json.json["error"]["what"]
    debug = mrp("presets", "list", "--debug")
    assert debug.code == code and "Traceback" in debug.err and words.splitlines()[0] in debug.err


def test_many_faults_are_all_in_the_json(project: Path) -> None:
    change_yaml(project, sed=1, trian={})
    error = mrp("data", "build", project, "--json").json["error"]
    assert [f["fix"] for f in error["faults"]] == ["did you mean 'seed'?", "did you mean 'train'?"]


def test_a_reader_who_has_seen_enough_is_no_fault_of_ours() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "mrp", "presets", "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stderr
    process.stdout.close()
    assert "error" not in process.stderr.read()
    process.stderr.close()
    process.wait(20)


def test_warnings_of_libraries_are_for_their_developers(monkeypatch: pytest.MonkeyPatch) -> None:
    def warn() -> dict[str, str]:
        import warnings

        for module in ("transformers.modeling_utils", "mrp.presets"):
            warnings.warn_explicit("old", FutureWarning, "x.py", 1, module, {})
        return {}

    monkeypatch.setattr("mrp.presets.describe_presets", warn)
    with pytest.warns(FutureWarning) as caught:
        assert mrp("presets", "list").code == 0
    assert len(caught) == 1


# -- bad input -----------------------------------------------------------------------------------------------------


def test_a_run_that_is_not_there_is_told_by_every_command(tmp_path: Path) -> None:
    for command in (["run"], ["data", "build"], ["data", "show"], ["data", "check"], ["train"], ["merge"], ["chat"]):
        fails(mrp(*command, tmp_path / "no.yaml"), 2, "no such file", "no.yaml")


def test_results_that_are_not_there_yet_are_told(project: Path) -> None:
    fails(mrp("data", "show", project), 2, "the data is not built", "mrp data build")
    fails(mrp("train", project), 2, "the data is not built", "mrp data build")
    mrp("data", "build", project)
    fails(mrp("merge", project), 2, "adapter", "mrp train")
    fails(mrp("chat", project), 2, "nothing is trained here yet", "mrp run")
    fails(mrp("data", "show", project, "--character", "nobody"), 2, "no character 'nobody'", "known:")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("train.epoch=2", ["unknown option 'train.epoch'", "did you mean 'train.epochs'?"]),
        ("train.epochs=x", ["valid integer, not 'x'", "--set train.epochs"]),
        ("train.epochs", ["--set wants KEY=VALUE", "for example"]),
    ],
)
@pytest.mark.parametrize("command", [("run",), ("data", "build"), ("train",), ("chat",)], ids=" ".join)
def test_a_bad_setting_is_told_by_every_command(
    project: Path, command: tuple[str, ...], setting: str, words: list[str]
) -> None:
    fails(mrp(*command, project, "--set", setting), 2, *words)
    assert not (project.parent / "run" / "data").exists()


def damage_missing(home: Path) -> None:
    (home / "bajie.jsonl").unlink()


def damage_empty(home: Path) -> None:
    (home / "bajie.jsonl").write_text("\n", encoding="utf-8")


def damage_lines(home: Path) -> None:
    write_rows(home / "bajie.jsonl", ['{"turns": [', {"turns": "x"}, {"turns": [{"speaker": "bajie", "text": 7}]}])


def damage_ids(home: Path) -> None:
    write_yaml(home / "cast.yaml", {"characters": [{"id": "a", "name": "A"}, {"id": "a", "name": "B"}]})


def damage_keys(home: Path) -> None:
    change_yaml(home / "cast.yaml", langauge="en")


def damage_cast(home: Path) -> None:
    (home / "cast.yaml").write_text("characters: [", encoding="utf-8")


def damage_run_file(home: Path) -> None:
    (home / "mrp.yaml").write_text("", encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_missing, ["no such file: bajie.jsonl"]),
        (damage_empty, ["the file is empty", "bajie.jsonl"]),
        (damage_lines, ["'bajie' has no usable line", "cast.yaml", "mrp data check"]),
        (damage_ids, ["the id 'a' is used twice", "cast.yaml:4, characters[1].id"]),
        (damage_keys, ["unknown key 'langauge'", "did you mean 'language'?"]),
        (damage_cast, ["broken YAML", "cast.yaml:"]),
        (damage_run_file, ["the run file is empty", "mrp.yaml"]),
    ],
)
def test_bad_files_are_told_and_earlier_results_stay(project: Path, damage: Any, words: list[str]) -> None:
    assert mrp("data", "build", project).code == 0
    folder = project.parent / "run"
    before = snapshot(folder)
    damage(project.parent)
    for command in (["data", "build"], ["run"]):
        fails(mrp(*command, project), 2, *words)
    assert mrp("data", "check", project).code == 2
    assert snapshot(folder) == before


def test_check_names_every_broken_line(project: Path) -> None:
    damage_lines(project.parent)
    done = mrp("data", "check", project)
    fails(done, 2, *(f"bajie.jsonl:{number}" for number in (1, 2, 3)), "broken-json", "wrong-type", "no usable line")
    assert "9 lines, 6 of them usable" in done.out
    done = mrp("data", "check", project, "--json")
    assert done.code == 2 and len(done.json["error"]["faults"]) == 4
    assert (done.json["ok"], done.json["lines"], done.json["kept"]) == (False, 9, 6)
    assert done.json["rejected"] == {"broken-json": 1, "wrong-type": 2}


def test_an_unknown_base_is_told_with_the_known_ones(project: Path) -> None:
    for base in ("smollm2-135m-instrct", "nowhere/model"):
        change_yaml(project, base=base)
        fails(mrp("run", project), 2, f"unknown base model '{base}'", "smollm2-135m-instruct")
    fails(mrp("pull", "smolm2"), 2, "unknown base model 'smolm2'")


def test_a_second_command_in_the_same_folder_is_refused(project: Path) -> None:
    assert mrp("run", project).code == 0
    folder = project.parent / "run"
    before = snapshot(folder)
    with held_by_another_process(folder):
        for command in (["run"], ["data", "build"], ["train"], ["merge"]):
            fails(mrp(*command, project), 2, "another mrp command is working in this folder", str(folder))
        assert mrp("data", "show", project).code == 0  # looking is no work
        assert mrp("chat", project, stdin="/quit\n").code == 0
    assert snapshot(folder) == before


def test_a_full_disk_is_told_and_earlier_results_stay(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mrp("data", "build", project).code == 0
    before = snapshot(project.parent)

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr("mrp.files.os.fsync", full)
        fails(mrp("data", "build", project, "--set", "seed=1"), 2, "no space left on the disk", "free some space")
    assert snapshot(project.parent) == before


def test_a_file_in_the_place_of_the_run_folder_is_told(project: Path) -> None:
    (project.parent / "run").write_text("mine", encoding="utf-8")
    for command in (["run"], ["data", "build"]):
        fails(mrp(*command, project), 2, "a file stands where a folder is wanted")
    assert (project.parent / "run").read_text(encoding="utf-8") == "mine"
