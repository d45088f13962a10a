"""What is pinned in one place equals what is pinned in the other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
TESTED_EXTRAS = ("train", "data", "report", "eval", "serve", "modelscope", "dev")


def _constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {name.lower().replace("_", "-"): version for name, version in pins}


def test_conda_pins_equal_the_constraints() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["name"] == "mRP-LLM"
    assert "python=3.11" in environment["dependencies"]
    (pip,) = (d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    pins = [entry.split("==") for entry in pip if not entry.startswith("-e")]
    constraints = _constraints()
    assert pins
    for name, version in pins:
        assert constraints[name.lower().replace("_", "-")] == version, name


def test_make_takes_the_torch_of_the_constraints() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"TORCH ?= torch=={_constraints()['torch']}" in makefile


def test_make_installs_the_extras_that_are_tested() -> None:
    assert f"-e '.[{','.join(TESTED_EXTRAS)}]'" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_every_direct_requirement_is_pinned() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(entry for extra in TESTED_EXTRAS for entry in extras[extra])]
    names = {entry.split(">=")[0].lower().replace("_", "-") for entry in wanted}
    assert names <= set(_constraints()), names - set(_constraints())


@pytest.mark.parametrize("page", ["options.md", "cli.md"])
def test_made_pages_are_current(page: str) -> None:
    code = "import sys; sys.path.insert(0, 'docs'); import make; print(make.PAGES[sys.argv[1]](), end='')"
    made = subprocess.run([sys.executable, "-c", code, page], cwd=ROOT, capture_output=True, text=True, check=True)
    assert made.stdout == (ROOT / "docs" / page).read_text(encoding="utf-8"), "run `python docs/make.py`"


def test_nothing_of_the_project_names_a_place_of_its_making() -> None:
    """Paths of somebody's machine do not belong into files that others read."""
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in files:
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".yaml", ".yml", ".txt", ""} and path.is_file() and name != "LICENSE":
            text = path.read_text(encoding="utf-8")
            assert "/root/" + "." not in text and "/work/" + "main" not in text, name
