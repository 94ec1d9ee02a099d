"""A result takes its own types, and others where the cast is exact; pixels where the network converts them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import brecq
from brecq import DataError, QuantConfig

W8A8 = QuantConfig(8, 8, method="rtn")


class Pixels(nn.Module):
    """Normalizes bytes itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.conv(image.float() / 255 - 0.5).relu().mean((2, 3)))


def test_types_are_cast_where_that_is_exact_and_refused_elsewhere() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    x = torch.randn(16, 3, 6, 6)
    result = brecq.quantize(model, x, W8A8)
    few = x[:4].bfloat16()
    assert torch.equal(result.model(input=few), result.model(few.float()))
    for network in (result.model, brecq.simulate(result)):
        for dtype in (torch.bfloat16, torch.float16):
            assert torch.equal(network(few.to(dtype)), network(few.to(dtype).float()))
        with pytest.raises(
            DataError, match=r"the input 'input.*' is float64, .*float32: .*\(\.to\(torch\.float32\)\)$"
        ):
            network(few.double())
        for dtype in (torch.uint8, torch.int64, torch.bool):
            with pytest.raises(
                DataError, match=f"is {str(dtype)[6:]}, and the network takes float32: .*, prepared as"
            ):
                network(few.to(dtype))


def test_whole_numbers_are_widened_and_never_narrowed() -> None:
    model = nn.Sequential(nn.Embedding(20, 8), nn.Flatten(), nn.Linear(40, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    ids = torch.randint(20, (64, 5))
    network = brecq.quantize(model, ids, W8A8).model
    assert torch.equal(network(ids.int()), network(ids))
    narrow = brecq.quantize(model, ids.int(), W8A8).model
    with pytest.raises(DataError, match="is int64, and the network takes int32"):
        narrow(ids)


def test_pixels_go_to_networks_that_convert_them(tmp_path: Path) -> None:
    model, images = Pixels().eval(), torch.randint(256, (16, 3, 8, 8), dtype=torch.uint8)
    result = brecq.quantize(model, images, W8A8)
    assert result.example_inputs[0].dtype == torch.uint8
    loaded = brecq.load(result.save(tmp_path / "result"))
    assert torch.equal(loaded.model(images), result.model(images))
    assert brecq.evaluate(loaded.model, images, reference=model).sqnr > 30
    with pytest.raises(DataError, match="is float32, and the network takes uint8"):
        loaded.model(images.float())
    for suffix in ("onnx", "xml"):
        pytest.importorskip({"onnx": "onnxruntime", "xml": "openvino"}[suffix], reason=f"needs a runtime of {suffix}")
        brecq.export(loaded, tmp_path / f"m.{suffix}")
        assert brecq.verify(loaded, tmp_path / f"m.{suffix}", images).as_expected


@pytest.mark.parametrize("labelled", [False, True])
def test_pixels_for_a_network_that_does_not_convert_them_are_refused(labelled: bool) -> None:
    images = torch.randint(256, (16, 3, 8, 8), dtype=torch.uint8)
    data = [(images, torch.arange(16))] if labelled else images
    with pytest.raises(DataError, match=r"uint8 pixels of shape \[3, 8, 8\], and the network does not convert them"):
        brecq.quantize(nn.Conv2d(3, 4, 3), data, W8A8)
