"""What each quantizer costs alone: against switching it on by hand, and what is raised by it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import brecq
from brecq import QuantConfig
from brecq.capture.export import capture
from brecq.config import FLOAT, LayerRule
from brecq.partition.blocks import extract
from brecq.partition.cut import partition
from brecq.placement.losses import output_loss, quantizers, tensor_losses
from brecq.placement.prepare import prepare
from brecq.placement.quantizer import BrecqQuantizer
from brecq.quant.fake_quant import Mode, set_mode
from brecq.reconstruct import alone
from brecq.report import TensorLoss


class Uneven(nn.Module):
    """One feature a thousand times the others, undone by the next layer: 8 bits a tensor lose the others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.body, self.last = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        with torch.no_grad():
            self.body.weight[0] *= 3000
            self.last.weight[:, 0] /= 3000

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.first(x))
        y = torch.relu(self.body(x))
        return {"scores": self.last(y), "features": x}


@pytest.fixture
def uneven() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(2)
    return Uneven().eval(), torch.randn(64, 16)


def test_losses_are_those_of_switching_on_by_hand(uneven: tuple[nn.Module, Tensor]) -> None:
    model, x = uneven
    config = QuantConfig(4, 8, first_last=None)
    prepared = prepare(capture(model, (x[:2],)), BrecqQuantizer(config))
    network = extract(prepared, partition(prepared))
    found = alone.losses(network, (x,), config, torch.device("cpu"))
    assert [each.worst for each in found] == sorted((each.worst for each in found), reverse=True)
    assert {(each.tensor, each.kind, each.bits) for each in found} >= {
        ("body", "weight", 4), ("output of body", "activation", 8), ("input x", "activation", 8),
    }  # fmt: skip
    few = x[: alone.SAMPLES]
    with torch.no_grad():
        set_mode(prepared, Mode.FLOAT)
        expected = prepared(few)
        for module in quantizers(prepared):
            module.mode = Mode.HARD
            changed = prepared(few)
            module.mode = Mode.FLOAT
            by_hand = {
                name: ((changed[name] - value).double().square().sum() / value.double().square().sum()).item()
                for name, value in expected.items()
            }
            assert any(each.outputs == pytest.approx(by_hand) for each in found)
    together = output_loss(prepared, [few])
    assert together["scores"] > 0
    assert together.keys() == {"scores", "features"}
    assert tensor_losses(prepared, [few]) == found


def test_the_tensor_that_loses_too_much_is_raised(uneven: tuple[nn.Module, Tensor]) -> None:
    model, x = uneven
    config = QuantConfig(8, 8, method="rtn")
    plain = brecq.quantize(model, x, config)
    careful = brecq.quantize(model, x, QuantConfig(8, 8, method="rtn", auto_high_precision=True))
    before, after = (brecq.evaluate(r.model, x, reference=model).outputs["scores"] for r in (plain, careful))
    assert before < 20
    assert after > before + 10
    assert careful.config.rules == (LayerRule("last", activations=FLOAT),)
    assert any("raised: activation output of body (8 bits" in note for note in careful.report.notes)
    # without it, the tensor is named, with what to do
    note = next(note for note in plain.report.notes if "--auto-high-precision" in note)  # the worst comes first
    assert "activation output of body alone leaves an output" in note
    assert "--set 'last' a=32" in note


def test_rules_of_ones_own_win(uneven: tuple[nn.Module, Tensor]) -> None:
    model, x = uneven
    mine = (LayerRule("last", activations=8),)
    result = brecq.quantize(model, x, QuantConfig(8, 8, method="rtn", auto_high_precision=True, rules=mine))
    assert result.config.rules[-1:] == mine
    inputs = {entry.layer: entry.inputs for entry in result.report.scope if entry.weights}
    assert inputs["last"].startswith("8 bit")


def test_ordinary_networks_are_left_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    result = brecq.quantize(model, torch.randn(64, 8), QuantConfig(8, 8, method="rtn", auto_high_precision=True))
    assert result.config.rules == ()
    assert not any("leaves an output" in note for note in result.report.notes)


def loss(kind: str, worst: float, bits: int = 4) -> TensorLoss:
    return TensorLoss("t", kind, bits, ("a.b", "c"), worst, {"": worst, "other": worst / 2})


def test_outliers_stand_out_among_their_kind() -> None:
    usual = [loss("weight", 0.02) for _ in range(5)]
    assert alone.outliers(usual) == []  # all lose as much
    worse = loss("weight", 0.5)
    assert alone.outliers([*usual, worse]) == [worse]
    assert alone.outliers([*(loss("weight", 1e-6) for _ in range(5)), loss("weight", 1e-4)]) == []  # 40 dB are enough
    assert alone.raised([*usual, worse]) == [LayerRule("a.b", weights=8), LayerRule("c", weights=8)]
    assert alone.remedy(loss("activation", 1.0, 8)) == "--set 'a.b' a=32 (and 1 more)"
    assert (worse.output_sqnr, worse.sqnr) == pytest.approx((3.01, 3.01), abs=0.01)
    assert loss("weight", 0.0).output_sqnr == math.inf


def test_networks_that_return_indices_have_no_ratio() -> None:
    class Choosing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x).argmax(1)

    torch.manual_seed(0)
    result = brecq.quantize(Choosing().eval(), torch.randn(32, 8), QuantConfig(8, 8, method="rtn"))
    assert not any("leaves an output" in note for note in result.report.notes)
