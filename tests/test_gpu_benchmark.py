"""`benchmarks/gpu.py` in tiny form, on the CPU: whoever has a GPU runs it without preparation."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("benchmarks/ is not part of the source distribution", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))
gpu = pytest.importorskip("gpu")


def test_every_kind_of_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("BRECQ_KERNELS", "eager")
    file = tmp_path / "gpu.json"
    results = gpu.main(["--tiny", "--results", str(file)])
    assert json.loads(file.read_text(encoding="utf-8")) == json.loads(json.dumps(results))
    cells = results["cells"]
    assert not {name: cell for name, cell in cells.items() if "error" in cell}
    assert cells["determinism, fast resnet18"]["ok"]
    assert cells["instant resnet18"]["sqnr"] > 10
    assert 0 < cells["profile resnet18"]["share not in convolutions and products"] < 1
    assert cells["paper resnet18"]["passes"][0]["steps"] == 4
    assert "| instant resnet18 |" in capsys.readouterr().out


def test_an_error_is_a_result_and_no_time_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ValueError("broken")

    monkeypatch.setattr(gpu, "cells", lambda *_: {"a": broken, "b": lambda: {"ok": True}})
    results = gpu.main(["--tiny", "--results", str(tmp_path / "gpu.json")])
    assert results["cells"]["a"]["error"] == "ValueError: broken"
    assert "in broken" in results["cells"]["a"]["traceback"]
    assert results["cells"]["b"]["ok"]
    assert gpu.main(["--tiny", "--seconds", "1", "--results", str(tmp_path / "gpu.json")])["left out"] == ["a", "b"]
