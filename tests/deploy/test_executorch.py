"""ExecuTorch: its Python runtime computes what the completed program computes, in 8- and 4-bit kernels of XNNPACK."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import brecq
from brecq import QuantConfig
from brecq.deploy.complete import complete
from brecq.errors import ExportError

pytest.importorskip("executorch", reason="needs executorch: pip install 'brecq[executorch]'")


@pytest.mark.parametrize(
    ("name", "config", "batch", "note"),
    [
        ("ResNet", {}, 4, "0 linear layers at 4 bits, 9 layers at 8 bits"),
        ("MobileNet", {"weights": 2}, 3, "0 linear layers at 4 bits, 11 layers at 8 bits"),
        ("ViT", {"weight_scheme": "symmetric"}, 1, "8 linear layers at 4 bits, 2 layers at 8 bits"),
    ],
)
def test_the_runtime_agrees_with_the_completed_program(
    networks: ModuleType, tmp_path: Path, name: str, config: dict[str, Any], batch: int, note: str
) -> None:
    from brecq.deploy.executorch_runtime import load

    model = networks.build(getattr(networks, name))
    settings = QuantConfig(**{"weights": 4, "activations": 8, "method": "rtn"} | config)
    result = brecq.quantize(model, networks.inputs(model, 8)[0], settings)
    exported = brecq.export(result, tmp_path / "m.pte", "executorch", batch=batch)
    assert note in exported.notes
    x = networks.inputs(model, 5, seed=5)[0]
    (found,) = load(exported.path)(x.numpy())
    with torch.no_grad():
        expected = complete(result, linear_outputs=True).graph(x)
    step = float(expected.max() - expected.min()) / 255
    assert float((torch.from_numpy(found) - expected).abs().max()) < 2.5 * step


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("ResNet", {"activations": 4}, r"have 8 bits, and \d+ have fewer.*--activation-bits 8"),
        ("ResNet", {"activations": 32}, "integer activations.*--activation-bits 8"),
        ("ResNet", {"weights": 8, "weight_scheme": "asymmetric"}, "asymmetric at 8 bits.*--weight-scheme symmetric"),
        ("UNet", {}, "does not take this network"),
    ],
)
def test_what_xnnpack_does_not_take_is_refused_before_writing(
    networks: ModuleType, tmp_path: Path, name: str, config: dict[str, Any], message: str
) -> None:
    model = networks.build(getattr(networks, name))
    settings = QuantConfig(**{"weights": 4, "activations": 8, "method": "rtn"} | config)
    result = brecq.quantize(model, networks.inputs(model, 8)[0], settings)
    with pytest.raises(ExportError, match=message):
        brecq.export(result, tmp_path / "m.pte", "executorch")
    assert not list(tmp_path.iterdir())
