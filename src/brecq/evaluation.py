"""How good a network is: accuracy against labels, fidelity against a reference network."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from brecq import logits
from brecq.checks import FITTING, advice, check_device, running
from brecq.data.calls import begun, listed_pictures, pictures_of
from brecq.data.collect import stream
from brecq.data.dataset import Dataset
from brecq.devices import on_device
from brecq.errors import DataError
from brecq.float32 import in_float32, in_kind
from brecq.forward import BATCH, call, evaluating, even_slices
from brecq.metrics.base import Metric
from brecq.metrics.judge import Judge
from brecq.report import sqnr
from brecq.settings import BATCH_SIZE, checked

_ORDINARY = 3 * 256 * 256
"""Numbers in a sample of which a whole batch is run at a time."""


@dataclass
class Evaluation:
    """What `evaluate` measured.

    Attributes:
        samples: inputs evaluated.
        top1, top5: percent of samples whose label has the largest, or one of the five largest, scores; `None`
            without labels, `top5` also with five classes or fewer.
        agreement: percent of predictions (samples, or pixels or tokens) equal to the reference's; `None` without
            a reference or with outputs that are no class scores.
        sqnr: signal-to-quantization-noise ratio of the outputs against the reference's, in dB: 10·log10(Σr² / Σ(r-y)²)
            over all samples; infinite where the outputs are identical; `None` without a reference. Of several outputs
            it is the lowest.
        seconds: wall time, the reference's included.
        outputs: the ratio of each output by name (or place, in a tuple); empty if there is only one.
        scored: the output that top-1, top-5 and agreement are of, and along which axis; empty where that is plain
            (one output [N, classes]) or there are no class scores.
        task: the name of the metric, where one was given: then `agreement` is of its decisions, whatever they are.
        metrics: what it computed of the network, by name, the most telling first. reference_metrics: of the reference;
            without a metric its `top-1 %` and `top-5 %`, where there are labels.
        against_reference: the data said nothing of what is right: `metrics` take the reference's decisions for that.
        flips: percent of decisions that are other ones than the reference's, 100 - agreement.
        notes: what the metric left out, in words, such as targets that are NaN.
    """

    samples: int
    top1: float | None = None
    top5: float | None = None
    agreement: float | None = None
    sqnr: float | None = None
    seconds: float = 0.0
    outputs: dict[str, float] = field(default_factory=dict)
    scored: str = ""
    task: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    reference_metrics: dict[str, float] = field(default_factory=dict)
    against_reference: bool = False
    flips: float | None = None
    notes: list[str] = field(default_factory=list)

    def shown(self) -> dict[str, float]:
        """What tables show, by name: the task's metric and flips, or top-1, top-5 and agreement; and the SQNR."""
        if self.task:
            against = " vs float" if self.against_reference else ""
            found: dict[str, float | None] = {_named(name, against): value for name, value in self.metrics.items()}
            found["flips %"] = self.flips
        else:
            found = {"top-1 %": self.top1, "top-5 %": self.top5, "agreement %": self.agreement}
        found["SQNR dB"] = self.sqnr
        return {name: value for name, value in found.items() if value is not None}


