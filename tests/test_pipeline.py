"""`mrp run`: every step once, and again only where what it needs has changed."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from projects import PEOPLE, change_yaml, snapshot, write_project

from mrp.config import Run, load_run
from mrp.data.build import data_fingerprint
from mrp.errors import InputError, MrpError, SetupError, Stopped
from mrp.files import read_json
from mrp.pipeline import STEPS, run_all
from mrp.report import Progress, Reporter

pytest.importorskip("torch")

ALL = set(STEPS) - {"pull"}  # a folder as base needs no pulling


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A project whose run is finished, its base beside it; not to be changed."""
    home = tmp_path_factory.mktemp("finished")
    shutil.copytree(tiny_base, home / "base")
    run_file = write_project(home / "project", "../base")
    run_all(load_run(run_file))
    return run_file


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, with its base, to be changed."""
    home = Path(shutil.copytree(finished.parent.parent, tmp_path / "moved"))
    return home / "project" / "mrp.yaml"


class Heard(Reporter):
    """Keeps what it is told; `signal_at` is the label of a progress at whose first step this process is signalled."""

    def __init__(self, signal_at: str = "") -> None:
        self.lines: list[str] = []
        self.signal_at = signal_at

    def line(self, text: object = "") -> None:
        self.lines.append(str(text))

    @contextmanager
    def progress(self, label: str, total: float, unit: str) -> Iterator[Progress]:
        del total, unit

        def update(done: float, **shown: object) -> None:
            del done, shown
            if label == self.signal_at:
                self.signal_at = ""
                os.kill(os.getpid(), signal.SIGINT)

        yield update


def done(path: Path, flags: dict[str, str] | None = None, report: Reporter | None = None) -> set[str]:
    """The steps that a run really did."""
    summary = run_all(load_run(path, flags), report or Reporter())
    assert set(summary["skipped"]) <= set(STEPS)
    return set(STEPS) - set(summary["skipped"])


def training_fingerprint(run: Run) -> str:
    return str(read_json(run.record)["fingerprint"])


# -- the summary ---------------------------------------------------------------------------------------------------


def test_the_summary_holds_what_the_contract_says(finished: Path) -> None:
    run = load_run(finished)
    summary = read_json(run.folder / "summary.json")
    assert [r["character"] for r in summary["replies"]] == list(PEOPLE)
    for reply in summary["replies"]:
        assert set(reply) == {"character", "question", "before", "after"}
        assert reply["question"] == "Who are you?"
        assert all(isinstance(reply[when], str) for when in ("before", "after"))
    assert set(summary["held_out_loss"]) == set(PEOPLE)
    assert all(set(loss) == {"before", "after"} for loss in summary["held_out_loss"].values())
    assert all(loss["after"] < loss["before"] for loss in summary["held_out_loss"].values())
    assert list(summary["seconds"]) == list(STEPS) and all(s >= 0 for s in summary["seconds"].values())
    assert set(summary["paths"]) == {"run", "data", "adapter", "merged", "record", "summary"}
    assert all(Path(path).is_absolute() and Path(path).exists() for path in summary["paths"].values())


def test_a_person_is_told_replies_losses_times_and_places(project: Path) -> None:
    heard = Heard()
    done(project, report=heard)
    text = "\n".join(heard.lines)
    for words in ("Who are you?", "Sun Wukong", "  before", "  after", "->", "Time by step", "Model ", " chat "):
        assert words in text, words


def test_with_voices_the_summary_tells_what_they_add(project: Path) -> None:
    heard = Heard()
    done(project, {"train.voices": "true", "train.voice_rank": "2", "train.dev": "0"}, heard)
    run = load_run(project)
    summary = read_json(run.folder / "summary.json")
    assert summary["paths"]["voices"] == str(run.voices.resolve())
    (head,) = [k for k, line in enumerate(heard.lines) if line.split() == ["before", "adapter", "+", "voice"]]
    assert set(summary["held_out_loss"]) == set(PEOPLE)
    for line, (who, loss) in zip(heard.lines[head + 1 :], summary["held_out_loss"].items(), strict=False):
        assert line.split() == [who, *(f"{loss[key]:.3f}" for key in ("before", "adapter", "after"))]
    done(project, {"train.voices": "false"})
    assert "voices" not in read_json(run.folder / "summary.json")["paths"]


def test_the_files_of_a_run_are_those_of_its_parts(finished: Path) -> None:
    names = {name.split("/")[0] for name in snapshot(finished.parent / "run")}
    assert names >= {
        "run.yaml",
        "cast.yaml",
        "data",
        "adapter",
        "merged",
        "run.json",
        "summary.json",
        "evaluation.json",
    }
    assert not any(name.startswith(".mrp-") for name in names)


# -- done once -----------------------------------------------------------------------------------------------------


def test_a_second_run_does_nothing_and_keeps_the_seconds_of_the_first(project: Path) -> None:
    before, first = snapshot(project.parent), read_json(project.parent / "run" / "summary.json")
    assert done(project) == set()
    after, second = snapshot(project.parent), read_json(project.parent / "run" / "summary.json")
    assert {name for name in after if after[name] != before.get(name)} <= {"run/summary.json"}
    assert second["seconds"] == first["seconds"] and second["skipped"] == list(STEPS)


@pytest.mark.parametrize("name", ["run/run.yaml", "run", ".", "mrp.yaml"])
def test_the_run_folder_alone_is_the_same_run_from_anywhere(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Moved with its base, and seen from another working directory."""
    home = Path(shutil.copytree(finished.parent.parent, tmp_path / "a" / "b"))
    monkeypatch.chdir(tmp_path)
    path = Path(os.path.relpath(home / "project")) / name
    assert data_fingerprint(load_run(path)) == data_fingerprint(load_run(finished))
    assert done(path) == set()


