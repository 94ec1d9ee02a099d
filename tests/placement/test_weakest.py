"""Which output of a network loses what, and what the report says to do about it."""

from __future__ import annotations

from types import ModuleType

import torch

import brecq
from brecq import LayerRule, QuantConfig, Report


def test_the_output_that_loses_most_is_named_with_its_layers(networks: ModuleType) -> None:
    inputs = torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    config = QuantConfig(weights=8, method="rtn", rules=(LayerRule("boxes", weights=2),))
    result = brecq.quantize(networks.build(networks.Scores), inputs, config)
    boxes, classes = result.report.outputs
    assert (boxes.name, boxes.layers, classes.name, classes.layers) == ("0", ("boxes",), "1", ("classes",))
    assert boxes.sqnr < classes.sqnr - 6
    (note,) = (note for note in result.report.notes if "SQNR" in note)
    assert "output '0'" in note
    assert "boxes 2 bit" in note
    assert "--set 'boxes' w=8,a=8" in note
    assert "classes" not in note
    assert Report.from_dict(result.report.to_dict()).outputs == result.report.outputs
    raised = brecq.quantize(networks.build(networks.Scores), inputs, QuantConfig(weights=8, method="rtn"))
    assert not any("SQNR" in note for note in raised.report.notes)


def test_one_output_has_no_name(networks: ModuleType) -> None:
    model = networks.build(networks.ResNet)
    result = brecq.quantize(model, torch.randn(8, 3, 16, 16), QuantConfig(weights=2, method="rtn"))
    (output,) = result.report.outputs
    assert (output.name, output.layers) == ("", ("fc",))
    assert output.noise > 0
