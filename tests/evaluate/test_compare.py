"""`mrp compare`: arms of one file, trained where missing, resumed, compared in pairs; figures by hand; bad files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from command import fails, mrp
from projects import write_project, write_yaml

pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from mrp.errors import InputError
from mrp.evaluate.blocks import Compared, Table
from mrp.evaluate.compare import compare, read_experiment
from mrp.evaluate.compare_findings import beaten_on, conclusions, worst_rise
from mrp.evaluate.compare_glance import glance
from mrp.evaluate.compare_replies import reply_blocks
from mrp.evaluate.compare_report import compared
from mrp.files import read_json

ARMS = {"shuffled": {}, "file order": {"data.order": "sequential"}}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """An experiment of two arms that is finished; not to be changed."""
    home = tmp_path_factory.mktemp("experiment")
    write_project(home, tiny_base, data={"held_out": 0.34})
    write_yaml(home / "experiment.yaml", {"run": "mrp.yaml", "arms": ARMS, "replies": 2, "lines": 2})
    compare(home / "experiment.yaml")
    return home / "experiment.yaml"


def test_each_arm_and_seed_has_its_results(experiment: Path) -> None:
    folder = experiment.parent / "compare"
    files = sorted(path.name for path in (folder / "results").iterdir())
    assert files == ["file-order-seed-0.json", "shuffled-seed-0.json"]
    one = read_json(folder / "results" / files[0])
    assert one["arm"] == "file order" and one["options"] == ARMS["file order"] and one["cost"]["disk_bytes"] > 1000
    served = one["cost"]["serving"]
    assert served["tokens_per_second"] > 0 and served["merged"] > 0 and served["apart"] > 0
    assert served["own_bytes"] == one["cost"]["disk_bytes"] < served["base_bytes"]
    results = read_json(folder / "compare.json")
    assert list(results["arms"]) == ["prompt only", "shuffled", "file order"]
    assert len(results["pairs"]) == 3 and all("loss" in pair for pair in results["pairs"])
    assert results["arms"]["shuffled"]["loss"]["value"] < results["arms"]["prompt only"]["loss"]["value"]
    for curve in results["curves"]["shuffled"].values():
        steps = read_json(folder / "runs" / "shuffled" / "seed-0" / "run.json")["measures"]["steps"]
        assert len(curve) == 1 + min(4, steps)  # before, then four points of its one epoch
    for at in results["curve_steps"]["shuffled"].values():
        assert at[0] == 0 and at[-1] == steps and at == sorted(set(at))
    page = (folder / "compare.html").read_text(encoding="utf-8")
    assert "<svg" in page and "<script" not in page and "file order" in page
    assert results["samples"] and set(results["samples"][0]["said"]) == {"prompt only", "shuffled", "file order"}
    assert list(results["confusion"]) == ["prompt only", "shuffled", "file order"]
    assert "| shuffled |" in (folder / "compare.md").read_text(encoding="utf-8")


def test_an_adapter_beside_a_base_in_half_precision_is_measured(tmp_path: Path, tiny_base: Path) -> None:
    """Arms are not merged, so the adapter is in finer numbers than the base."""
    write_project(tmp_path, tiny_base, data={"held_out": 0.34}, train={"precision": "bf16"})
    write_yaml(tmp_path / "experiment.yaml", {"run": "mrp.yaml", "arms": {"one": {}}, "replies": 1, "lines": 1})
    results = compare(tmp_path / "experiment.yaml")
    assert results["arms"]["one"]["loss"]["value"] < results["arms"]["prompt only"]["loss"]["value"]


def test_what_is_done_is_skipped_and_what_is_missing_is_done(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Path(shutil.copytree(experiment.parent, tmp_path / "moved"))
    shutil.rmtree(home / "compare" / "runs" / "shuffled" / "seed-0" / "eval")
    monkeypatch.setattr("mrp.train.loop.Training.run_all", None)
    monkeypatch.setattr("mrp.play.embedded.TransformersEngine.stream", None)
    done = mrp("compare", home / "experiment.yaml", "--json")
    assert done.code == 0, done.err
    assert done.json["arms"] == read_json(experiment.parent / "compare" / "compare.json")["arms"]
    assert Path(done.json["paths"]["html"]).is_file()
    monkeypatch.undo()
    shutil.rmtree(home / "compare" / "runs" / "file-order")  # trained anew, to the same figures
    compare(home / "experiment.yaml")
    after = read_json(home / "compare" / "compare.json")
    assert after["arms"] == read_json(experiment.parent / "compare" / "compare.json")["arms"]


def test_every_fault_of_a_file_is_told_before_anything_is_trained(tmp_path: Path, tiny_base: Path) -> None:
    write_project(tmp_path, tiny_base)
    path = tmp_path / "experiment.yaml"
    arms: dict[str, Any] = {"a": {"data.ordr": "shuffled"}, "b": {"train.epochs": 0}, "c": {"seed": 3}, "../d": {}}
    write_yaml(path, {"run": "mrp.yaml", "arms": arms})
    done = mrp("compare", path)
    fails(done, 2, "data.order", "train.epochs", "belongs to the experiment", "'../d' cannot name", "experiment.yaml:")
    assert not (tmp_path / "compare" / "runs").exists()
    write_yaml(path, {"run": "mrp.yaml", "arms": {"a": {}, "A": {}}})
    with pytest.raises(InputError, match="cannot name a folder of its own"):
        read_experiment(path)
    write_yaml(path, {"run": "mrp.yaml", "arms": {"a": {}}, "parts": ["voices"]})
    fails(mrp("compare", path), 2, "did you mean 'voice'?")
    fails(mrp("compare", tmp_path / "none.yaml"), 2, "none.yaml")
    write_yaml(path, {"run": "mrp.yaml", "arms": {"a": {}}})
    fails(mrp("compare", path, "--bits", "5"), 2, "no such number of bits: '5'")
    assert not (tmp_path / "compare" / "runs").exists()


def trial(arm: str, seed: int, losses: dict[str, float], right: float) -> dict[str, Any]:
    lines = [[f"l{k}", f"s{k}", who, 2, 2 * loss, 0.1, right] for k, (who, loss) in enumerate(losses.items())]
    own = {"identity": {"lines": lines}, "voice": {"replies": [["s0", "a", right, right, 0.0]]}}
    measures = {
        "steps": 20,
        "held_out_loss": {"a": {"before": 4.0, "after": 3.0}},
        "epochs": [
            {"epoch": 1, "held_out_loss": {"a": 3.0 + seed}},
            {"epoch": 2, "step": 20, "held_out_loss": {"a": 3.5 + seed}},
        ],
    }
    cost: dict[str, Any] = {"seconds": 10.0 + seed, "tokens": 100, "disk_bytes": 5, "peak_gib": None, "device": "cpu"}
    cost["serving"] = {"tokens_per_second": 20.0 + seed, "merged": None, "apart": 9.0 + seed, "chats": 4}
    cost["serving"] |= {"base_bytes": 100, "own_bytes": 5}
    return {
        "arm": arm,
        "seed": seed,
        "sides": {"tuned": own, "base": {}},
        "measures": measures,
        "cost": cost,
        "options": {},
        "characters": [{"id": "a", "name": "Ann"}],
        "data": {"fingerprint": "f"},
        "versions": {},
    }


def test_arms_meet_on_the_same_lines_and_seeds() -> None:
    trials = [
        *(trial("x", seed, {"a": 3.0, "b": 5.0}, 1.0) for seed in (0, 1)),
        *(trial("y", seed, {"a": 2.5, "b": 4.5, "c": 9.0}, 0.0) for seed in (0, 1)),
    ]
    results = compared(trials, [0, 1])
    assert results["arms"]["x"]["loss"]["value"] == 4.0 and results["arms"]["x"]["loss"]["n"] == 4
    assert results["arms"]["x"]["loss"]["units"] == 2  # scenes; a second seed is no second scene
    (pair,) = [p for p in results["pairs"] if p["arms"] == ["x", "y"]]
    assert pair["loss"]["value"] == pair["loss"]["low"] == 0.5 and pair["loss"]["n"] == 4  # c is x's nowhere
    assert pair["accuracy"]["value"] == 1
    assert results["curves"]["x"] == {"a": [4.0, 3.5, 4.0]} and results["curve_steps"]["x"] == {"a": [0, 10, 20]}
    assert results["costs"]["y"]["seconds"] == 10.5
    served = results["costs"]["y"]["serving"]
    assert (served["tokens_per_second"], served["merged"], served["apart"]) == (20.5, None, 9.5)
    found = " ".join(conclusions(results))
    assert "x is best with 100 %" in found and "surely better than y" in found


def test_which_arm_stands_where_is_told_from_pairs_alone() -> None:
    """x follows its identity better, y has the better loss: nobody plays best in everything."""
    trials = [
        *(trial("x", seed, {"a": 3.0, "b": 5.0}, 1.0) for seed in (0, 1)),
        *(trial("y", seed, {"a": 2.5, "b": 4.5}, 0.0) for seed in (0, 1)),
    ]
    results = compared(trials, [0, 1])
    assert beaten_on(results, "x") == {"loss": ["y"]} and beaten_on(results, "y") == {"accuracy": ["x"]}
    said = conclusions(results)
    assert "every arm is surely beaten somewhere" in said[0]
    assert said[1] == "Surely beaten: x on own loss; y on identity."
    (table,) = [block for block in glance(results) if isinstance(block, Table)]
    assert [row[:2] for row in table.rows] == [["prompt only", "-"], ["x", "own loss"], ["y", "identity"]]
    better = compared([*trials[:2], *(trial("y", seed, {"a": 2.5, "b": 4.5}, 1.0) for seed in (0, 1))], [0, 1])
    assert beaten_on(better, "y") == {} and "only y is surely beaten nowhere" in conclusions(better)[0]
    equal = compared([*trials[:2], *(one | {"arm": "y"} for one in trials[:2])], [0, 1])
    assert "x and y are surely beaten nowhere, so these figures do not choose" in conclusions(equal)[0]


def test_what_was_forgotten_of_everyday_talk_is_held_against_each_other() -> None:
    """Replies of 2 and 4 tokens whose loss rose by 1 and 4 nats: (1 + 4) / 6 a token; y forgot half of it."""

    def forgetting(arm: str, share: float) -> dict[str, Any]:
        one = trial(arm, 0, {"a": 3.0}, 1.0)
        one["sides"]["tuned"]["retention"] = {"lines": [[4.0, 4.0 + share, 2], [6.0, 6.0 + 4 * share, 4]]}
        return one

    results = compared([forgetting("x", 1.0), forgetting("y", 0.5)], [0])
    assert results["arms"]["x"]["everyday talk"]["value"] == pytest.approx(5 / 6)
    (pair,) = [p for p in results["pairs"] if p["arms"] == ["x", "y"]]
    assert pair["everyday talk"]["value"] == pytest.approx(2.5 / 6) and pair["everyday talk"]["n"] == 2
    assert "prompt only" in results["arms"] and "everyday talk" not in results["arms"]["prompt only"]
    assert any("y is best with +0.417" in text for text in conclusions(results))


def test_the_largest_rise_is_from_the_best_point_to_the_end() -> None:
    assert worst_rise({"a": [4.0, 3.0, 3.5], "b": [4.0, 2.0, 2.25]}) == ("a", 0.5)
    assert worst_rise({"a": [4.0, 3.0], "b": [2.0, 1.0]})[1] == 0.0


def test_arms_stand_side_by_side_on_the_questions_that_all_were_asked() -> None:
    def speaking(arm: str, seed: int, said: dict[str, str], confusion: list[list[float]]) -> dict[str, Any]:
        one = trial(arm, seed, {"a": 3.0}, 1.0)
        one["sides"]["tuned"]["identity"]["confusion"] = confusion
        one["samples"] = [
            {"character": "a", "question": q, "real": "Yes.", "base": "Hm.", "tuned": text} for q, text in said.items()
        ]
        return one

    trials = [
        speaking("x", 0, {"Who?": "I.", "Where?": "Here."}, [[1.0]]),
        speaking("x", 1, {"Who?": "never shown"}, [[0.5]]),
        speaking("y", 0, {"Who?": ""}, [[0.25]]),
    ]
    results = compared(trials, [0, 1])
    assert results["confusion"] == {"x": [[0.75]], "y": [[0.25]]}  # of the prompt alone there is none here
    (only,) = results["samples"]
    assert only["question"] == "Who?" and only["said"] == {"prompt only": "Hm.", "x": "I.", "y": ""}
    (compare_block,) = [block for block in reply_blocks(results) if isinstance(block, Compared)]
    assert compare_block.said == [("real line", "Yes."), ("prompt only", "Hm."), ("x", "I."), ("y", "(nothing)")]


def test_little_is_said_to_be_little() -> None:
    few = compared([trial("x", 0, {"a": 3.0}, 1.0), trial("y", 0, {"a": 2.0}, 1.0)], [0])
    assert "1 scored lines, 1 replies and one seed an arm" in conclusions(few)[-1]
    enough = few | {"seeds": [0, 1, 2], "arms": {"x": {"as is": few["arms"]["x"]["as is"] | {"n": 600}}}}
    assert not any("too little to publish" in text for text in conclusions(enough))
