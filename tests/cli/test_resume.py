"""A run that is killed goes on with `--resume` and ends as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

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


def command(network_file: Path, images: Path, out: Path, *options: str, driver: str = DRIVER) -> list[str]:
    quantize = ["quantize", f"{network_file}:build", "--calib", str(images), "-o", str(out)]
    settings = ["-w", "2", "-a", "4", "--calib-size", "16", "--steps", "60", "--batch-size", "4", "--threads", "1"]
    return [sys.executable, "-c", driver, SOURCES, *quantize, *settings, *options]


def test_a_killed_run_resumes_and_ends_with_the_same_weights(network_file: Path, images: Path, tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    subprocess.run(command(network_file, images, undisturbed), check=True, capture_output=True, timeout=PATIENCE)

    process = subprocess.Popen(
        command(network_file, images, killed, driver=STOPPING + DRIVER),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
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

    again = command(network_file, images, killed, "--resume")
    resumed = subprocess.run(again, check=True, capture_output=True, text=True, timeout=PATIENCE)
    assert "from the earlier run" in resumed.stdout + resumed.stderr
    ended, expected = (load_file(folder / "weights.safetensors") for folder in (killed, undisturbed))
    assert ended.keys() == expected.keys()
    assert all(torch.equal(ended[name], expected[name]) for name in expected)
    assert not (killed / "blocks").exists()
