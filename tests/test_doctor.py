"""`mrp doctor`: every fault is a finding with its fix, and the exit code says the worst."""

from __future__ import annotations

import builtins
import importlib.util
import json
import shutil
import sys
from collections import namedtuple
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from command import Done, mrp
from projects import change_yaml, snapshot, write_project

from mrp import doctor
from mrp.doctor import Finding, examine, table


def level(done: Done, name: str) -> str:
    """The worst level of the findings of this name."""
    found = [f["level"] for f in done.json["findings"] if f["name"] == name]
    assert found, f"no finding {name!r} in {[f['name'] for f in done.json['findings']]}"
    return str(max(found, key=doctor.LEVELS.index))


def named(findings: list[Finding], name: str) -> Finding:
    return next(f for f in findings if f.name == name)


# -- the machine ---------------------------------------------------------------------------------------------------


def test_the_machine_alone_is_looked_at_without_a_run() -> None:
    done = mrp("doctor", "--json")
    assert {f["area"] for f in done.json["findings"]} == {"machine"}
    assert level(done, "python") == level(done, "core packages") == "ok"
    assert done.code == (2 if done.json["worst"] == "error" else 0)


def test_every_finding_that_is_not_ok_has_a_fix(tmp_path: Path) -> None:
    run = write_project(tmp_path / "p", tmp_path / "nowhere")
    for finding in examine(run):
        assert finding.fix or finding.level == "ok", finding


def test_a_missing_torch_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "torch" else find(name, *more))
    found = named(examine(None), "torch")
    assert (found.level, found.fix) == ("warning", "pip install 'mrp-llm[train]'")


def test_a_torch_that_cannot_be_loaded_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def broken(name: str, *more: Any) -> Any:
        if name == "torch":
            raise OSError("libcudart.so.13: cannot open shared object file")
        return load(name, *more)

    pytest.importorskip("torch")
    monkeypatch.setattr(builtins, "__import__", broken)
    found = named(list(doctor._torch()), "torch")
    assert found.level == "error" and "libcudart" in found.what and found.fix


def test_versions_out_of_range_and_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["rich>=9999", "no-such-package>=1", "gone-one; extra == 'far'", "gone-two>=2; extra == 'far'"]
    monkeypatch.setattr(metadata, "requires", lambda _: asked)
    found = list(doctor._packages())
    texts = {(f.name, f.level): f.what for f in found}
    assert "rich" in texts["core packages", "error"] or "no-such-package" in texts["core packages", "error"]
    assert {f.what for f in found if f.name == "core packages"} >= {"missing: no-such-package"}
    assert texts["extra far", "ok"] == "not installed"


def test_a_card_that_torch_was_not_built_for_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(doctor, "nvidia_cards", lambda: ["Some Card, driver 123.4"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert named(list(doctor._torch()), "GPU").level == "warning"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    found = named(list(doctor._torch()), "GPU")
    assert found.level == "error" and "driver" in found.what


def test_little_disk_and_memory_are_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    usage = shutil.disk_usage(Path())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type(usage)(usage.total, 0, 10**9))
    memory = namedtuple("memory", "available total")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory(2**30, 4 * 2**30))
    found = examine(None)
    assert named(found, "cache").level == named(found, "memory").level == "warning"


def test_a_look_that_crashes_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def _broken() -> Any:
        raise RuntimeError("what is this")

    monkeypatch.setattr(doctor, "MACHINE", (_broken,))
    assert [(f.name, f.level) for f in examine(None)] == [("broken", "error")]


def test_the_table_stays_within_80_columns() -> None:
    long = "a long sentence about something that was found to be wrong here, " * 4
    lines = table([Finding("machine", "core packages", "error", long, long), Finding("run", "data", "ok", "here")])
    assert max(map(len, lines)) <= 80
    assert lines[-1] == "1 ok, 0 warning, 1 error"
    assert any(line.startswith("  error   core packages") for line in lines)


# -- a run ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, tiny_base: Path) -> Path:
    return write_project(tmp_path / "project", tiny_base)


