from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from brecq.errors import SourceError
from brecq.sources import load_source
from brecq.sources.program import find_unsafe


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(144, 2))


def export(model: nn.Module, path: Path, batch: int = 2, dynamic: bool = True) -> Path:
    shapes = ({0: torch.export.Dim("batch", max=1024)},) if dynamic else None
    torch.export.save(torch.export.export(model, (torch.randn(batch, 3, 8, 8),), dynamic_shapes=shapes), path)
    return path


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return export(net().eval(), tmp_path_factory.mktemp("program") / "net.pt2")


def rewrite(path: Path, target: Path, change: Callable[[str, bytes], bytes]) -> Path:
    """A copy of an archive with changed members."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(zipfile.ZipInfo(name), change(name, old.read(name)))
    return target


def test_program(program: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = net().eval()
    source = load_source(str(program))
    assert (source.name, source.preprocessing) == ("net", None)
    assert source.example_inputs[0].shape == (2, 3, 8, 8)
    x = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(source.model(x), model(x))
    assert find_unsafe(program) is None

    other = net().eval()
    torch.save(other.state_dict(), tmp_path / "w.pt")
    torch.testing.assert_close(load_source(str(program), tmp_path / "w.pt").model(x), other(x))


def test_large_example_batches_are_cut(tmp_path: Path) -> None:
    assert len(load_source(str(export(net().eval(), tmp_path / "n.pt2", batch=9))).example_inputs[0]) == 2


def test_fixed_batch_and_training_mode_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"batches of exactly 1 .*dynamic_shapes=.*Dim"):
        load_source(str(export(net().eval(), tmp_path / "fixed.pt2", batch=1, dynamic=False)))
    for model in (nn.BatchNorm2d(3), nn.Dropout()):
        with pytest.raises(SourceError, match=r"training mode \((batch_norm|dropout)\); call model.eval"):
            load_source(str(export(model.train(), tmp_path / "train.pt2")))


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (os.environ["BRECQ_TEST_EVIL"],)


def test_pickled_code_is_not_run(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRECQ_TEST_EVIL", str(tmp_path / "executed"))
    buffer = io.BytesIO()
    torch.save((((Evil(),), {}),), buffer)
    evil = rewrite(
        program, tmp_path / "evil.pt2", lambda name, old: buffer.getvalue() if name.endswith(".pt") else old
    )
    with pytest.raises(SourceError, match=r"holds pickled objects .*sample_inputs.*trust_pickle"):
        load_source(str(evil))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"config": {"w": {"use_pickle": True, "path_name": "weight_0"}}}, "pickled objects .weight_0"),
        ({"config": {"w": {"use_pickle": False, "path_name": "custom_obj_0"}}}, "pickled objects .custom_obj_0"),
        ([{"expr_str": "__import__('os').getcwd()"}], "the shape"),
        ([{"expr_str": "eval(chr(49))"}], "the shape"),
        ([{"expr_str": "s0.__class__"}], "the shape"),
        ([{"expr_str": "a.b"}], "the shape"),
        ([{"expr_str": "Symbol('eval(1)')"}], "the shape"),
        ([{"expr_str": "(lambda: 1)()"}], "the shape"),
        ([{"expr_str": "s0 +"}], "the shape"),
    ],
)
def test_what_is_unsafe(tmp_path: Path, value: object, found: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt2", "w") as archive:
        archive.writestr("a/data/x.json", json.dumps(value))
    with pytest.raises(SourceError, match=f"holds {found}"):
        load_source(str(tmp_path / "a.pt2"))


@pytest.mark.parametrize(
    "shape",
    [
        "s0",
        "2*s0 + 1",
        "Max(1, s0//2)",
        "floor(s0/2)",
        "s77",
        "FloorDiv(s0, 2)",
        "1.5*s0",
        "True",
        "Symbol('s31', integer=True)",
        "Mul(Integer(2), Symbol('s0', positive=True))",
    ],
)
def test_usual_shapes_are_safe(tmp_path: Path, shape: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt2", "w") as archive:
        archive.writestr("a/models/model.json", json.dumps({"x": [{"expr_str": shape}]}))
    assert find_unsafe(tmp_path / "a.pt2") is None


def test_compiled_code_is_unsafe(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt2", "w") as archive:
        archive.writestr("a/data/aotinductor/model/x.so", b"")
    assert "compiled code" in (find_unsafe(tmp_path / "a.pt2") or "")


def test_bad_files(program: Path, tmp_path: Path) -> None:
    (tmp_path / "text.pt2").write_text("text")
    rewrite(program, tmp_path / "odd.pt2", lambda name, old: b"{}" if name.endswith("models/model.json") else old)
    rewrite(program, tmp_path / "json.pt2", lambda name, old: b"{" if name.endswith("models/model.json") else old)
    for name, message in (
        ("absent", "there is no file"),
        ("text", "is not a torch.export program"),
        ("odd", "is not a readable torch.export program .*export it again"),
        ("json", "is not a torch.export program"),
    ):
        with pytest.raises(SourceError, match=message):
            load_source(str(tmp_path / f"{name}.pt2"))
