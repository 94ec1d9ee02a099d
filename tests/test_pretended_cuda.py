"""Whole runs on a pretended CUDA device find tensors that are left on the CPU: see `pretend_cuda.py`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parent
CHOSEN = "graph_makes or killed_run and 2 or stays_there or submodule"


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real one")
def test_whole_runs() -> None:
    paths = os.pathsep.join([str(TESTS.parent / "src"), str(TESTS)])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "pretend_cuda", "-k", CHOSEN]
    done = subprocess.run(
        [*command, str(TESTS / "test_cuda.py")], env={**os.environ, "PYTHONPATH": paths}, cwd=TESTS.parent,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    assert "6 passed" in done.stdout