def test_a_new_run_is_fit_and_tells_what_is_to_be_done(run: Path) -> None:
    before = snapshot(run.parent)
    done = mrp("doctor", run, "--json")
    assert done.code == 0 and snapshot(run.parent) == before
    for name in ("run file", "base model", "tokenizer", "chat template", "loss mask", "stop token"):
        assert level(done, name) == "ok", name
    for name in ("data", "adapter", "merged model"):
        assert level(done, name) == "warning", name


def test_a_whole_run_is_current_until_something_changes(run: Path) -> None:
    assert mrp("run", run, "-q").code == 0
    done = mrp("doctor", run, "--json")
    for name in ("data", "adapter", "merged model"):
        assert level(done, name) == "ok", done.json
    change_yaml(run, train__epochs=2)
    done = mrp("doctor", run, "--json")
    assert (level(done, "data"), level(done, "adapter")) == ("ok", "warning")
    change_yaml(run.parent / "cast.yaml", scenario="A storm.")
    done = mrp("doctor", run, "--json")
    assert (level(done, "adapter"), level(done, "merged model"), done.code) == ("warning", "warning", 0)


def test_an_adapter_of_another_base_is_an_error(run: Path) -> None:
    from safetensors.torch import load_file, save_file

    assert mrp("train", run, "-q").code == 2  # no data yet
    assert mrp("data", "build", run, "-q").code == mrp("train", run, "-q").code == 0
    path = run.parent / "run" / "adapter" / "adapter_model.safetensors"
    weights = load_file(path)
    name = next(k for k in sorted(weights) if "lora_A" in k)
    save_file(weights | {name: weights[name][:, :8].contiguous()}, path)
    done = mrp("doctor", run)
    assert done.code == 2 and "adapter" in done.out and "fix:" in done.out


def test_faults_of_the_base_and_the_run_file_are_errors_with_exit_code_2(
    tmp_path: Path, tiny_base: Path, run: Path
) -> None:
    shutil.copytree(tiny_base, tmp_path / "cut")
    weights = (tmp_path / "cut" / "model.safetensors").read_bytes()
    (tmp_path / "cut" / "model.safetensors").write_bytes(weights[:-50])
    (tmp_path / "cut" / "tokenizer.json").unlink()
    change_yaml(run, base=str(tmp_path / "cut"))
    done = mrp("doctor", run, "--json")
    whats = [f["what"] for f in done.json["findings"] if f["name"] == "base model"]
    assert done.code == 2 and len(whats) == 2 and any("cut off" in w for w in whats)
    change_yaml(run, speed="high")
    done = mrp("doctor", run, "--json")
    assert done.code == 2 and level(done, "run file") == "error"


def test_a_stop_token_that_other_servers_do_not_know_is_told(tmp_path: Path, tiny_base: Path) -> None:
    shutil.copytree(tiny_base, tmp_path / "m")
    path = tmp_path / "m" / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"eos_token_id": 3}), encoding="utf-8")
    done = mrp("doctor", tmp_path / "m", "--json")  # a model folder works too
    assert (level(done, "stop token"), level(done, "base model"), done.code) == ("warning", "ok", 0)


def test_a_base_without_chat_template_is_an_error(tmp_path: Path, tiny_base: Path) -> None:
    shutil.copytree(tiny_base, tmp_path / "m")
    (tmp_path / "m" / "chat_template.jinja").unlink()
    done = mrp("doctor", tmp_path / "m", "--json")
    assert (level(done, "chat template"), done.code) == ("error", 2)


def test_more_tokens_than_embedding_rows_are_an_error(tmp_path: Path, tiny_base: Path) -> None:
    shutil.copytree(tiny_base, tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"vocab_size": 100}), encoding="utf-8")
    assert level(mrp("doctor", tmp_path / "m", "--json"), "tokenizer") == "error"


def test_a_fault_of_ours_is_no_missing_package(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mrp.data.build", None)
    done = mrp("doctor", run, "--json")
    assert (level(done, "data"), done.code) == ("error", 2)


def test_without_transformers_the_run_is_looked_at_as_far_as_can_be(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    done = mrp("doctor", run, "--json")
    assert level(done, "base model") == "ok" and level(done, "tokenizer") == "warning"
    assert done.code == 0
