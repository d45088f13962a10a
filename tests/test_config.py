"""The run file: defaults, then the file, then flags; strict; and the copy that a run folder keeps."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from projects import change_yaml, snapshot, write_project

from mrp.config import RunConfig, chat_options, keep_run, load_run
from mrp.errors import InputError, ManyFaults
from mrp.files import folder_lock
from mrp.yamlfile import dump_yaml, parse_yaml


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    return write_project(tmp_path / "project")


def error_of(run_file: Path, flags: dict[str, str] | None = None) -> InputError:
    with pytest.raises(InputError) as caught:
        load_run(run_file, flags)
    assert all(fault.fix for fault in getattr(caught.value, "faults", [caught.value]))
    return caught.value


# -- where a value comes from --------------------------------------------------------------------------------------


def test_flags_go_before_the_file_and_the_file_before_defaults(run_file: Path) -> None:
    run = load_run(run_file, {"train.epochs": "7", "train.rank": "2"})
    assert (run.config.train.epochs, run.config.train.alpha, run.config.train.clip) == (7, 4, 1.0)
    assert {key: run.origins[f"train.{key}"] for key in ("epochs", "rank", "alpha", "clip")} == {
        "epochs": "flag",
        "rank": "flag",
        "alpha": "file",
        "clip": "default",
    }
    assert set(run.origins.values()) == {"flag", "file", "default"}


def test_every_option_has_an_origin_and_a_default(run_file: Path) -> None:
    run = load_run(run_file)
    assert set(run.origins) >= {"base", "seed", "data.order", "train.epochs", "merge.max_shard_size", "chat.top_p"}
    assert sum(key.startswith("train.") for key in run.origins) <= 31  # few dials
    assert len(run.origins) <= 64
    assert RunConfig().train.epochs == 3


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("train.learning_rate", "2e-4", 2e-4),
        ("train.learning_rate", "0.001", 0.001),
        ("train.epochs", "4", 4),
        ("data.held_out", "0", 0.0),
        ("data.order", "sequential", "sequential"),
        ("question", "Who: are you? [1]", "Who: are you? [1]"),  # a text is taken as it is
        ("question", "No", "No"),
        ("base", "123", "123"),
        ("base", "", ""),
    ],
)
def test_values_of_flags(run_file: Path, key: str, text: str, value: object) -> None:
    found: object = load_run(run_file, {key: text}).config
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "what", "fix"),
    [
        ("train.epoch", "2", "unknown option 'train.epoch'", "did you mean 'train.epochs'?"),
        ("epochs", "2", "unknown option 'epochs'", "did you mean 'train.epochs'?"),
        ("train", "2", "unknown option 'train'", "train."),
        ("", "2", "unknown option ''", "known: "),
        ("train.epochs", "two", "valid integer, not 'two'", "correct"),
        ("train.epochs", "", "valid integer, not None", "correct"),
        ("train.epochs", "-1", "greater than or equal to 0, not -1", "correct"),
        ("train.epochs", "true", "valid integer, not True", "correct"),
        ("train.epochs", "[1", "broken YAML", "quotes"),
        ("data.held_out", "0.9", "less than or equal to 0.5, not 0.9", "correct"),
        ("data.order", "sideways", "'shuffled', 'sequential', 'round-robin' or 'blocked'", "correct"),
        ("merge.max_shard_size", "big", "pattern", "correct"),
    ],
)
def test_a_bad_flag_is_told_as_that_flag(run_file: Path, key: str, text: str, what: str, fix: str) -> None:
    error = error_of(run_file, {key: text})
    assert what in error.what and fix in error.fix
    assert error.where == f"--set {key}"


def test_a_reply_must_leave_room_for_a_prompt(run_file: Path) -> None:
    error = error_of(run_file, {"chat.max_new_tokens": "256"})
    assert "a reply of 256 tokens leaves no room for a prompt in 256" in error.what


# -- the file ------------------------------------------------------------------------------------------------------


def test_all_faults_of_a_file_are_told_at_once_with_their_lines(run_file: Path) -> None:
    text = "bse: x\ntrain:\n  epochs: 3\n  learningrate: 1\n  rank: big\nchat: {top_p: 2}\n"
    run_file.write_text(text, encoding="utf-8")
    error = error_of(run_file)
    assert isinstance(error, ManyFaults)
    told = {(f.what.split(",")[0], f.where.removeprefix(f"{run_file}:"), f.fix) for f in error.faults}
    assert told == {
        ("unknown key 'bse'", "1, bse", "did you mean 'base'?"),
        ("unknown key 'learningrate'", "4, train.learningrate", "did you mean 'learning_rate'?"),
        ("input should be a valid integer", "5, train.rank", "correct the value"),
        ("input should be less than or equal to 1", "6, chat.top_p", "correct the value"),
    }
    assert str(error).count("where:") == 4


def test_more_faults_than_a_person_reads_are_counted() -> None:
    error = ManyFaults("x", [InputError(f"fault {k}") for k in range(25)])
    assert "fault 19" in str(error) and "fault 20" not in str(error) and "... and 5 more" in str(error)
    assert len(error.as_json()["faults"]) == 25  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "the run file is empty"),
        ("\n \n", "the run file is empty"),
        ("- a\n", "a run file holds `key: value` lines"),
        ("train: 5\n", "wanted are `key: value` lines, not 5"),
        ("train: {epochs: 3\n", "broken YAML"),
        ("seed: 1\nseed: 2\n", "key given twice"),
        ("cast: nobody.yaml\n", "no such file: nobody.yaml"),
    ],
)
def test_a_file_that_is_no_run_is_told(run_file: Path, text: str, what: str) -> None:
    run_file.write_text(text, encoding="utf-8")
    assert what in error_of(run_file).what


def test_a_section_whose_lines_are_all_comments_has_its_defaults(run_file: Path) -> None:
    run_file.write_text("train:\n  # epochs: 9\nchat:\n", encoding="utf-8")
    assert load_run(run_file).config == RunConfig()
    assert load_run(run_file, {"train.epochs": "2"}).config.train.epochs == 2


def test_a_run_is_a_file_or_a_folder_that_holds_one(run_file: Path, tmp_path: Path) -> None:
    assert load_run(run_file.parent).path == run_file
    assert error_of(tmp_path).what == "this folder holds no run"
    assert error_of(tmp_path / "no.yaml").what == "no such file: no.yaml"


@pytest.mark.parametrize("out", [".", "", "../project", "../casts"])
def test_a_run_folder_never_takes_the_place_of_the_projects_own_files(run_file: Path, out: str) -> None:
    casts = run_file.parent.parent / "casts"
    casts.mkdir()
    shutil.copyfile(run_file.parent / "cast.yaml", casts / "cast.yaml")
    change_yaml(run_file, out=out, cast="../casts/cast.yaml")
    error = error_of(run_file)
    assert "mrp would write over" in error.what and ", out" in error.where


@pytest.mark.parametrize("name", ["data", "adapter", "checkpoint"])
def test_a_run_folder_never_takes_the_place_of_folders_of_yours(run_file: Path, name: str) -> None:
    change_yaml(run_file, out="..")
    (run_file.parent.parent / name).mkdir()
    load_run(run_file)  # an empty one is nobody's
    (run_file.parent.parent / name / "mine.jsonl").write_text("mine", encoding="utf-8")
    error = error_of(run_file)
    assert f"has a folder '{name}' that is not from mrp" in error.what and "mrp.yaml:" in error.where
    (run_file.parent.parent / ".mrp.lock").touch()  # but where mrp worked before, all of it is its own
    load_run(run_file)


# -- the copy in the run folder ------------------------------------------------------------------------------------


def kept(run_file: Path, flags: dict[str, str] | None = None) -> Path:
    """The run folder after its files were kept."""
    run = load_run(run_file, flags)
    with folder_lock(run.folder):
        keep_run(run)
    return run.folder


def test_the_kept_run_means_the_same_and_leads_to_the_same_files(run_file: Path, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    change_yaml(run_file, base="../base")
    run = load_run(run_file, {"train.epochs": "9"})
    again = load_run(kept(run_file, {"train.epochs": "9"}))
    assert again.config.model_dump(exclude={"base", "cast", "out"}) == run.config.model_dump(
        exclude={"base", "cast", "out"}
    )
    assert again.folder.resolve() == run.folder.resolve()
    assert (again.path.parent / again.config.base).resolve() == tmp_path / "base"
    assert again.cast.model_copy(update={"home": ""}) == run.cast
    for character in run.cast:
        for name in character.dialogues:
            assert again.dialogue_path(name).resolve() == run.dialogue_path(name).resolve()


def test_keeping_the_kept_run_changes_nothing_but_what_flags_changed(run_file: Path) -> None:
    folder = kept(run_file)
    before = snapshot(folder)
    assert kept(folder).resolve() == folder.resolve()
    assert snapshot(folder) == before
    kept(folder, {"train.epochs": "9"})
    after = snapshot(folder)
    assert {name for name in after if after[name] != before[name]} == {"run.yaml"}
    assert load_run(folder).config.train.epochs == 9


def test_a_project_may_move_as_a_whole(run_file: Path, tmp_path: Path) -> None:
    kept(run_file)
    moved = tmp_path / "elsewhere" / "deep"
    moved.parent.mkdir()
    shutil.move(run_file.parent, moved)
    run = load_run(moved / "run")
    assert run.dialogue_path(run.cast["wukong"].dialogues[0]).is_file()


def test_a_base_named_from_the_working_directory_is_found_from_the_run_folder_too(
    run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    folder = kept(run_file, {"base": "base"})
    assert (folder / load_run(folder).config.base).resolve() == tmp_path / "here" / "base"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("smollm2-135m-instruct", "smollm2-135m-instruct"),
        ("../not-there-yet", "../../not-there-yet"),
        ("/somewhere/base", "/somewhere/base"),
        ("~/base", "~/base"),
    ],
)
def test_bases_that_are_not_there_keep_their_meaning(run_file: Path, given: str, wanted: str) -> None:
    assert load_run(kept(run_file, {"base": given})).config.base == wanted


def test_a_cast_that_is_kept_is_whole(run_file: Path) -> None:
    change_yaml(run_file.parent / "cast.yaml", scenario="On the road.", language="zh")
    value = yaml.safe_load((kept(run_file) / "cast.yaml").read_text(encoding="utf-8"))
    assert (value["scenario"], value["language"], value["home"]) == ("On the road.", "zh", "..")


# -- a model without a run -----------------------------------------------------------------------------------------


def test_a_model_folder_takes_chat_options_only() -> None:
    assert chat_options({}) == RunConfig().chat
    assert chat_options({"chat.temperature": "0"}).temperature == 0
    for flags, what in (({"train.rank": "1"}, "chat options only"), ({"chat.temprature": "1"}, "unknown option")):
        with pytest.raises(InputError, match=what):
            chat_options(flags)
    with pytest.raises(InputError, match="valid number") as caught:
        chat_options({"chat.temperature": "hot"})
    assert caught.value.where == "--set chat.temperature"


TRICKY_TEXTS = ("1e5", "0E0", "true", "2026-01-02", "null", "a: b", " x ", "one\ntwo", "\u2028", "- a")


@pytest.mark.parametrize("text", TRICKY_TEXTS)
def test_what_is_written_as_yaml_is_read_back_as_it_was(text: str) -> None:
    value = {"name": text, "list": [text]}
    assert parse_yaml(dump_yaml(value), "here") == value


@pytest.mark.parametrize(
    ("data", "word"),
    [
        ("{take: head-tail}", "data.head"),
        ("{take: random}", "data.sample"),
        ("{take: stratified, head: 3}", "data.sample"),
        ("{mix: 0.1}", "data.mix_files"),
        ("{reject: [mojibaka]}", "did you mean 'mojibake'?"),
    ],
)
def test_data_options_that_say_nothing_together_are_refused(run_file: Path, data: str, word: str) -> None:
    run_file.write_text(f"data: {data}\n", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_run(run_file)
    assert word in str(caught.value)