def _batch_of(data: Dataset) -> int:
    numbers = sum(value[0].numel() for value in data.inputs)
    return max(2, min(BATCH, BATCH * _ORDINARY // max(numbers, 1)))


def _named(name: str, against: str) -> str:
    """`AP vs float %` of `AP %`."""
    what, _, unit = name.rpartition(" ")
    return f"{what}{against} {unit}" if what and unit in ("%", "dB") else f"{name}{against}"


def evaluate(
    model: nn.Module,
    data: Dataset | Iterable[Any] | Tensor,
    *,
    metric: Metric | Callable[..., Any] | str | None = None,
    reference: nn.Module | None = None,
    batch_size: int | None = None,
    device: torch.device | str = "auto",
    output: str | int | None = None,
    class_axis: int | None = None,
) -> Evaluation:
    """Run `model`, and `reference` beside it, over `data` in eval mode without gradients.

    With a `metric` (`brecq.metrics`) the networks are judged by it: by the targets or labels in the data or, where it
    has none, by what the reference decides. Beside it stands the share of decisions that changed, and the SQNR of
    every output.

    Without one, top-1 and agreement are of class scores: those of a network that returns one tensor [N, classes], or
    the entry `logits` or `out` of a dictionary, which may also be maps [N, classes, H, W] or sequences
    [N, tokens, classes]. Other networks, such as those that return pictures, have an SQNR for each of their outputs
    only, unless `output` or `class_axis` says what they hold. Labels go with [N, classes] only.

    Of a network in another floating-point type than float32 a float32 copy runs, as `brecq.quantize` takes it.

    Args:
        data: a `Dataset`, or whatever `brecq.quantize` takes, read batch by batch: it may be larger than memory. With
            a metric also what detectors are given: a list or `DataLoader` of pairs (list of pictures [C, H, W] of any
            sizes, list of targets).
        metric: of a task, such as `brecq.metrics.Detection(decode=...)`; its name; anything with `update(outputs,
            targets)` and `compute()`, or a class that makes it; or a function of a batch's outputs and targets that
            returns a number, the numbers of the N samples [N], or either by name: it is averaged over samples. It is
            copied, once a network.
        batch_size: samples at a time; `None`: 64, fewer where a sample holds more numbers than a picture of 256×256.
        device: where both networks run, and are moved back from; `auto` is the CUDA device where there is one.
        output: name, or place in a tuple, of the output that holds class scores, where that is none of these.
        class_axis: the axis of classes, where the scores have another layout.

    Raises:
        ConfigError: the batch size is out of range; `metric` is none of these.
        DataError: labels that are out of range or do not go with the output, NaN in the output, no tensor in it, no
            such `output` or `class_axis`.
    """
    checked("batch_size", batch_size, int | None, BATCH_SIZE)
    tally = _Tally(None if output is None else str(output), class_axis)
    judge = None if metric is None else Judge(metric)
    start = time.perf_counter()
    model, reference = in_float32(model)[0], None if reference is None else in_float32(reference)[0]
    models = [model] if reference is None else [model, reference]
    if device == "auto":
        device = next((str(each.only_on) for each in models if hasattr(each, "only_on")), device)
    device = check_device(device)
    with on_device(device, *models), torch.inference_mode(), evaluating(*models):
        for few in _batches(data, model, batch_size, judge is not None):
            where = f"samples {tally.samples} to {tally.samples + len(few) - 1}"
            with running(where, partial(_what_to_do, model, few)):
                expected = None if reference is None else _call(reference, few, device)
                found = _call(model, few, device)
            if judge is None:
                assert isinstance(few, Dataset)
                tally.add(found, few, expected)
            else:
                tally.add_judged(found, expected, len(few))
                found, expected = pytree.tree_map_only(Tensor, Tensor.cpu, (found, expected))
                with _naming(few):
                    judge.add(found, expected, few.answers, len(few))
    result = tally.result()
    if judge is not None:
        result = dataclasses.replace(result, **vars(judge.verdict(reference is not None)))
        result.agreement = None if result.flips is None else 100 - result.flips
    elif result.agreement is not None:
        result.flips = 100 - result.agreement
    result.seconds = time.perf_counter() - start
    return result


@dataclass(frozen=True)
class _Pictures:
    """A list of pictures [C, H, W] of any sizes, a detector's one argument; `answers`: a target for each."""

    pictures: list[Tensor]
    answers: Any

    def __len__(self) -> int:
        return len(self.pictures)


def _as_pictures(element: Any) -> _Pictures:
    pictures = pictures_of(element)
    if pictures is None:
        raise DataError(f"an element of the data is {type(element).__name__}, no list of pictures as the first one is")
    paired = isinstance(element[0], (list, tuple))
    if paired and (len(element) != 2 or len(element[1]) != len(pictures)):
        raise DataError(f"an element of the data has {len(pictures)} pictures; give a list of as many targets beside")
    return _Pictures(pictures, element[1] if paired else None)


def _what_to_do(model: nn.Module, few: Dataset | _Pictures) -> str:
    return FITTING if isinstance(few, _Pictures) else advice(model, few)


def _batches(data: Any, model: nn.Module, size: int | None, judged: bool) -> Iterator[Dataset | _Pictures]:
    """Batches as they are collected or, for a metric, those of a detector's data loader: lists of pictures alone or
    beside a list of targets."""
    if judged and isinstance(data, Iterable) and not isinstance(data, (Dataset, Tensor)):
        first, data = begun(data)
        if first is not None and listed_pictures(first, model) is not None:
            yield from map(_as_pictures, data)
            return
    for part in stream(data, model=model):
        for rows in even_slices(len(part), size or _batch_of(part)):
            yield part.subset(rows)


@contextmanager
def _naming(few: Dataset | _Pictures) -> Iterator[None]:
    """A `DataError` of these samples names the first and the last of them, where they have names."""
    try:
        yield
    except DataError as error:
        if isinstance(few, _Pictures) or not few.names:
            raise
        ends = dict.fromkeys((few.names[0], few.names[-1]))
        raise DataError(f"{' to '.join(ends)}: {error}") from error


def _call(model: nn.Module, few: Dataset | _Pictures, device: torch.device) -> Any:
    if isinstance(few, _Pictures):
        return model([picture.to(device, copy=True) for picture in few.pictures])
    return call(model, few.arguments([in_kind(value.to(device)) for value in few.inputs]))


class _Tally:
    """Sums over batches."""

    def __init__(self, output: str | None, axis: int | None) -> None:
        self.output, self.axis = output, axis
        self.samples = self.labelled = self.predictions = self.agreeing = 0
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
            self.labelled += len(data)
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
        if (bad := logits.no_class(labels, scores.shape[1])) is not None:
            sample = part.names[bad] if part.names else f"sample {self.samples + bad}"
            raise DataError(
                f"{sample} has label {int(labels[bad])}; labels must be 0 to "
                f"{scores.shape[1] - 1}, the network's classes: check that they count from 0 and belong to it"
            )
        return scores

    def _add_hits(self, whose: int, scores: Tensor, labels: Tensor) -> None:
        best = scores.topk(min(5, scores.shape[1]), dim=1).indices
        hits = best == labels.to(scores.device)[:, None]
        self.top1[whose] += int(hits[:, 0].sum())
        self.top5[whose] += int(hits.sum())

    def result(self) -> Evaluation:
        if not self.samples:
            raise DataError("there is nothing to evaluate on: the data holds no samples")
        result = Evaluation(self.samples, scored=self.scored)
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