def test_a_run_by_flags_is_finished_for_its_run_folder(tmp_path: Path, tiny_base: Path) -> None:
    run_file = write_project(tmp_path / "project")
    assert done(run_file, {"base": str(tiny_base), "train.rank": "2", "question": "Why: me?"}) == ALL
    assert done(run_file.parent / "run") == set()


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        ({"question": "Where are you?"}, {"evaluate"}),
        ({"chat__temperature": 0.1}, {"evaluate"}),
        ({"chat__max_new_tokens": 5}, {"evaluate"}),
        ({"merge__max_shard_size": "100kB"}, {"merge"}),
        ({"train__learning_rate": 1e-3}, {"train", "merge", "evaluate"}),
        ({"train__rank": 2}, {"train", "merge", "evaluate"}),
        ({"data__held_out": 0.3}, ALL),
        ({"data__order": "sequential"}, ALL),
        ({"seed": 1}, ALL),
        ({"train__threads": 1}, set()),
        ({"train__checkpoint_minutes": 1.0}, set()),
    ],
)
def test_a_changed_option_redoes_what_depends_on_it(project: Path, change: dict[str, Any], redone: set[str]) -> None:
    change_yaml(project, **change)
    assert done(project) == redone
    assert done(project) == set()


def test_a_changed_persona_is_trained_and_a_changed_greeting_is_not(project: Path) -> None:
    cast = project.parent / "cast.yaml"
    text = cast.read_text(encoding="utf-8")
    cast.write_text(text.replace("name: Sun Wukong", "name: Sun Wukong\n  greeting: Ha!"), encoding="utf-8")
    assert "train" not in done(project)
    assert "greeting: Ha!" in (project.parent / "run" / "merged" / "cast.yaml").read_text(encoding="utf-8")
    cast.write_text(text.replace("You are Sun Wukong.", "You are the Monkey King."), encoding="utf-8")
    assert done(project) >= {"train", "merge", "evaluate"}


