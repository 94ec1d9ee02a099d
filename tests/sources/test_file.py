from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from brecq.data import Preprocessing
from brecq.errors import SourceError
from brecq.sources import load_source

CODE = """
import torch
from torch import nn
from brecq.data import Preprocessing
from neighbour import WIDTH

P = Preprocessing((0.5,), (0.5,), (8, 8), None)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(WIDTH, 2)
    def forward(self, x):
        return self.fc(x)

def build():
    return Net()

def with_preprocessing():
    return nn.Conv2d(3, 4, 1), P

def with_inputs():
    net = Net()
    net.example_inputs = torch.ones(1, WIDTH)
    return net

def with_pair():
    net = nn.Bilinear(2, 3, 1)
    net.example_inputs = (torch.ones(5, 2), torch.ones(5, 3))
    return net

def with_bad_inputs():
    net = Net()
    net.example_inputs = [1, 2]
    return net

def with_half():
    net = Net().half()
    net.example_inputs = torch.ones(2, WIDTH, dtype=torch.float16)
    return net

ready = Net()
number = 3

def needs(argument): return None
def returns_text(): return "net"
def returns_triple(): return Net(), P, 3
def fails(): raise RuntimeError("no such luck")
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "neighbour.py").write_text("WIDTH = 5\n")
    (tmp_path / "my_model.py").write_text(CODE)
    return tmp_path / "my_model.py"


@pytest.mark.parametrize("name", ["build", "Net", "ready"])
def test_function_class_and_module(code: Path, name: str) -> None:
    path = list(sys.path)
    source = load_source(f"{code}:{name}")
    assert source.model(torch.ones(2, 5)).shape == (2, 2)
    assert not source.model.training
    assert (source.name, source.preprocessing, source.example_inputs) == (f"my_model.py:{name}", None, ())
    assert sys.path == path


def test_preprocessing_and_example_inputs(code: Path) -> None:
    source = load_source(f"{code}:with_preprocessing")
    assert source.preprocessing == Preprocessing((0.5,), (0.5,), (8, 8), None)
    assert source.example_inputs[0].shape == (2, 3, 8, 8)
    assert torch.equal(load_source(f"{code}:with_inputs").example_inputs[0], torch.ones(2, 5))
    assert [x.shape for x in load_source(f"{code}:with_pair").example_inputs] == [(2, 2), (2, 3)]


def test_weights(code: Path, tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.ones(2, 5), "fc.bias": torch.zeros(2)}, tmp_path / "w.pt")
    model = load_source(f"{code}:build", tmp_path / "w.pt").model
    assert torch.equal(model(torch.ones(1, 5)), torch.full((1, 2), 5.0))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("biuld", "there is no model 'biuld'; did you mean build"),
        ("number", "number is a int; name a function"),
        ("needs", r"calling needs\(\) failed: TypeError.*called without arguments"),
        ("fails", "RuntimeError: no such luck"),
        ("returns_text", "returned str; return a torch.nn.Module"),
        ("returns_triple", "returned .'Net', 'Preprocessing', 'int'.; return"),
        ("with_bad_inputs", "example_inputs must be"),
        ("not-a-name", "'not-a-name' is not a name"),
        ("", "'' is not a name"),
    ],
)
def test_bad_functions(code: Path, name: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        load_source(f"{code}:{name}")


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="there is no file"):
        load_source(f"{tmp_path}/absent.py:build")
    (tmp_path / "broken.py").write_text("def build(:\n")
    with pytest.raises(SourceError, match=r"running .*broken.py failed: SyntaxError"):
        load_source(f"{tmp_path}/broken.py:build")
    (tmp_path / "needy.py").write_text("import no_such_package\n")
    with pytest.raises(SourceError, match="No module named 'no_such_package'"):
        load_source(f"{tmp_path}/needy.py:build")
    assert "brecq_source_needy" not in sys.modules


def test_half_precision_is_taken_in_float32(code: Path) -> None:
    with pytest.warns(UserWarning, match="with_half holds float16 tensors: taken in float32"):
        source = load_source(f"{code}:with_half")
    assert source.model.fc.weight.dtype == source.example_inputs[0].dtype == torch.float32
    assert source.model(*source.example_inputs).dtype == torch.float32


def test_detectors_of_torchvision_need_no_preprocessing(tmp_path: Path) -> None:
    """They take pictures at their own sizes, and are quantized in parts."""
    pytest.importorskip("torchvision")
    (tmp_path / "mine.py").write_text(
        "from torchvision.models.detection import ssdlite320_mobilenet_v3_large as ssd\n"
        "def build():\n    return ssd(weights=None, weights_backbone=None, num_classes=3)\n"
    )
    source = load_source(f"{tmp_path / 'mine.py'}:build")
    assert source.preprocessing is not None
    assert (source.preprocessing.fit, source.task, source.submodules) == ("own", "detection", ("backbone", "head"))
