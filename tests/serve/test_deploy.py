"""The files of `deploy/` fit the program: tested versions, flags that exist, nobody is root, no secret in them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from mrp.cli import app

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
FLAGS = {
    flag
    for parameter in typer.main.get_command(app).commands["serve"].params  # type: ignore[attr-defined]
    for flag in (*parameter.opts, *parameter.secondary_opts)
}


def text_of(name: str) -> str:
    return (DEPLOY / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def compose() -> Any:
    return yaml.safe_load(text_of("compose.yaml"))


def dockerfile(keyword: str) -> list[str]:
    """The arguments of each instruction of a kind, in one line each."""
    joined = text_of("Dockerfile").replace("\\\n", " ")
    return [line.removeprefix(keyword).strip() for line in joined.splitlines() if line.startswith(f"{keyword} ")]


def flags_of(words: list[str]) -> set[str]:
    return {word.partition("=")[0] for word in words if word.startswith("--")}


def test_versions_are_those_that_are_tested() -> None:
    tested = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    pins = re.findall(r"[a-z_]+==[0-9][\w.]*", text_of("Dockerfile"))
    assert {pin.partition("==")[0] for pin in pins} == {"torch", "transformers"}
    assert set(pins) <= set(tested)
    assert re.search(r"FROM python:3\.11-", text_of("Dockerfile"))  # the Python of constraints.txt


def test_every_flag_exists(compose: Any) -> None:
    entry = [word for line in dockerfile("ENTRYPOINT") for word in yaml.safe_load(line)]
    start = re.search(r"^ExecStart=(.+)$", text_of("mrp.service"), re.MULTILINE)
    assert entry[:2] == ["mrp", "serve"]
    assert start
    given = [flags_of(entry), flags_of(compose["services"]["mrp"]["command"]), flags_of(shlex.split(start[1]))]
    assert all(given)
    assert not set().union(*given) - FLAGS


def test_what_the_dockerfile_copies_is_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert ignored[0] == "*"
    copied = [name for line in dockerfile("COPY") if not line.startswith("--from") for name in line.split()[:-1]]
    assert {f"!{name}" for name in copied} <= set(ignored)
    assert all((ROOT / name).exists() for name in copied)


def test_nobody_is_root(compose: Any) -> None:
    assert dockerfile("USER") == ["10001"]
    assert dockerfile("HEALTHCHECK")
    assert "DynamicUser=yes" in text_of("mrp.service").splitlines()
    for service in compose["services"].values():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_others_reach_the_server_with_a_key_alone_and_the_weights_not_at_all(compose: Any) -> None:
    services = compose["services"]
    assert "ports" not in services["vllm"]
    assert compose["networks"][services["vllm"]["networks"][0]] == {"internal": True}
    assert all(port.startswith("127.0.0.1:") for port in services["mrp"]["ports"])
    (secret,) = services["mrp"]["secrets"]
    (entry,) = dockerfile("ENTRYPOINT")
    assert f"/run/secrets/{secret}" in yaml.safe_load(entry)
    assert compose["secrets"][secret] == {"file": "./keys.txt"}
    assert "--insecure" not in "".join(text_of(name) for name in ("Dockerfile", "compose.yaml", "mrp.service"))


def test_a_stop_waits_for_replies_under_way(compose: Any) -> None:
    """What stops the server gives it more seconds than it takes itself."""
    drain = int(next(word for word in compose["services"]["mrp"]["command"] if "--drain" in word).partition("=")[2])
    assert int(compose["services"]["mrp"]["stop_grace_period"].removesuffix("s")) > drain
    unit = text_of("mrp.service")
    found = re.search(r"--drain (\d+)", unit), re.search(r"TimeoutStopSec=(\d+)", unit)
    assert found[0] and found[1]
    assert int(found[1][1]) > int(found[0][1])
