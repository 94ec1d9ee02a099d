"""Exported files in their runtimes: what `verify` and `benchmark` need of a runtime, and which one takes a file."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from brecq.data.dataset import Dataset
from brecq.deploy.formats import Format, find, needs, of_file
from brecq.errors import ConfigError, DataError, ExportError


class Runner(Protocol):
    """A file loaded into its runtime. Call it with the network's inputs in order; it returns its outputs in order.

    `digest` is that of the result that the file was exported from (`QuantResult.digest`), `None` where it names none.
    An attribute `batch` is of files that take a fixed number of samples; a call takes any, and runs several.
    An attribute `timed`, false, is of runners that stand for another machine, whose time says nothing.
    """

    name: str
    digest: str | None

    def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]: ...

    def kernels(self) -> Kernels | None:
        """How layers are computed; `None` where the runtime does not tell."""


@dataclass(frozen=True)
class Kernels:
    """Convolutions and linear layers by the kernels that a runtime chose for them.

    `integer` and `floating` count layers; `operators` counts every operator of the graph by its name. `floats`
    names the layers with float kernels, where the runtime keeps names.
    """

    integer: int
    floating: int
    operators: dict[str, int]
    floats: tuple[str, ...] = ()


def open_file(path: Path | str, format: str | None = None, threads: int = 1) -> tuple[Runner, Format]:
    """Load an exported file into its runtime.

    Args:
        format: of the file; by default the one that its name's ending belongs to.

    Raises:
        ConfigError: the format is unknown, or has no runtime that runs here.
        ExportError: the file is missing or cannot be loaded, or the runtime is not installed.
    """
    path = Path(path)
    chosen = of_file(path) if format is None else find(format)
    if not os.path.exists(path):
        raise ExportError(f"{str(path)!r} does not exist; write it with brecq export")
    if not chosen.runner:
        raise ConfigError(f"files of the format {chosen.name} cannot be run here; export to another one to verify it")
    with needs(chosen.extra, f"running {chosen.name} files"):
        module: Any = importlib.import_module(chosen.runner)
    runner: Runner = module.load(path, threads)
    return runner, chosen


def traceable(runner: Runner, inputs: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Inputs in the batches that a file runs in, the last one filled up with its last sample.

    Codes of several runs cannot be put together: samples lie along any dimension inside a network, or in none alone
    (attention has tokens first, and its heads beside the samples).
    """
    size = getattr(runner, "batch", len(inputs[0]))
    for start in range(0, len(inputs[0]), size):
        part = [value[start : start + size] for value in inputs]
        yield tuple(torch.cat([each, *[each[-1:]] * (size - len(each))]) for each in part)


def run_in_batches(
    run: Callable[[list[np.ndarray]], list[np.ndarray]], inputs: Sequence[np.ndarray], batch: int
) -> list[np.ndarray]:
    """The outputs of any number of samples, by a file that takes `batch` of them; the last batch is filled up with its
    last sample.

    Raises:
        ConfigError: several runs are needed, and an output has no samples in front to be put together by.
    """
    count = len(inputs[0])
    if count == batch:
        return run(list(inputs))
    outputs: list[list[np.ndarray]] = []
    for start in range(0, count, batch):
        rows = np.arange(start, start + batch).clip(max=count - 1)
        found = run([value[rows] for value in inputs])
        for number, value in enumerate(found):
            if not value.ndim or len(value) != batch:
                raise ConfigError(
                    f"output {number} of the file has shape {list(value.shape)}, without its {batch} samples in "
                    f"front, so that several runs cannot be put together: give {batch} samples at a time, got {count}"
                )
        outputs.append([value[: count - start] for value in found])
    return [np.concatenate(each) for each in zip(*outputs, strict=True)]


def batches(part: Dataset, size: int, exactly: int | None) -> Iterator[tuple[Tensor, ...]]:
    """Inputs in batches of at most `size` samples, or in batches of `exactly` so many, without the rest."""
    if exactly is None:
        yield from (inputs for inputs, _ in part.batches(size))
        return
    for start in range(0, len(part) - exactly + 1, exactly):
        yield part.subset(slice(start, start + exactly)).inputs


def check_any(found: object, exactly: int | None) -> None:
    """Raise `DataError` where the data gave no `batches`, and so nothing was `found`."""
    if not found:
        few = "" if exactly is None else f", or no batch with the {exactly} that the file takes together"
        raise DataError(f"there is nothing to run the file on: the data holds no samples{few}; give more")
