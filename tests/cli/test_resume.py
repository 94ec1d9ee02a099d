"""A run that is killed goes on with `--resume` and ends as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import Result

from brecq.errors import ConfigError
from brecq.storage.lock import locked

PATIENCE = 240  # seconds

DRIVER = "import sys; sys.path.insert(0, sys.argv.pop(1)); from brecq.cli import main; sys.exit(main())"
STOPPING = """
import os, signal
rename = os.replace

def replace(source, target):
    rename(source, target)
    if os.path.basename(target) == "pass0-block0000.safetensors":
        os.kill(os.getpid(), signal.SIGSTOP)

os.replace = replace
"""
SOURCES = str(Path(__file__).resolve().parents[2] / "src")


def command(network_file: Path, images: Path, out: Path) -> list[str]:
    quantize = ["quantize", f"{network_file}:build", "--calib", str(images), "-o", str(out)]
    return [
        *quantize,
        "-w",
        "2",
        "-a",
        "4",
        "--calib-size",
        "16",
        "--steps",
        "20",
        "--batch-size",
        "4",
        "--threads",
        "1",
    ]


def test_a_killed_run_resumes_and_ends_with_the_same_weights(
    invoke: Callable[..., Result], network_file: Path, images: Path, tmp_path: Path
) -> None:
    """The run that is killed has a process of its own; what it left is resumed in this one."""
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    whole = invoke(*command(network_file, images, undisturbed))
    assert whole.exit_code == 0, whole.output

    started = [sys.executable, "-c", STOPPING + DRIVER, SOURCES, *command(network_file, images, killed)]
    process = subprocess.Popen(started, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert process.poll() is None, "the run ended before it could be killed"
    assert (killed / "blocks" / "pass0-block0000.safetensors").exists()
    with pytest.raises(ConfigError, match=f"is in use by process {process.pid};"), locked(killed, ConfigError):
        pass
    process.terminate()
    process.send_signal(signal.SIGCONT)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143
    assert f"interrupted; the same command with --resume continues in {killed}" in said
    assert not (killed / "manifest.json").exists()

    resumed = invoke(*command(network_file, images, killed), "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert "from the earlier run" in resumed.output
    ended, expected = (load_file(folder / "weights.safetensors") for folder in (killed, undisturbed))
    assert ended.keys() == expected.keys()
    assert all(torch.equal(ended[name], expected[name]) for name in expected)
    assert not (killed / "blocks").exists()
