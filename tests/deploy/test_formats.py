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


def test_the_ending_tells_the_format(quantized: Quantized, tmp_path: Path) -> None:
    for name, file in (("onnx", "m.onnx"), ("openvino", "m.xml"), ("pt2", "m.PT2"), ("executorch", "m.pte")):
        assert formats.choose(file, None).name == formats.choose(file, name).name == name
    assert formats.choose("m.onnx", "qonnx").name == "qonnx"
    assert formats.choose("folder.v2", "compressed-tensors").name == "compressed-tensors"
    result = quantized("ConcatNet")
    assert brecq.export(result, tmp_path / "m.pt2").path.read_bytes()[:2] == b"PK"
    for file in ("m", "m.bin"):
        with pytest.raises(ConfigError, match=r"no format writes files like 'm.*known endings are \.onnx \(onnx\)"):
            brecq.export(result, tmp_path / file)
    with pytest.raises(ConfigError, match=r"ends as files of the format pt2 do, and the format is onnx; give the end"):
        brecq.export(result, tmp_path / "n.pt2", "onnx")
    with pytest.raises(ConfigError, match="and the format is compressed-tensors; give a folder"):
        brecq.export(result, tmp_path / "n.onnx", "compressed-tensors")
    assert [file.name for file in tmp_path.iterdir()] == ["m.pt2"]


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