def test_a_changed_dialogue_redoes_everything(project: Path) -> None:
    with (project.parent / "wukong.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"turns":[{"speaker":"other","text":"Hm?"},{"speaker":"wukong","text":"Ha!"}]}\n')
    assert done(project) == ALL


@pytest.mark.parametrize(
    ("lost", "redone"),
    [
        ("data/train.jsonl", {"build"}),  # what comes out is as it was, so nothing else is done again
        ("data", {"build"}),
        ("adapter/adapter_model.safetensors", {"train"}),
        ("merged/model.safetensors", {"merge"}),
        ("merged", {"merge"}),
        ("evaluation.json", {"evaluate"}),
        ("run.yaml", set()),
        ("cast.yaml", set()),
        ("seconds.json", set()),
        ("summary.json", set()),
    ],
)
def test_what_was_deleted_is_made_again_as_it_was(project: Path, lost: str, redone: set[str]) -> None:
    folder = project.parent / "run"
    before = snapshot(folder)
    if (folder / lost).is_dir():
        shutil.rmtree(folder / lost)
    else:
        (folder / lost).unlink()
    assert done(project) == redone
    after = snapshot(folder)
    may_differ = {"summary.json", "seconds.json", "run.json", "steps.jsonl"}  # times
    assert {name for name in before if after.get(name) != before[name]} <= may_differ


@pytest.mark.parametrize("name", ["evaluation.json", "seconds.json", "summary.json"])
@pytest.mark.parametrize("content", ["", "{", "[1]"])
def test_a_broken_record_of_ours_is_made_again(project: Path, name: str, content: str) -> None:
    (project.parent / "run" / name).write_text(content, encoding="utf-8")
    assert done(project) == ({"evaluate"} if name == "evaluation.json" else set())
    assert json.loads((project.parent / "run" / "summary.json").read_text(encoding="utf-8"))["replies"]


def test_restart_trains_anew_what_is_done(project: Path) -> None:
    summary = run_all(load_run(project), restart=True)
    assert "train" not in summary["skipped"] and "build" in summary["skipped"]


# -- stopped and gone on -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["merge", "evaluate"])
def test_a_run_killed_between_steps_goes_on_with_the_next(
    project: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_yaml(project, train__learning_rate=1e-3)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    place = {"merge": "mrp.models.merge.merge_run", "evaluate": "mrp.evaluate.replies.ask_everybody"}[step]
    with monkeypatch.context() as patch:
        patch.setattr(place, killed)
        with pytest.raises(KeyboardInterrupt):
            run_all(load_run(project))
    assert done(project) == set(STEPS[STEPS.index(step) :])


def test_a_run_stopped_in_training_says_how_to_go_on_and_does(project: Path) -> None:
    before = snapshot(project.parent / "run" / "adapter")
    change_yaml(project, train__epochs=3)
    with pytest.raises(Stopped) as caught:
        run_all(load_run(project), Heard("training"))
    assert caught.value.fix == f"mrp run {project}"
    assert snapshot(project.parent / "run" / "adapter") == before
    heard = Heard()
    assert done(project, report=heard) == {"train", "merge", "evaluate"}
    assert any("goes on after step" in line for line in heard.lines)


def test_a_run_stopped_under_flags_is_gone_on_with_by_its_folder(project: Path) -> None:
    changed = load_run(project, {"train.epochs": "3"})
    with pytest.raises(Stopped) as caught:
        run_all(changed, Heard("training"))
    assert caught.value.fix == f"mrp run {changed.folder}"
    heard = Heard()
    assert done(changed.folder, report=heard) == {"train", "merge", "evaluate"}
    assert any("goes on after step" in line for line in heard.lines)


def test_a_stopped_training_of_other_options_is_kept_until_told_otherwise(project: Path) -> None:
    change_yaml(project, train__epochs=3)
    with pytest.raises(Stopped):
        run_all(load_run(project), Heard("training"))
    change_yaml(project, train__learning_rate=1e-3)
    with pytest.raises(InputError, match="changed since this training was stopped") as caught:
        run_all(load_run(project))
    assert "--restart" in caught.value.fix
    assert run_all(load_run(project), restart=True)["replies"]


# -- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"base": "nobody"}, "unknown base model 'nobody'"),
        ({"base": "."}, "cannot serve as base model"),
        ({"data__order": "sideways"}, "'shuffled', 'sequential', 'round-robin' or 'blocked'"),
        ({"chat__context_tokens": 64, "chat__max_new_tokens": 60}, "need"),
    ],
)
def test_what_the_user_can_mend_leaves_earlier_results_intact(project: Path, change: dict[str, Any], what: str) -> None:
    before = snapshot(project.parent / "run")
    change_yaml(project, **change)
    with pytest.raises(MrpError, match=what) as caught:
        run_all(load_run(project))
    assert caught.value.exit_code == 2
    after = snapshot(project.parent / "run")
    assert {name for name in before if after[name] != before[name]} <= {"run.yaml", "seconds.json"}


def test_a_disk_that_is_full_in_any_step_leaves_earlier_results_intact(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = project.parent / "run"
    before = snapshot(folder)
    change_yaml(project, data__held_out=0.3)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mrp.files.os.fsync", full)
    with pytest.raises(SetupError, match="no space left on the disk"):
        run_all(load_run(project))
    assert snapshot(folder) == before
