"""Laws 3 to 5 for `mrp data build`: nothing lost silently, same inputs same bytes, no scene on both sides."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from dialogue_rows import pair, scene

from mrp.config import Run, keep_run, load_run
from mrp.data import build as build_module
from mrp.data.assemble import SampleTable
from mrp.data.build import build_data, data_fingerprint, is_built
from mrp.data.samples import in_order, read_samples
from mrp.errors import InputError, ManyFaults
from mrp.report import Reporter

MakeRun = Callable[..., Run]


def pairs(name: str, count: int = 6) -> list[dict[str, Any]]:
    return [pair(f"{name} question {i}", f"{name} reply {i}") for i in range(count)]


def data_bytes(run: Run) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(run.data.iterdir())}


def rejected(run: Run) -> list[dict[str, str]]:
    return [json.loads(line) for line in (run.data / "rejected.jsonl").read_text(encoding="utf-8").splitlines()]


def check_sums(run: Run, manifest: dict[str, Any]) -> None:
    """Kept and rejected add up to the non-blank lines of each file, and to what is written."""
    for item in manifest["inputs"]:
        text = (run.cast_path.parent / item["path"]).read_bytes()
        lines = sum(1 for line in text.split(b"\n") if line.strip())
        assert item["lines"] == lines == item["kept"] + sum(item["rejected"].values())
    totals = manifest["totals"]
    assert Counter(r["reason"] for r in rejected(run)) == totals["rejected"]
    assert totals["lines"] == totals["kept"] + sum(totals["rejected"].values())
    assert totals["kept"] == totals["train"]["scenes"] + totals["held_out"]["scenes"]
    train, held = read_samples(run.data / "train.jsonl"), read_samples(run.data / "held-out.jsonl")
    assert (len(train), len(held)) == (totals["train"]["samples"], totals["held_out"]["samples"])
    assert not {s.scene for s in train} & {s.scene for s in held}
    for side, samples in (("train", train), ("held_out", held)):
        assert sum(c[side]["samples"] for c in manifest["characters"].values()) == len(samples)
        assert sum(c[side]["replies"] for c in manifest["characters"].values()) == sum(sum(s.loss) for s in samples)


def test_every_line_is_kept_or_rejected_with_its_place(make_run: MakeRun) -> None:
    own = {
        "tang": [*pairs("tang"), pair("tang question 0", "tang reply 0"), "{broken", "", pair("only this", "")],
        "wukong": [*pairs("wukong"), pair("a", "b", system="Tang Sanzang"), {"turn": []}],
    }
    run = make_run(own, [scene(("tang", "Hm."), ("wukong", "Ha!")), scene(("Guard", "Halt!"))])
    manifest = build_data(run)
    check_sums(run, manifest)
    assert [(r["source"], r["reason"]) for r in rejected(run)] == [
        ("tang.jsonl:7", "duplicate"),
        ("tang.jsonl:8", "broken-json"),
        ("tang.jsonl:10", "no-reply"),
        ("wukong.jsonl:7", "other-character"),
        ("wukong.jsonl:8", "unknown-key"),
        ("scenes.jsonl:2", "no-reply"),
    ]
    assert rejected(run)[0]["detail"] == "same as tang.jsonl:1"
    assert rejected(run)[0]["text"] == "other: tang question 0\ntang: tang reply 0"


def test_sample_ends_with_the_last_own_line_and_names_its_source(make_run: MakeRun) -> None:
    lines = [("Guard", "Halt!"), ("tang", "Peace."), ("wukong", "Move!"), ("Guard", "No."), ("tang", "Please.")]
    run = make_run(scenes=[scene(*lines, ("Guard", "Never."), id="gate")], people=["tang", "wukong"])
    manifest = build_data(run)
    samples = {s.id: s for s in read_samples(run.data / "train.jsonl")}
    assert set(samples) == {"gate@tang", "gate@wukong"}
    assert [t.text for t in samples["gate@wukong"].turns] == ["Halt!", "Peace.", "Move!"]
    assert samples["gate@tang"].loss == (False, True, False, False, True)
    assert samples["gate@tang"].participants == ("Guard", "tang", "wukong")
    assert samples["gate@tang"].source == "scenes.jsonl:1"
    assert manifest["totals"]["dropped_turns"] == {"after_last_reply": 1}


def test_duplicates_are_found_across_files_and_in_another_writing(make_run: MakeRun) -> None:
    first = scene(("tang", "a"), ("tang", "b"), ("wukong", "c"), participants=["tang", "wukong"])
    scenes = [
        first,
        scene(("Master", "a\r\nb "), ("wukong", "c"), participants=["wukong", "tang"], id="again"),
        first | {"scenario": "At night."},
        first | {"participants": ["tang", "wukong", "bajie"]},  # the others' lines carry names here: not the same
    ]
    run = make_run({"tang": pairs("tang"), "wukong": [pair("tang question 0", "tang reply 0")]}, scenes)
    manifest = build_data(run)
    assert manifest["totals"]["rejected"] == {"duplicate": 1}
    assert rejected(run)[0]["source"] == "scenes.jsonl:2"


def test_scene_ids_are_unique(make_run: MakeRun) -> None:
    scenes = [
        scene(("tang", "a")),
        scene(("tang", "b"), id="scenes-1"),  # the name that the first would have got
        scene(("tang", "c"), id="scenes-1"),
        scene(("tang", "d"), id="own"),
    ]
    run = make_run(scenes=scenes, people=["tang"])
    build_data(run)
    assert {s.scene for s in read_samples(run.data / "train.jsonl")} == {"scenes-1", "scenes-1.2", "own"}
    assert [(r["reason"], r["detail"]) for r in rejected(run)] == [
        ("duplicate-id", "'scenes-1' is the id of scenes.jsonl:2")
    ]


def test_same_inputs_same_bytes(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"tang": pairs("tang", 20), "wukong": pairs("wukong", 9)}
    runs = [make_run(own, [scene(("tang", "a"), ("wukong", "b"))], home=home) for home in ("one", "two/deep")]
    for run in runs:
        build_data(run)
    assert data_bytes(runs[0]) == data_bytes(runs[1])
    monkeypatch.setattr(build_module, "_intact_manifest", lambda *_: None)
    before = data_bytes(runs[0])
    build_data(runs[0])
    assert data_bytes(runs[0]) == before
    for content in before.values():
        assert str(runs[0].folder).encode() not in content


def test_second_build_does_nothing_until_something_changes(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run({"tang": pairs("tang", 9)})
    assert not is_built(run)
    manifest = build_data(run)
    assert is_built(run)
    monkeypatch.setattr(build_module, "gather", lambda *_: pytest.fail("built again"))
    assert build_data(run) == manifest
    assert manifest["fingerprint"] == data_fingerprint(run)
    monkeypatch.undo()

    train = run.data / "train.jsonl"
    whole = train.read_bytes()
    train.write_bytes(whole[:-10])  # a damaged set is built anew
    assert not is_built(run)
    build_data(run)
    assert train.read_bytes() == whole

    with (run.cast_path.parent / "tang.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(pair("new", "line")) + "\n")
    assert data_fingerprint(run) != manifest["fingerprint"]
    assert build_data(run)["totals"]["kept"] == 10


@pytest.mark.parametrize(("key", "value"), [("seed", "7"), ("data.order", "sequential"), ("data.held_out", "0.4")])
def test_option_that_matters_changes_the_fingerprint(make_run: MakeRun, key: str, value: str) -> None:
    run = make_run({"tang": pairs("tang")})
    assert data_fingerprint(load_run(run.path, {key: value})) != data_fingerprint(run)


def test_option_that_does_not_matter_leaves_it(make_run: MakeRun) -> None:
    run = make_run({"tang": pairs("tang")})
    assert data_fingerprint(load_run(run.path, {"train.epochs": "9"})) == data_fingerprint(run)


def test_run_folder_and_run_file_mean_the_same_data(make_run: MakeRun) -> None:
    run = make_run({"tang": pairs("tang")})
    manifest = build_data(run)
    keep_run(run)
    assert build_data(load_run(run.folder)) == manifest


def test_orders(make_run: MakeRun) -> None:
    own = {"tang": pairs("tang", 8), "wukong": pairs("wukong", 8)}
    both = [scene(("wukong", "x"), ("tang", "y"))]
    run = make_run(own, both, data={"order": "sequential", "held_out": 0.0})
    build_data(run)
    expected = [*(f"tang-{i}@tang" for i in range(1, 9)), "scenes-1@tang"]
    expected += [*(f"wukong-{i}@wukong" for i in range(1, 9)), "scenes-1@wukong"]
    sequential = read_samples(run.data / "train.jsonl")
    assert [s.id for s in sequential] == expected
    shuffled = load_run(run.path, {"data.order": "shuffled"})
    build_data(shuffled)
    samples = read_samples(run.data / "train.jsonl")
    assert sorted(s.id for s in samples) == sorted(expected)
    assert samples == in_order(sequential, shuffled, 0) != sequential
    assert not (run.data / "held-out.jsonl").read_bytes()


def test_character_with_few_scenes_is_named_in_a_warning(make_run: MakeRun) -> None:
    class Warnings(Reporter):
        found: list[str] = []

        def warn(self, text: str) -> None:
            self.found.append(text)

    build_data(make_run({"tang": pairs("tang", 8), "wukong": pairs("wukong", 2)}), Warnings())
    assert len(Warnings.found) == 1
    assert "wukong (2)" in Warnings.found[0]


def test_character_without_a_usable_line_is_named_and_nothing_is_written(make_run: MakeRun) -> None:
    run = make_run({"tang": pairs("tang")}, people=["tang", "wukong", "bajie"])
    with pytest.raises(ManyFaults) as caught:
        build_data(run)
    assert "'wukong'" in str(caught.value)
    assert "'bajie'" in str(caught.value)
    assert not run.data.exists()


def test_bad_files_are_all_named_and_earlier_data_stays(make_run: MakeRun) -> None:
    run = make_run({"tang": pairs("tang"), "wukong": pairs("wukong")})
    build_data(run)
    before = data_bytes(run)
    folder = run.cast_path.parent
    for name in ("tang", "wukong"):
        (folder / f"{name}.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"empty(.|\n)*wukong\.jsonl"):
        build_data(run)
    for name in ("tang", "wukong"):
        (folder / f"{name}.jsonl").unlink()
    with pytest.raises(InputError, match=r"no such file(.|\n)*wukong\.jsonl"):
        build_data(run)
    (folder / "tang.jsonl").mkdir()
    with pytest.raises(InputError, match=r"a folder stands(.|\n)*tang\.jsonl"):
        build_data(run)
    assert data_bytes(run) == before
    assert [p.name for p in run.folder.iterdir()] == ["data"]


def test_full_disk_leaves_earlier_data(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run({"tang": pairs("tang")})
    build_data(run)
    before = data_bytes(run)

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SampleTable, "write", full)
    with pytest.raises(Exception, match="no space left"):
        build_data(load_run(run.path, {"seed": "5"}))
    assert data_bytes(run) == before


EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(("name", "lines"), [("xiyou", 1531), ("shakespeare", 391)])
def test_example_cast_on_real_data(shared: Path, tmp_path: Path, name: str, lines: int) -> None:
    value = yaml.safe_load((EXAMPLES / name / "cast.yaml").read_text(encoding="utf-8"))
    for character in value["characters"]:
        assert len(character["dialogues"]) == 1
        file = Path(character["dialogues"][0])
        assert file.stem == character["id"]
        character["dialogues"] = [(shared / "data" / name / file.name).as_posix()]
    (tmp_path / "cast.yaml").write_text(yaml.safe_dump(value, allow_unicode=True), encoding="utf-8")
    (tmp_path / "mrp.yaml").write_text((EXAMPLES / name / "mrp.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    run = load_run(tmp_path / "mrp.yaml")
    manifest = build_data(run)
    check_sums(run, manifest)
    assert manifest["totals"]["lines"] == lines
    share = run.config.data.held_out
    for sizes in manifest["characters"].values():
        count = sizes["train"]["samples"] + sizes["held_out"]["samples"]
        assert abs(sizes["held_out"]["samples"] - share * count) <= 0.5


def test_real_scenes_of_several_characters(shared: Path, tmp_path: Path) -> None:
    value = yaml.safe_load((EXAMPLES / "xiyou" / "cast.yaml").read_text(encoding="utf-8"))
    for character in value["characters"]:
        del character["dialogues"]
    value["dialogues"] = [
        (shared / "data" / n).as_posix() for n in ("xiyou/scenes.jsonl", "xiyou-original-samples/samples.jsonl")
    ]
    (tmp_path / "cast.yaml").write_text(yaml.safe_dump(value, allow_unicode=True), encoding="utf-8")
    (tmp_path / "mrp.yaml").write_text("base: none\n", encoding="utf-8")
    run = load_run(tmp_path / "mrp.yaml")
    manifest = build_data(run)
    check_sums(run, manifest)
    assert manifest["totals"]["lines"] == 1144 + 13
    assert manifest["inputs"][0]["rejected"] == {"no-reply": 188}  # only others speak in these
    assert manifest["inputs"][1]["dropped_turns"]["empty_reply"] == 19
    for sizes in manifest["characters"].values():
        count = sizes["train"]["samples"] + sizes["held_out"]["samples"]
        assert abs(sizes["held_out"]["samples"] / count - 0.1) < 0.02
