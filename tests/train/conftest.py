"""Runs of a small cast on the tiny base model, data built."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

from tiny_runs import write_run

from mrp.config import Run
from mrp.train.loop import train


@pytest.fixture
def make_run(tmp_path: Path, tiny_base: Path) -> Callable[..., Run]:
    """Runs of one test differ by `name`, which is also the folder they lie in."""

    def make(name: str = "one", base: Path = tiny_base, **options: Any) -> Run:
        return write_run(tmp_path / name, base, **options)

    return make


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Callable[..., Run]:
    """A run with these options, trained in one go; made once, and not to be changed."""
    done: dict[str, Run] = {}

    def trained(**options: Any) -> Run:
        key = json.dumps(options, sort_keys=True, default=str)
        if key not in done:
            run = write_run(tmp_path_factory.mktemp("whole") / "run", **{"base": tiny_base} | options)
            train(run)
            done[key] = run
        return done[key]

    return trained
