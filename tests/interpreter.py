"""Triton's kernels without a GPU: a test file that runs itself once more in a process where Triton interprets them.

    def test_all_of_this_file_under_the_interpreter() -> None:
        run_interpreted(__file__)

    @interpreted
    def test_a_kernel() -> None: ...

Triton decides at import whether it interprets.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="only on the inside, under the interpreter")


def run_interpreted(file: str) -> None:
    """Run the `interpreted` tests of a file; a failure shows the end of what they printed."""
    if INTERPRETED:
        pytest.skip("only on the outside")
    pytest.importorskip("triton", reason="only on a machine with triton")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", file]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
