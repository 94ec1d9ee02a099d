"""How good a network is: accuracy against labels, fidelity against a reference network."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from brecq.data.dataset import Dataset, check_labels
from brecq.errors import DataError
from brecq.forward import BATCH, evaluating

OUTPUT_KEYS = ("logits", "out")


@dataclass
class Evaluation:
    """What `evaluate` measured.

    Attributes:
        samples: inputs evaluated.
        top1, top5: percent of samples whose label has the largest, or one of the five largest, logits; `None`
            without labels, `top5` also with five classes or fewer.
        agreement: percent of predictions (samples, or pixels or tokens) equal to the reference's; `None` without
            a reference or with outputs that are no class scores.
        sqnr: signal-to-quantization-noise ratio of the outputs against the reference's, in dB: 10·log10(Σr² / Σ(r-y)²)
            over all samples; infinite where the outputs are identical; `None` without a reference.
        seconds: wall time, the reference's included.
    """

    samples: int
    top1: float | None = None
    top5: float | None = None
    agreement: float | None = None
    sqnr: float | None = None
    seconds: float = 0.0


def evaluate(
    model: nn.Module,
    dataset: Dataset | Iterable[Dataset],
    *,
    reference: nn.Module | None = None,
    batch_size: int = BATCH,
    device: torch.device | str = "cpu",
) -> Evaluation:
    """Run `model`, and `reference` beside it, over `dataset` in eval mode without gradients.

    Outputs are class scores [N, classes], dense scores [N, classes, H, W], or sequences [N, tokens, classes]; of a
    dictionary the entry `logits` or `out` counts, of a tuple the first tensor. Labels go with [N, classes] only.

    Args:
        dataset: or an iterable of parts of it (`brecq.data.iter_data`), for data larger than memory.
        device: both networks and the batches are moved there; the networks stay there.

    Raises:
        DataError: labels that are out of range or do not go with the output, NaN in the output, no tensor in it.
    """
    tally = _Tally()
    start = time.perf_counter()
    models = [model] if reference is None else [model, reference]
    for each in models:
        each.to(device)
    with torch.inference_mode(), evaluating(*models):
        for part in (dataset,) if isinstance(dataset, Dataset) else dataset:
            checked = False
            for inputs, labels in part.batches(batch_size):
                inputs = tuple(x.to(device) for x in inputs)
                output = scores(model(*inputs), len(inputs[0]))
                if labels is not None and not checked:
                    _check_labels(part, output)
                    checked = True
                tally.add(output, labels, None if reference is None else scores(reference(*inputs), len(inputs[0])))
    return tally.result(time.perf_counter() - start)


class _Tally:
    """Sums over batches."""

    def __init__(self) -> None:
        self.samples = self.labelled = self.top1 = self.top5 = self.predictions = self.agreeing = 0
        self.signal = self.noise = 0.0
        self.has_top5 = self.has_reference = False

    def add(self, output: Tensor, labels: Tensor | None, expected: Tensor | None) -> None:
        if torch.isnan(output).any():
            raise DataError(
                f"the model's output for samples {self.samples} to {self.samples + len(output) - 1} holds NaN; "
                "check its weights and the preprocessing"
            )
        self.samples += len(output)
        if labels is not None:
            labels = labels.to(output.device)
            best = output.topk(min(5, output.shape[1]), dim=1).indices
            hits = best == labels[:, None]
            self.labelled += len(labels)
            self.top1 += int(hits[:, 0].sum())
            self.top5 += int(hits.sum())
            self.has_top5 = output.shape[1] > 5
        if expected is not None:
            if expected.shape != output.shape:
                raise DataError(
                    f"the model's output has shape {list(output.shape)}, the reference's {list(expected.shape)}; "
                    "compare networks with equal outputs"
                )
            self.has_reference = True
            axis = class_axis(output)
            if axis is not None:
                same = output.argmax(axis) == expected.argmax(axis)
                self.predictions += same.numel()
                self.agreeing += int(same.sum())
            self.signal += float(expected.double().square().sum())
            self.noise += float((expected.double() - output.double()).square().sum())

    def result(self, seconds: float) -> Evaluation:
        if not self.samples:
            raise DataError("there is nothing to evaluate on: the data holds no samples")
        result = Evaluation(self.samples, seconds=seconds)
        if self.labelled:
            result.top1 = 100 * self.top1 / self.labelled
            result.top5 = 100 * self.top5 / self.labelled if self.has_top5 else None
        if self.predictions:
            result.agreement = 100 * self.agreeing / self.predictions
        if self.has_reference:
            result.sqnr = sqnr(self.signal, self.noise)
        return result


def sqnr(signal: float, noise: float) -> float:
    """10·log10(signal / noise) in dB, of sums of squares; infinite without noise."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def class_axis(output: Tensor) -> int | None:
    if output.ndim < 2:
        return None
    axis = -1 if output.ndim == 3 else 1
    return axis if output.shape[axis] > 1 else None


def scores(output: Any, batch: int) -> Tensor:
    """The tensor in a network's output, as float on its device."""
    found = output
    if isinstance(output, Mapping):
        found = next((output[key] for key in OUTPUT_KEYS if key in output), next(iter(output.values()), None))
    elif isinstance(output, (tuple, list)):
        found = next((part for part in output if isinstance(part, Tensor)), None)
    if not isinstance(found, Tensor) or not found.ndim or len(found) != batch:
        shape = f"of shape {list(found.shape)}" if isinstance(found, Tensor) else f"{type(output).__name__}"
        raise DataError(
            f"the network's output is {shape}; accuracy and agreement need a tensor [{batch}, classes, ...]"
        )
    return found.float()


def _check_labels(part: Dataset, output: Tensor) -> None:
    if output.ndim != 2:
        raise DataError(
            f"the output has shape {list(output.shape)}, and there is one label a sample; "
            "labels go with [N, classes] only: give the data without labels"
        )
    check_labels(part, output.shape[1])
