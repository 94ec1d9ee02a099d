"""Networks that answer the same inputs differently are refused, and the layer is named."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import brecq
from brecq.capture.export import capture
from brecq.config import QuantConfig
from brecq.errors import CaptureError


class Noise(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("level", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        match self.kind:
            case "dropout":
                return F.dropout(x, 0.5, training=True)
            case "rand_like":
                return x + torch.rand_like(x)
            case "randn":
                return x * torch.randn(1, 4)
            case "unused":
                torch.rand(3)
                return F.dropout(x, 0.5, training=self.training)
            case "attention":
                return F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], dropout_p=0.5)[:, 0]
            case "state":
                self.level += 1
                return x * self.level
            case "python":
                return x + float(torch.empty((), device="cpu").uniform_())


@pytest.mark.parametrize("kind", ["dropout", "rand_like", "randn", "attention", "state"])
def test_refused(kind: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), Noise(kind)).eval()
    with pytest.raises(CaptureError, match=r"two different outputs for the same inputs.*in '1'"):
        brecq.quantize(model, torch.randn(8, 4), QuantConfig(method="rtn"))


def test_dropout_that_is_off_and_random_numbers_that_nothing_reads_are_none() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Noise("unused"), nn.Dropout(), nn.RReLU()).eval()
    x = torch.randn(8, 4)
    assert torch.equal(capture(model, (x,))(x), model(x))
