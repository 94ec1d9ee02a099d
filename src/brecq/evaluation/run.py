"""How good a network is: accuracy against labels, fidelity against a reference network."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from brecq.checks import FITTING, advice, check_device, running
from brecq.data.calls import begun, listed_pictures, pictures_of
from brecq.data.collect import stream
from brecq.data.dataset import Dataset
from brecq.data.pictures import Pictures
from brecq.devices import on_device
from brecq.errors import DataError
from brecq.evaluation.outcome import Evaluation
from brecq.evaluation.tally import Tally
from brecq.float32 import in_float32, in_kind
from brecq.forward import BATCH, call, evaluating, even_slices
from brecq.metrics.base import Metric
from brecq.metrics.judge import Judge, check_counted
from brecq.settings import BATCH_SIZE, checked

_ORDINARY = 3 * 256 * 256
"""Numbers in a sample of which a whole batch is run at a time."""


def _batch_of(data: Dataset) -> int:
    numbers = sum(value[0].numel() for value in data.inputs)
    return max(2, min(BATCH, BATCH * _ORDINARY // max(numbers, 1)))


def evaluate(
    model: nn.Module,
    data: Dataset | Pictures | Iterable[Any] | Tensor,
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
            Lists of pictures are given as they are; of pictures that brecq read at their own sizes one at a time, as
            detectors pad those of a list to the largest.
        device: where both networks run, and are moved back from; `auto` is the CUDA device where there is one.
        output: name, or place in a tuple, of the output that holds class scores, where that is none of these.
        class_axis: the axis of classes, where the scores have another layout.

    Raises:
        ConfigError: the batch size is out of range; `metric` is none of these.
        DataError: labels that are out of range or do not go with the output, NaN in the output, no tensor in it, no
            such `output` or `class_axis`; targets or labels none of which counts (NaN, -100, masks of 255, no boxes).
    """
    checked("batch_size", batch_size, int | None, BATCH_SIZE)
    tally = Tally(None if output is None else str(output), class_axis)
    judge = None if metric is None else Judge(metric)
    if isinstance(data, (Dataset, Pictures)):
        with _naming(data):
            check_counted(None if judge is None else judge.model, [data.answers])  # before it is run
    result = _run(model, data, tally, judge, reference, batch_size, device)
    (tally if judge is None else judge).check_counted()
    return result


def try_out(
    model: nn.Module,
    few: Dataset | Pictures,
    metric: Metric | Callable[..., Any] | str | None,
    reference: nn.Module | None,
    device: torch.device | str,
    output: str | None = None,
    class_axis: int | None = None,
) -> None:
    """Raise what `evaluate` would raise of a few samples. None of their targets need count: those of others may."""
    _run(model, few, Tally(output, class_axis), None if metric is None else Judge(metric), reference, None, device)


def _run(
    model: nn.Module,
    data: Dataset | Pictures | Iterable[Any] | Tensor,
    tally: Tally,
    judge: Judge | None,
    reference: nn.Module | None,
    batch_size: int | None,
    device: torch.device | str,
) -> Evaluation:
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
                if isinstance(few, Pictures):
                    raise DataError(
                        "pictures at their own sizes are for a detector, which a metric judges; give one (--task "
                        "detection, metric='detection')"
                    )
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


def _as_pictures(element: Any) -> Pictures:
    pictures = pictures_of(element)
    if pictures is None:
        raise DataError(f"an element of the data is {type(element).__name__}, no list of pictures as the first one is")
    paired = isinstance(element[0], (list, tuple))
    if paired and (len(element) != 2 or len(element[1]) != len(pictures)):
        raise DataError(f"an element of the data has {len(pictures)} pictures; give a list of as many targets beside")
    return Pictures(pictures, element[1] if paired else None)


def _what_to_do(model: nn.Module, few: Dataset | Pictures) -> str:
    return FITTING if isinstance(few, Pictures) else advice(model, few)


def _batches(data: Any, model: nn.Module, size: int | None, judged: bool) -> Iterator[Dataset | Pictures]:
    """Batches as they are collected or, for a metric, those of a detector's data loader: lists of pictures alone or
    beside a list of targets."""
    data = [data] if isinstance(data, Pictures) else data
    if isinstance(data, Iterable) and not isinstance(data, (Dataset, Tensor)):
        first, data = begun(data)
        if isinstance(first, Pictures):
            yield from (few for part in data for few in part.batches(size or 1))
            return
        if judged and first is not None and listed_pictures(first, model) is not None:
            yield from map(_as_pictures, data)
            return
    for part in stream(data, model=model):
        for rows in even_slices(len(part), size or _batch_of(part)):
            yield part.subset(rows)


@contextmanager
def _naming(few: Dataset | Pictures) -> Iterator[None]:
    """A `DataError` of these samples names the first and the last of them, where they have names."""
    try:
        yield
    except DataError as error:
        if not few.names:
            raise
        ends = dict.fromkeys((few.names[0], few.names[-1]))
        raise DataError(f"{' to '.join(ends)}: {error}") from error


def _call(model: nn.Module, few: Dataset | Pictures, device: torch.device) -> Any:
    if isinstance(few, Pictures):
        return model([picture.to(device, copy=True) for picture in few.pictures])
    return call(model, few.arguments([in_kind(value.to(device)) for value in few.inputs]))
