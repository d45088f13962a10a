"""Fixtures for all tests, and two rules: no network but loopback; with MRP_REQUIRE_ALL no skip for want of data."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
LOOPBACK = ("127.", "::1", "localhost", "0.0.0.0")
MAY_SKIP = ("no CUDA", "only on ")  # reasons that no set-up of ours can take away


class NetworkClosedError(OSError):
    """A test reached for the network."""


@pytest.fixture(autouse=True, scope="session")
def _network_closed() -> Any:
    """Connections to anything but this machine fail."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith(LOOPBACK):
            raise NetworkClosedError(f"tests run without network, and this one wants {address}")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        yield


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Where everything must run (MRP_REQUIRE_ALL=1), a skip is a failure."""
    if os.environ.get("MRP_REQUIRE_ALL") != "1":
        return
    for report in terminalreporter.stats.get("skipped", []):
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        if not reason.removeprefix("Skipped: ").startswith(MAY_SKIP):
            terminalreporter.write_line(f"must not skip here: {report.nodeid}: {reason}", red=True)
            terminalreporter._session.exitstatus = 1


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data beside the checkout (`../shared`, or MRP_SHARED); the test skips where it is absent."""
    folder = Path(os.environ.get("MRP_SHARED") or Path(__file__).parents[2] / "shared")
    if not (folder / "data").is_dir():
        pytest.skip(f"the shared data is not here: no folder {folder / 'data'} (MRP_SHARED names another place)")
    return folder


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model in Hugging Face format: a random Llama of two layers with a ChatML tokenizer of its own."""
    pytest.importorskip("torch")
    from tiny_models import save_base

    return save_base(tmp_path_factory.mktemp("tiny-base"))
