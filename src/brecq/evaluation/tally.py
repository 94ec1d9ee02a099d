"""What is summed over the batches of an evaluation: hits, agreement, noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from brecq import logits
from brecq.data.dataset import Dataset
from brecq.errors import DataError
from brecq.evaluation.outcome import Evaluation
from brecq.labels import counted, left_out, no_class
from brecq.metrics.judge import nothing_counts
from brecq.report import sqnr


class Tally:
    """Sums over batches."""

    def __init__(self, output: str | None, axis: int | None) -> None:
        self.output, self.axis = output, axis
        self.samples = self.labelled = self.ignored = self.predictions = self.agreeing = 0
        self.top1, self.top5 = [0, 0], [0, 0]  # of the model, of the reference
        self.signal: dict[str, float] = {}
        self.noise: dict[str, float] = {}
        self.scored, self.has_top5 = "", False

    def add(self, output: Any, data: Dataset, reference: Any) -> None:
        batch = len(data)
        found = _outputs(output, "model", self.samples, batch)
        name = self._scores(found, batch)
        axis = None if name is None else self._axis(found[name])
        if name is not None and axis is not None and not self.scored:
            what = logits.describe(found[name], axis)
            shown = f"output {name!r}" if len(found) > 1 else ""
            self.scored = ", ".join(filter(None, (shown, what)))
        if data.labels is not None:
            scores = self._labelled_scores(found, name, axis, data, data.labels)
            self.labelled += int(counted(data.labels).sum())
            self.ignored += int((~counted(data.labels)).sum())
            self.has_top5 = scores.shape[1] > 5
            self._add_hits(0, scores, data.labels)
        if reference is not None:
            expected = self._named_alike(reference, found, batch)
            shapes = [{key: list(value.shape) for key, value in each.items()} for each in (found, expected)]
            if shapes[0] != shapes[1]:
                raise DataError(
                    f"the model's output has shape {_shapes(shapes[0])}, the reference's {_shapes(shapes[1])}; "
                    "compare networks with equal outputs"
                )
            if name is not None and data.labels is not None:
                self._add_hits(1, expected[name], data.labels)
            if name is not None and axis is not None:
                same = found[name].argmax(axis) == expected[name].argmax(axis)
                self.predictions += same.numel()
                self.agreeing += int(same.sum())
            self._add_noise(found, expected)
        self.samples += batch

    def add_judged(self, output: Any, reference: Any, batch: int) -> None:
        """What is known of outputs that a metric judges: their noise, where they are tensors of equal shapes.

        A detector's lists of boxes have no noise: the boxes of one network are not those of the other.
        """
        found = _outputs(output, "model", self.samples, batch)
        if reference is not None:
            expected = self._named_alike(reference, found, batch)
            alike = {key: value.shape for key, value in found.items()} == {k: v.shape for k, v in expected.items()}
            if alike and not _per_picture(output, batch):
                self._add_noise(found, expected)
        self.samples += batch

    def _named_alike(self, reference: Any, found: Mapping[str, Tensor], batch: int) -> dict[str, Tensor]:
        expected = _outputs(reference, "reference", self.samples, batch)
        if len(expected) == len(found):  # programs of some runtimes return tuples where the network has names
            return dict(zip(found, expected.values(), strict=True))
        return expected

    def _add_noise(self, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
        for key, value in expected.items():
            if not value.numel():  # no boxes found: nothing that could be compared
                continue
            self.signal[key] = self.signal.get(key, 0.0) + float(value.double().square().sum())
            noise = (value.double() - found[key].double()).square().sum()
            self.noise[key] = self.noise.get(key, 0.0) + float(noise)

    def _scores(self, found: Mapping[str, Tensor], batch: int) -> str | None:
        if self.output is not None and self.output not in found:
            raise DataError(f"there is no output {self.output!r}; the model returns {_listed(found)}")
        name = logits.classifier(found, self.axis) if self.output is None else self.output
        if name is not None and (not found[name].ndim or len(found[name]) != batch):
            if self.output is None:
                return None
            raise DataError(f"the output {name!r} has shape {list(found[name].shape)}, no scores of {batch} samples")
        return name

    def _axis(self, scores: Tensor) -> int | None:
        try:
            return logits.class_axis(scores, self.axis)
        except ValueError as error:
            raise DataError(f"{error}; give an axis of classes") from error

    def _labelled_scores(
        self, found: Mapping[str, Tensor], name: str | None, axis: int | None, part: Dataset, labels: Tensor
    ) -> Tensor:
        """The scores [N, classes] that the labels are of; `DataError` where there are none."""
        if name is None or axis is None or found[name].ndim != 2:
            several = len(found) > 1 and name is None
            which = (
                "say which output they are (output=... of brecq.evaluate, brecq evaluate --output; or pick it in a "
                "function: --task classification --decode FILE.py:FUNCTION), or "
            )
            raise DataError(
                f"there is one label a sample, and the model returns {_listed(found)}: labels go with scores "
                f"[N, classes] only; {which if several else ''}"
                "give the data without labels"
            )
        scores = found[name]
        if (bad := no_class(labels, scores.shape[1])) is not None:
            sample = part.names[bad] if part.names else f"sample {self.samples + bad}"
            raise DataError(
                f"{sample} has label {int(labels[bad])}; labels must be 0 to "
                f"{scores.shape[1] - 1}, the network's classes: check that they count from 0 and belong to it"
            )
        return scores

    def _add_hits(self, whose: int, scores: Tensor, labels: Tensor) -> None:
        best = scores.topk(min(5, scores.shape[1]), dim=1).indices
        hits = best == labels.to(scores.device)[:, None]  # a label of -100 is hit by none
        self.top1[whose] += int(hits[:, 0].sum())
        self.top5[whose] += int(hits.sum())

    def check_counted(self) -> None:
        """Raise `DataError` where labels were given, and none of them counts."""
        if self.ignored and not self.labelled:
            raise DataError(nothing_counts(None))

    def result(self) -> Evaluation:
        if not self.samples:
            raise DataError("there is nothing to evaluate on: the data holds no samples")
        result = Evaluation(self.samples, scored=self.scored)
        result.notes = left_out(self.ignored, self.labelled + self.ignored, "labels")
        if self.labelled:
            result.top1 = 100 * self.top1[0] / self.labelled
            result.top5 = 100 * self.top5[0] / self.labelled if self.has_top5 else None
            if self.signal:  # there is a reference
                result.reference_metrics = {"top-1 %": 100 * self.top1[1] / self.labelled}
                if self.has_top5:
                    result.reference_metrics["top-5 %"] = 100 * self.top5[1] / self.labelled
        if self.predictions:
            result.agreement = 100 * self.agreeing / self.predictions
        ratios = {name: sqnr(self.signal[name], self.noise[name]) for name in self.signal}
        if ratios:
            result.sqnr = min(ratios.values())
            result.outputs = ratios if len(ratios) > 1 else {}
        return result


def _per_picture(output: Any, batch: int) -> bool:
    """True for a list of one dictionary a picture, such as its boxes; not for maps [N, ...] by name in a list."""
    if not isinstance(output, (list, tuple)) or not any(isinstance(each, Mapping) for each in output):
        return False
    maps = all(value.ndim > 0 and len(value) == batch for value in logits.named_outputs(output).values())
    return not maps or any(isinstance(each, Mapping) and "boxes" in each for each in output)


def _outputs(output: Any, whose: str, start: int, batch: int) -> dict[str, Tensor]:
    """The tensors that a network returned, as float."""
    found = {name: value.float() for name, value in logits.named_outputs(output).items()}
    if not found:
        raise DataError(f"the {whose}'s output is {type(output).__name__}; there is no tensor in it to evaluate")
    for name, value in found.items():
        if torch.isnan(value).any():
            which = f" {name!r}" if len(found) > 1 else ""
            raise DataError(
                f"the {whose}'s output{which} for samples {start} to {start + batch - 1} holds NaN; "
                "check its weights and the preprocessing"
            )
    return found


def _listed(outputs: Mapping[str, Tensor]) -> str:
    return _shapes({name: list(value.shape) for name, value in outputs.items()})


def _shapes(shapes: Mapping[str, list[int]]) -> str:
    return ", ".join(f"{name} {shape}".strip() for name, shape in shapes.items())
