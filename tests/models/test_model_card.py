"""The card of an exported model says what is known, and writes unknown for the rest."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from projects import write_project

from mrp.cast import Cast, Character
from mrp.models.model_card import FICTION, UNKNOWN, Facts, card_head, facts_of, hf_usage, model_card

CAST = Cast(
    characters=[Character(id="a", name="A | B", persona="You are A.\n```\nrm\n```"), Character(id="b", name="B")]
)


def test_what_nobody_told_is_unknown() -> None:
    text = model_card(Facts("m", None), ["use it"])
    assert f"Licence of the base model: {UNKNOWN}" in text and f"Training data: {UNKNOWN}" in text
    assert "license" not in text.split("---")[1] and "Scores" not in text


def test_the_card_has_losses_data_licence_and_the_line_about_fiction() -> None:
    data = [{"path": "tales/wukong.jsonl", "lines": 60, "kept": 58}]
    losses = {"a": {"before": 4.5, "after": 3.25}}
    facts = Facts("m", CAST, "smol", "Org/Smol", licence="Apache-2.0", data=data, losses=losses)
    text = model_card(facts, hf_usage(CAST))
    head = yaml.safe_load(text.split("---\n")[1])
    assert (head["license"], head["base_model"], head["language"]) == ("apache-2.0", "Org/Smol", "en")
    assert FICTION in text and "| a | 4.500 | 3.250 |" in text
    assert f"| wukong.jsonl | 60 | 58 | {UNKNOWN} |" in text and "tales" not in text


@pytest.mark.parametrize(
    ("licence", "words"), [("Llama 3.2 Community License", "Built with Llama"), ("MIT", "passes on")]
)
def test_duties_of_the_base_follow_its_licence(licence: str, words: str) -> None:
    text = model_card(Facts("m", None, "base", licence=licence), [])
    assert words in text and isinstance(yaml.safe_load(text.split("---\n")[1])["license"], str)


def test_personas_stand_there_whole_whatever_is_in_them() -> None:
    text = "\n".join(hf_usage(CAST))
    assert re.search(r"````text\nYou are A\.\n```\nrm\n```\n````", text)
    assert "**A \\| B**" in text


def test_the_head_of_a_card_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(model_card(Facts("m", None, "b", licence="Apache-2.0"), []), encoding="utf-8")
    assert facts_of("again", tmp_path, None, None) == Facts("again", None, "b", licence="apache-2.0")
    assert card_head(tmp_path / "nowhere") == {}


def test_an_exported_run_carries_its_records(tmp_path: Path, tiny_base: Path) -> None:
    pytest.importorskip("gguf")
    from mrp.config import load_run
    from mrp.models.export import export

    base = tmp_path / "bases" / "tiny"
    shutil.copytree(tiny_base, base)
    (base / "mrp-base.json").write_text(json.dumps({"license": "Apache-2.0", "upstream": "Org/Tiny"}), encoding="utf-8")
    path = write_project(tmp_path / "p", base)
    run = load_run(path)
    shutil.copytree(base, run.merged)
    (run.folder / "data").mkdir()
    manifest = {"inputs": [{"path": "wukong.jsonl", "lines": 6, "kept": 6}]}
    (run.folder / "data" / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    record = {"measures": {"held_out_loss": {"wukong": {"before": 2.0, "after": 1.0}}}}
    run.record.write_text(json.dumps(record), encoding="utf-8")
    for form, command in (("hf", "vllm serve"), ("gguf", "llama-server -m out-f16.gguf"), ("ollama", "ollama create")):
        export(path, tmp_path / "out", form)
        text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
        assert command in text and "| wukong | 2.000 | 1.000 |" in text and "Org/Tiny" in text
        assert str(tmp_path) not in text
    from mrp.models.gguf import read_fields

    assert read_fields(next((tmp_path / "out").glob("*.gguf")))["general.license"] == "Apache-2.0"
