from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from brecq.errors import SourceError
from brecq.sources import load_source


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


def test_bad_files(program: Path, tmp_path: Path) -> None:
    (tmp_path / "text.pt2").write_text("text")
    rewrite(program, tmp_path / "odd.pt2", lambda name, old: b"{}" if name.endswith("models/model.json") else old)
    rewrite(program, tmp_path / "json.pt2", lambda name, old: b"{" if name.endswith("models/model.json") else old)
    for name, message in (
        ("absent", "there is no file"),
        ("text", "is not a torch.export program"),
        ("odd", "is not a torch.export program: 'graph_module'"),
        ("json", "is not a torch.export program"),
    ):
        with pytest.raises(SourceError, match=message):
            load_source(str(tmp_path / f"{name}.pt2"))


def test_shapes_that_are_computed_from_the_batch(tmp_path: Path) -> None:
    class Merged(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            merged = x.reshape(x.shape[0] * 3, -1)
            return {"twice": torch.cat([merged, merged]), "once": merged}

    x = torch.randn(5, 3, 8, 8)
    found = load_source(str(export(Merged().eval(), tmp_path / "merged.pt2"))).model(x)
    assert all(torch.equal(value, Merged()(x)[key]) for key, value in found.items())


def test_a_program_without_example_inputs(tmp_path: Path) -> None:
    exported = torch.export.export(
        net().eval(), (torch.randn(2, 3, 8, 8),), dynamic_shapes=({0: torch.export.Dim("batch", max=1024)},)
    )
    exported.example_inputs = None
    torch.export.save(exported, tmp_path / "n.pt2")
    assert load_source(str(tmp_path / "n.pt2")).example_inputs[0].shape == (2, 3, 8, 8)
