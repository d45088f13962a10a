"""A checkpoint is whole, old or new: a full disk or a kill while it is written leaves the earlier one."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from tiny_runs import read_log, result

from mrp.config import Run
from mrp.errors import SetupError
from mrp.files import LOCK_NAME, settle_folder
from mrp.train import checkpoint
from mrp.train.checkpoint import State, copy_of, load, load_best, read_state, remove, save
from mrp.train.loop import train

MakeRun = Callable[..., Run]
NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def parameters() -> dict[str, torch.nn.Parameter]:
    return {name: torch.nn.Parameter(torch.randn(3, 2)) for name in ("a", "b")}


def stepped(weights: dict[str, torch.nn.Parameter]) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(weights.values(), lr=0.1)
    sum(p.sum() for p in weights.values()).backward()
    optimizer.step()
    return optimizer


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    weights = parameters()
    optimizer = stepped(weights)
    best = copy_of(weights)
    state = State(
        {"x": 1}, step=3, epochs=[{"epoch": 1}], before={"tang": 0.1 + 0.2}, epoch_losses={"tang": [1 / 3, 2]}
    )
    save(tmp_path, state, weights, optimizer, best)
    others = parameters()
    other_optimizer = torch.optim.AdamW(others.values(), lr=0.1)
    load(tmp_path, others, other_optimizer)
    found = load_best(tmp_path)
    assert read_state(tmp_path) == state
    assert found and all(torch.equal(found[name], best[name]) for name in best)
    assert all(torch.equal(others[name], weights[name]) for name in weights)
    for old, new in zip(optimizer.state.values(), other_optimizer.state.values(), strict=True):
        assert all(torch.equal(old[name], new[name]) for name in old)


def test_no_pickle_of_code_is_read_back(tmp_path: Path) -> None:
    class Bad:
        def __reduce__(self) -> Any:
            return (os.system, ("true",))

    weights = parameters()
    save(tmp_path, State({}, step=1), weights, stepped(weights), {})
    torch.save(Bad(), checkpoint.checkpoint_folder(tmp_path) / "optimizer.pt")
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        load(tmp_path, weights, stepped(weights))


def test_a_removed_checkpoint_is_none_even_if_its_folder_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = parameters()
    save(tmp_path, State({}, step=1), weights, stepped(weights), {})
    monkeypatch.setattr(checkpoint.shutil, "rmtree", lambda *_, **__: None)  # killed before it is done
    remove(tmp_path)
    assert read_state(tmp_path) is None


def test_a_folder_moved_away_by_a_killed_process_comes_back(tmp_path: Path) -> None:
    old, part = tmp_path / ".mrp-old-data", tmp_path / ".mrp-data-x1"
    for folder in (old, part):
        folder.mkdir()
        (folder / "file").write_text(folder.name, encoding="utf-8")
    (tmp_path / LOCK_NAME).touch()
    settle_folder(tmp_path / "data")
    assert (tmp_path / "data" / "file").read_text(encoding="utf-8") == old.name
    settle_folder(tmp_path / "data")
    assert sorted(p.name for p in tmp_path.iterdir()) == [LOCK_NAME, "data"]


def full_disk(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full for one of the three kinds of files in a checkpoint, told in the way of each library."""

    def safetensors_file(*_: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    def torch_file(value: Any, file: Any) -> None:
        del value, file

        class Full(io.RawIOBase):
            def writable(self) -> bool:
                return True

            def write(self, _: Any) -> int:
                raise NO_SPACE

        real_save({"a": torch.zeros(1000)}, Full())

    def json_file(*_: Any) -> None:
        raise NO_SPACE

    real_save = torch.save
    if what == "safetensors":
        monkeypatch.setattr(checkpoint, "save_file", safetensors_file)
    elif what == "torch":
        monkeypatch.setattr(checkpoint.torch, "save", torch_file)
    else:
        monkeypatch.setattr(checkpoint, "write_json", json_file)


@pytest.mark.parametrize("what", ["safetensors", "torch", "json"])
def test_a_full_disk_leaves_the_earlier_checkpoint(
    make_run: MakeRun, uninterrupted: MakeRun, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    run, whole = make_run(), uninterrupted()
    epoch = [row["epoch"] for row in read_log(whole)].count(1)
    real = checkpoint.save

    def save_twice(*given: Any) -> None:
        if read_state(run.folder):
            full_disk(what, monkeypatch)
        real(*given)

    monkeypatch.setattr(checkpoint, "save", save_twice)
    with pytest.raises(SetupError, match="no space left on the disk while writing checkpoint") as caught:
        train(run)
    assert caught.value.exit_code == 2
    monkeypatch.undo()
    state = read_state(run.folder)
    assert state and state.step == epoch
    assert not list(run.folder.glob(".mrp-checkpoint-*"))
    train(run, resume=True)
    assert result(run) == result(whole)


def test_a_full_disk_while_the_adapter_is_written_leaves_the_checkpoint(
    make_run: MakeRun, uninterrupted: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    import peft

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    run = make_run()
    monkeypatch.setattr(peft.PeftModel, "save_pretrained", full)
    with pytest.raises(SetupError, match="no space left on the disk while writing adapter"):
        train(run)
    monkeypatch.undo()
    assert not run.adapter.exists() and not run.record.exists()
    train(run, resume=True)
    assert result(run) == result(uninterrupted())


def test_too_little_space_is_told_before_the_first_step(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    run = make_run()
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr("mrp.files.shutil.disk_usage", lambda _: usage)
    with pytest.raises(SetupError, match="the adapter with its checkpoint needs"):
        train(run)
    assert not (run.folder / "checkpoint").exists()
