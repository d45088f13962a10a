"""The command `mrp` in this process: what it printed, and how it ended.

done = mrp("data", "build", project, "--json")
done.code, done.json["totals"]["kept"]
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from typer.testing import CliRunner

from mrp.cli import app


@dataclass(frozen=True)
class Done:
    """A finished command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The result of a command with --json, which is all that standard output may hold."""
        lines = self.out.splitlines()
        assert len(lines) == 1, f"more than the result on standard output: {self.out!r}"
        return json.loads(lines[0])


def mrp(*arguments: object, stdin: str = "") -> Done:
    """Run `mrp ARGUMENTS` to its end."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], input=stdin)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception  # the command line let an error through
    return Done(result.exit_code, result.stdout, result.stderr)


def fails(done: Done, code: int, *words: str) -> None:
    """The command ended with `code` and told what, where and how to fix it in these words, without a traceback."""
    assert done.code == code, f"exit code {done.code}: {done.out}{done.err}"
    for word in words:
        assert word in done.err, f"{word!r} is not in {done.err!r}"
    assert "Traceback" not in done.err
    if code == 2:
        assert "fix:" in done.err
