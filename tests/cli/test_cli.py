"""The command as a whole: help, version, errors, and how fast it starts."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

import brecq
import brecq.cli
from brecq.errors import ConfigError

Invoke = Callable[..., Result]


COMMANDS = (
    "quantize", "evaluate", "inspect", "distill", "search", "profile", "export", "verify", "benchmark",
    "report", "compare", "doctor",
)  # fmt: skip


def test_help_lists_the_commands(invoke: Invoke) -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    for command in COMMANDS:
        assert command in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(invoke: Invoke, command: str) -> None:
    result = invoke(command, "-h")
    assert result.exit_code == 0
    assert f"brecq {command}" in result.stdout


def test_version(invoke: Invoke) -> None:
    result = invoke("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("brecq ")


def test_help_does_not_load_torch() -> None:
    program = (
        "import sys; from typer.testing import CliRunner; from brecq.cli import app; "
        "result = CliRunner().invoke(app, ['quantize', '--help']); assert result.exit_code == 0, result.output; "
        "heavy = {'torch', 'numpy', 'torchao', 'PIL', 'scipy', 'pymoo', 'matplotlib', 'onnxruntime'}; "
        "sys.exit(','.join(heavy & set(sys.modules)) or 0)"
    )
    source = Path(__file__).resolve().parents[2] / "src"
    environment = {**os.environ, "PYTHONPATH": str(source)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow  # not for its own sake: other work on the same cores makes it take longer
def test_help_takes_half_a_second_of_processor_time() -> None:
    resource = pytest.importorskip("resource")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src")}
    taken = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "brecq", "--help"], env=environment, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert min(taken) < 0.5


def test_an_error_is_one_line_without_traceback(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("quantize", "timm:resnet18", "--calib", tmp_path / "missing", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --calib is ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_a_warning_is_one_line(
    invoke: Invoke, network_file: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        warnings.warn("from elsewhere", stacklevel=1)
        raise ConfigError("enough")

    monkeypatch.setattr(brecq, "quantize", stop)
    asked = ("--calib", images, "--calib-size", "999")
    with pytest.warns(UserWarning, match="from elsewhere"):  # others' warnings go where they always went
        result = invoke("quantize", f"{network_file}:build", *asked, "-o", tmp_path / "out")
    warning, error = result.stderr.splitlines()
    assert warning.startswith("warning: ")
    assert "fewer than the 999" in warning
    assert error == "error: enough"
    with pytest.warns(UserWarning, match="from elsewhere"):  # fewer than by default are no surprise
        result = invoke("quantize", f"{network_file}:build", "--calib", images, "-o", tmp_path / "other")
    assert result.stderr.splitlines() == ["error: enough"]


def test_debugging_shows_the_traceback(invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRECQ_DEBUG", "1")
    result = invoke("quantize", "timm:resnet18", "--calib", tmp_path, "-o", tmp_path / "out", "-w", "9")
    assert isinstance(result.exception, ConfigError)


def test_an_unknown_option_is_a_usage_error(invoke: Invoke) -> None:
    result = invoke("inspect", "timm:resnet18", "--wrong")
    assert result.exit_code == 2
    assert "--wrong" in result.stderr


def test_a_fault_of_brecq_is_one_line_with_a_status_of_its_own(
    invoke: Invoke, network_file: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("a\nb")

    monkeypatch.setattr(brecq, "quantize", fail)
    arguments = ("quantize", f"{network_file}:build", "--calib", images, "--calib-size", "4", "-o", tmp_path / "out")
    result = invoke(*arguments)
    assert result.exit_code == 70
    assert result.stderr.startswith("error: this is a bug in brecq, not in what you gave: KeyError: ")
    assert "in quantize.py, line" in result.stderr
    assert "BRECQ_DEBUG=1" in result.stderr
    assert result.stderr.count("\n") == 1
    monkeypatch.setenv("BRECQ_DEBUG", "1")
    assert isinstance(invoke(*arguments, "--force").exception, KeyError)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied", "/x/y"), "Permission denied (/x/y)"),
        (MemoryError("3 TB"), "not enough memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            "not enough memory",
        ),
    ],
)
def test_what_the_machine_refuses_is_no_bug(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(brecq, "load", fail)
    result = invoke("export", tmp_path, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_names_that_are_no_text_can_be_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr(brecq.cli, "app", lambda: print("saved in out\udcff, 8 × 8", flush=True))
    brecq.cli.main()
    assert written.getvalue() == b"saved in out\\udcff, 8 \\xd7 8\n"
