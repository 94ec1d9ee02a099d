"""What a shell offers after an option, asked as a shell asks."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from brecq.cli import app


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("brecq quantize --target tens", ["tensorrt"]),
        ("brecq check --target open", ["openvino"]),
        ("brecq targets tens", ["tensorrt"]),
        ("brecq quantize --recipe ", ["instant", "fast", "thorough", "paper", "official"]),
        ("brecq distill --distill-preset f", ["fast", "full"]),
        ("brecq search --hardware ", ["bitfusion", "edge-fpga", "mobile-npu"]),
        ("brecq export --format onn", ["onnx"]),
    ],
)
def test_names_are_offered(line: str, offered: list[str]) -> None:
    environment = {"_BRECQ_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
    found = CliRunner().invoke(app, [], env=environment, prog_name="brecq")
    assert sorted(found.stdout.split()) == sorted(offered)
