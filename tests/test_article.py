"""The article of 2024, replayed on a model of InternLM2's architecture with random weights and on real lines."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from command import mrp

pytest.importorskip("torch")

EXAMPLE = Path(__file__).parent.parent / "examples" / "xiyou-2024"
LINES = 16  # of each of the four files: the whole set takes minutes
SMALL = {
    "train.bits": "16",
    "train.rank": "4",
    "train.max_tokens": "512",
    "train.accumulation": "2",
    "train.epochs": "2",
    "train.learning_rate": "1e-3",
    "train.dropout": "0.0",
    "train.checkpointing": "false",
    "train.precision": "fp32",
    "train.threads": "1",
    "chat.max_new_tokens": "16",
}


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Path:
    """The commands of docs/from-the-article.md in their order, in a folder of their own."""
    home = tmp_path_factory.mktemp("article")
    sources = home / "data"
    sources.mkdir()
    for name in ("swj", "swk", "tsz", "zbj"):
        lines = (shared / "data" / "xiyou" / f"{name}.jsonl").read_bytes().splitlines(keepends=True)
        (sources / f"{name}.jsonl").write_bytes(b"".join(lines[:LINES]))
    shutil.copytree(EXAMPLE, home / "examples" / "xiyou-2024")
    project = home / "examples" / "xiyou-2024"
    done = mrp("data", "recipe", "xiyou-2024", sources, project / "xiyou.jsonl", "--json")
    assert done.code == 0 and done.json["lines_written"] == 8 * LINES
    golden = shared / "golden" / "internlm2-tiny-a" / "gqa"
    assert mrp("convert", "internlm2-to-llama", golden, home / "base").code == 0
    for name in ("xiyou_7b", "xiyou_7b_rng"):
        options = [f"--set={key}={value}" for key, value in {"base": home / "base", **SMALL}.items()]
        run_file = project / f"{name}.yaml"
        assert mrp("data", "build", run_file, *options).code == 0
        run = home / "runs" / name
        trained = mrp("train", run, "--gpus", 2, "--strategy", "zero2", "--json")
        assert trained.code == 0, trained.err
        merged = mrp("merge", run, "--max-shard-size", "2GB")
        assert merged.code == 0, merged.err
    return home


def record(home: Path, name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((home / "runs" / name / "run.json").read_text(encoding="utf-8"))
    return value


def trained(home: Path, name: str, epoch: int) -> list[str]:
    rows = [json.loads(line) for line in (home / "runs" / name / "steps.jsonl").read_text("utf-8").splitlines()]
    return [sample for row in rows if row["epoch"] == epoch for sample in row["samples"]]


def test_the_ordered_run_follows_the_recipe_and_the_other_one_does_not(replayed: Path) -> None:
    for epoch in (1, 2):
        ordered, mixed = trained(replayed, "xiyou_7b", epoch), trained(replayed, "xiyou_7b_rng", epoch)
        assert sorted(ordered) == sorted(mixed)
        places = [int(sample.partition("@")[0].rpartition("-")[2]) for sample in ordered]
        assert places == sorted(places)  # the lines of the recipe's file, from the first to the last
        assert ordered != mixed
    assert trained(replayed, "xiyou_7b", 1) == trained(replayed, "xiyou_7b", 2)
    assert trained(replayed, "xiyou_7b_rng", 1) != trained(replayed, "xiyou_7b_rng", 2)


def test_the_records_differ_in_the_order_alone(replayed: Path) -> None:
    one, other = (record(replayed, name) for name in ("xiyou_7b", "xiyou_7b_rng"))
    assert [r["options"]["data"].pop("order") for r in (one, other)] == ["sequential", "shuffled"]
    assert one["options"] == other["options"]
    for name in ("processes", "strategy", "template", "versions", "precision"):
        assert one[name] == other[name]
    assert (one["processes"], one["strategy"]) == (2, "zero2")
    assert one["order"]["samples_trained"] == other["order"]["samples_trained"]
    assert one["order"]["sha256"] != other["order"]["sha256"]


def test_lines_that_head_and_tail_both_took_are_trained_twice_as_then(replayed: Path) -> None:
    manifest = json.loads((replayed / "runs" / "xiyou_7b" / "data" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["totals"]["lines"] == manifest["totals"]["kept"] == 8 * LINES
    assert manifest["totals"]["rejected"] == {}


def test_the_merged_model_answers_as_a_character(replayed: Path) -> None:
    run = replayed / "runs" / "xiyou_7b"
    cast = replayed / "examples" / "xiyou-2024" / "cast.yaml"
    options = ("--cast", cast, "--as", "孙悟空", "--seed", "1", "--json")
    done = mrp("chat", run / "merged", *options, stdin="你是谁？\n/quit\n")
    assert done.code == 0, done.err
    assert done.json["turns"][-1]["speaker"] == "swk"
