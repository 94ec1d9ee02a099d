"""Restoration and regression: outputs that are compared value by value."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from brecq.errors import DataError
from brecq.metrics.base import Decode, Task, batched, one_tensor
from brecq.sources.source import require

_CODES = 255


class Regression(Task):
    """Root mean square and mean absolute error over all values. It decides nothing: there are no flips.

    Targets that are NaN, where nothing was measured (a depth sensor's gaps), are left out and counted (`notes`).

    Args:
        output: which output is compared, of several.
    """

    name = "regression"
    without = "are NaN, all of them"

    def __init__(self, output: str | None = None, decode: Decode | None = None) -> None:
        super().__init__(decode)
        self.output = output
        self._square = self._absolute = 0.0
        self._values = self._missing = 0

    def _found(self, outputs: Any) -> Tensor:
        return one_tensor(self.decoded(outputs), self.output, "what is compared").cpu()

    def _both(self, outputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
        found, expected = self._found(outputs), batched(targets, "outputs of one shape").float().cpu()
        if len(expected) == len(found) and _sides(expected) == _sides(found):
            expected = expected.reshape(found.shape)  # [N] for [N, 1]
        if expected.shape != found.shape:
            raise DataError(
                f"the output has shape {list(found.shape)}, the targets {list(expected.shape)}; they must be equal"
            )
        if expected.isinf().any():
            raise DataError("the targets hold infinite values; where they mark what was not measured, make them NaN")
        return found, expected

    def update(self, outputs: Any, targets: Any, /) -> None:
        found, expected = self._both(outputs, targets)
        error = (found - expected)[~expected.isnan()].double()
        self._missing += expected.numel() - error.numel()
        self._square += error.square().sum().item()
        self._absolute += error.abs().sum().item()
        self._values += error.numel()

    def compute(self) -> dict[str, float]:
        if not self._values:
            return {}
        return {"RMSE": math.sqrt(self._square / self._values), "MAE": self._absolute / self._values}

    def notes(self) -> list[str]:
        total = self._values + self._missing
        return [f"{self._missing} of {total} target values are NaN and left out"] if self._missing else []

    def counted(self, targets: Any) -> int:
        return int((~batched(targets, "outputs of one shape").isnan()).sum())

    def targets_of(self, outputs: Any) -> Tensor:
        return self._found(outputs)

    def compare(self, outputs: Any, reference: Any, targets: Any = None) -> None:
        """Nothing: values are no decisions."""


def _sides(value: Tensor) -> list[int]:
    """The axes of a batch that hold more than one number: shapes that agree in these hold the same in the same order,
    which as many numbers alone do not ([N, H, W, 2] and [N, 2, H, W])."""
    return [side for side in value.shape[1:] if side != 1]


class Restoration(Regression):
    """Peak signal-to-noise ratio in dB and structural similarity, mean over images [N, C, H, W].

    Outputs are clipped to the range of values first. Flips: values that are another one of 256 after rounding to 8
    bits, as a picture is stored.

    Args:
        low: what black is. high: what white is. border: pixels at each side that do not count.
        output: which output is the picture, of several.
    """

    name = "restoration"

    def __init__(
        self,
        low: float = 0.0,
        high: float = 1.0,
        border: int = 0,
        output: str | None = None,
        decode: Decode | None = None,
    ) -> None:
        super().__init__(output, decode)
        self.low, self.high, self.border = low, high, border
        self._psnr = self._ssim = 0.0
        self._images = 0

    def _picture(self, value: Tensor) -> Tensor:
        if value.ndim != 4:
            raise DataError(f"an output of shape {list(value.shape)} holds no pictures [N, C, H, W]; give --decode")
        cut = self.border
        value = value[..., cut : value.shape[-2] - cut, cut : value.shape[-1] - cut]
        return ((value - self.low) / (self.high - self.low)).clamp(0, 1)

    def update(self, outputs: Any, targets: Any, /) -> None:
        similarity = require(
            "torchmetrics.functional.image", "tasks", "restoration"
        ).structural_similarity_index_measure
        found, expected = map(self._picture, self._both(outputs, targets))
        if expected.isnan().any():
            raise DataError(
                "the targets hold NaN, and a similarity is of whole pictures; repair them, leave them out with "
                "--task regression, or write a metric that does (--metric)"
            )
        errors = (found - expected).double().square().flatten(1).mean(1)
        self._psnr += (-10 * torch.log10(errors)).sum().item()
        self._ssim += float(similarity(found, expected, data_range=1.0, reduction="sum"))
        self._images += len(found)

    def compute(self) -> dict[str, float]:
        if not self._images:
            return {}
        return {"PSNR dB": self._psnr / self._images, "SSIM": self._ssim / self._images}

    def compare(self, outputs: Any, reference: Any, targets: Any = None) -> None:
        codes = [(self._picture(self._found(each)) * _CODES).round() for each in (outputs, reference)]
        self._count(int((codes[0] != codes[1]).sum()), codes[0].numel())
