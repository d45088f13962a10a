"""Fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data beside the checkout (`../shared`, or MRP_SHARED); the test skips where it is absent."""
    folder = Path(os.environ.get("MRP_SHARED") or Path(__file__).parents[2] / "shared")
    if not (folder / "data").is_dir():
        pytest.skip(f"the shared data is not here: no folder {folder / 'data'} (MRP_SHARED names another place)")
    return folder
