"""`export`: formats, options, and files that are complete or not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import brecq
from brecq import QuantResult
from brecq.deploy import formats
from brecq.errors import ConfigError, ExportError
from brecq.storage.files import replacing

Quantized = Callable[..., QuantResult]


def test_unknown_formats_and_options_name_the_known_ones(quantized: Quantized, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'coreml'; choose one of onnx"):
        brecq.export(quantized("ConcatNet"), tmp_path / "m", "coreml")
    with pytest.raises(ConfigError, match="no option 'bits'; it takes pack"):
        brecq.export(quantized("ConcatNet"), tmp_path / "m.onnx", bits=4)
    with pytest.raises(ExportError, match="does not exist; create it"):
        brecq.export(quantized("ConcatNet"), tmp_path / "none" / "m.onnx")


def test_a_missing_package_names_its_extra(
    quantized: Quantized, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needs_something.py").write_text("import a_package_that_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    format = formats.Format("mine", "needs_something", ".mine", "mine", "a test")
    monkeypatch.setitem(formats.FORMATS, "mine", format)
    with pytest.raises(ExportError, match=r"a_package_that_nobody_has; install it with: pip install 'brecq\[mine\]'"):
        brecq.export(quantized("ConcatNet"), tmp_path / "m.mine", "mine")


@pytest.mark.parametrize("name", list(formats.FORMATS))
def test_every_format_has_a_writer(name: str) -> None:
    format = formats.find(name)
    with formats.needs(format.extra, name):
        pytest.importorskip(format.module, reason=f"needs the extra {format.extra}")
    assert format.name == name
    assert all(isinstance(option, str) for option in formats.option_types(name))


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path, ExportError) as temporary:
        assert temporary.write_text("half") / 0
    assert path.read_text() == "old"
    with replacing(path, ExportError) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "none" / "file"
    with pytest.raises(ExportError, match="choose another place"), replacing(file, ExportError) as temporary:
        temporary.write_text("")
