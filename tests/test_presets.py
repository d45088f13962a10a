"""Run files that come with mrp, and the project that `mrp init` writes."""

from __future__ import annotations

from pathlib import Path

import pytest
from projects import snapshot

from mrp import presets
from mrp.cast import load_cast
from mrp.config import RunConfig, load_run
from mrp.data.build import build_data
from mrp.data.check import check_data
from mrp.data.samples import read_samples
from mrp.errors import InputError
from mrp.presets import HOME, copy_preset, describe_presets, write_starter
from mrp.yamlfile import check_value, dump_yaml, key_lines, read_yaml

EXAMPLES = Path(__file__).parent.parent / "examples"
EXPERIMENTS = ("orders.yaml", "parts.yaml")  # of `mrp compare`
RUN_FILES = [*sorted(HOME.rglob("*.yaml")), *sorted(EXAMPLES.rglob("*.yaml"))]


@pytest.mark.parametrize(
    "path",
    [p for p in RUN_FILES if p.name not in ("cast.yaml", *EXPERIMENTS)],
    ids=lambda p: f"{p.parent.name}/{p.name}",
)
def test_every_run_file_that_comes_with_mrp_is_one(path: Path) -> None:
    config = check_value(read_yaml(path), RunConfig, path, key_lines(path))
    if (path.parent / config.cast).is_file():
        load_run(path)


@pytest.mark.parametrize("path", [p for p in RUN_FILES if p.name == "cast.yaml"], ids=lambda p: p.parent.name)
def test_every_cast_that_comes_with_mrp_is_one(path: Path) -> None:
    assert all(character.persona for character in load_cast(path))


def test_presets_say_what_they_are_for() -> None:
    found = describe_presets()
    assert {"smollm2-135m-cpu", "lora-any-base"} <= set(found)
    assert all(len(text) > 20 and not text.startswith("#") for text in found.values())


def test_a_preset_is_copied_and_never_over_a_file(tmp_path: Path) -> None:
    path = copy_preset("smollm2-135m-cpu", tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "mrp.yaml"
    path.write_text("mine")
    with pytest.raises(InputError, match=r"mrp\.yaml exists already"):
        copy_preset("lora-any-base", path.parent)
    assert path.read_text() == "mine"


@pytest.mark.parametrize("name", ["smollm2-135m-gpu", "../presets/lora-any-base", ""])
def test_an_unknown_preset_is_told_with_the_nearest(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="unknown preset") as caught:
        copy_preset(name, tmp_path)
    assert "lora-any-base" in caught.value.fix or "smollm2-135m-cpu" in caught.value.fix


def test_a_new_project_builds_without_a_change(tmp_path: Path) -> None:
    files = write_starter(tmp_path / "new")
    assert {p.name for p in files} >= {"cast.yaml", "mrp.yaml"}
    assert all(p.is_file() for p in files)
    run = load_run(tmp_path / "new")
    assert check_data([tmp_path / "new"]).ok
    manifest = build_data(run)
    assert not manifest["totals"]["rejected"]
    assert all(manifest["characters"][c.id]["train"]["samples"] for c in run.cast)


@pytest.mark.parametrize("present", ["cast.yaml", "mrp.yaml", "dialogues/ada.jsonl"])
def test_a_new_project_never_touches_a_file_of_yours(tmp_path: Path, present: str) -> None:
    (tmp_path / present).parent.mkdir(exist_ok=True)
    (tmp_path / present).write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        write_starter(tmp_path)
    assert snapshot(tmp_path) == {present: b"mine"}


def test_a_project_that_cannot_be_written_whole_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy, copied = presets.shutil.copyfile, []

    def copy_two(source: Path, target: Path) -> None:
        if len(copied) == 2:
            raise OSError(28, "No space left on device")
        copied.append(copy(source, target))

    monkeypatch.setattr(presets.shutil, "copyfile", copy_two)
    with pytest.raises(InputError, match="cannot write: No space left"):
        write_starter(tmp_path / "new")
    assert snapshot(tmp_path) == {}


def test_a_file_where_the_folder_should_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for work in (lambda: write_starter(tmp_path / "file"), lambda: copy_preset("lora-any-base", tmp_path / "file")):
        with pytest.raises(InputError, match="cannot write"):
            work()


def test_the_preset_xiyou_takes_head_and_tail_without_repeats_or_overlap(tmp_path: Path, shared: Path) -> None:
    value = read_yaml(EXAMPLES / "xiyou" / "cast.yaml")
    for character in value["characters"]:
        character["dialogues"] = [(shared / "data" / "xiyou" / f"{character['id']}.jsonl").as_posix()]
    run_file = copy_preset("xiyou", tmp_path)
    (tmp_path / "cast.yaml").write_text(dump_yaml(value), encoding="utf-8")
    run = load_run(run_file, {"data.head": "100", "data.tail": "100"})
    manifest = build_data(run)
    kept = {item["character"]: item["kept"] for item in manifest["inputs"]}
    assert max(kept.values()) == 200 and min(kept.values()) > 100
    train = [s.id for s in read_samples(run.data / "train.jsonl")]
    assert len(set(train)) == len(train)
    sizes = {name: counts["train"]["samples"] for name, counts in manifest["characters"].items()}
    assert max(sizes.values()) <= 1.01 * min(sizes.values())
    assert manifest["characters"]["swj"]["upsampled"] > 1 and manifest["split"]["alike_across"] == 0
