"""`verify`: does an exported file compute what was measured? In its runtime, beside the simulator and the network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from brecq.converted.plan import float_operators
from brecq.data.dataset import Dataset
from brecq.deploy.compare import CodesCompared, CodesTally, Comparison, Tally
from brecq.deploy.complete import Completed
from brecq.deploy.formats import Format
from brecq.deploy.runtime import Kernels, Runner, open_file
from brecq.deploy.simulate import IntegerModel, simulate
from brecq.errors import ConfigError, DataError, ExportError
from brecq.logits import named_outputs
from brecq.settings import BATCH_SIZE, checked

if TYPE_CHECKING:
    from brecq.result import QuantResult


@dataclass(frozen=True)
class Verification:
    """What `verify` found. Differences are in output steps: 1/255 of the range of the network's output.

    Attributes:
        runtime: its name. samples: inputs compared.
        simulator: the file against the integer simulator. quantized: the file against the fake-quantized network.
        completion: the completed program against the fake-quantized network, both in PyTorch: what quantizing the
            tensors that integer kernels need quantized costs.
        kernels: of the layers, where the runtime tells.
        tensors: with `bisect`, the codes of every quantized tensor, in order of execution.
        notes: what cannot be exact, and why.
        exact: True if nothing excuses a difference from the simulator: the runtime computes as it does, on integers.
    """

    runtime: str
    samples: int
    simulator: Comparison
    quantized: Comparison
    completion: Comparison
    kernels: Kernels | None
    tensors: tuple[CodesCompared, ...]
    notes: tuple[str, ...]
    exact: bool

    @property
    def as_expected(self) -> bool:
        """False if the file had to equal the simulator and does not."""
        return not self.exact or (self.simulator.identical == 100 and self.first_difference is None)

    @property
    def first_difference(self) -> CodesCompared | None:
        """The first tensor whose codes differ; `None` without one, or without `bisect`."""
        return next((tensor for tensor in self.tensors if tensor.differing), None)


def verify(
    result: QuantResult,
    path: Path | str,
    data: Dataset | Iterable[Dataset],
    *,
    format: str | None = None,
    bisect: bool = False,
    batch_size: int = 16,
) -> Verification:
    """Compare an exported file, run in its runtime, with the integer simulator and the fake-quantized network.

    Args:
        data: inputs to compare on; labels are ignored.
        format: of the file, where its name does not tell.
        bisect: also compare the codes of every quantized tensor on the way.

    Raises:
        ConfigError: the format is unknown, cannot be run here, or shows no inner tensors to bisect.
        ExportError: the file is missing or does not load. DataError: the data does not fit the network.
    """
    checked("batch_size", batch_size, int, BATCH_SIZE)
    runner, kind = open_file(path, format)
    if bisect and not hasattr(runner, "codes"):
        raise ConfigError(f"{runner.name} shows no tensors inside a {kind.name} file; leave out bisect")
    simulator = simulate(result)
    run = _Run(runner, simulator, result, bisect)
    for part in (data,) if isinstance(data, Dataset) else data:
        for inputs, _ in part.batches(batch_size):
            run.add(inputs)
    if not run.samples:
        raise DataError("there is nothing to verify on: the data holds no samples")
    floats = float_operators(simulator.completed.graph)
    return Verification(
        runner.name,
        run.samples,
        run.simulator_tally.result(),
        run.quantized_tally.result(),
        run.completion_tally.result(),
        runner.kernels(),
        tuple(run.codes.tensors.values()),
        _notes(kind, simulator.completed, floats),
        exact=kind.exact and not floats,
    )


class _Run:
    """The three networks side by side."""

    def __init__(self, runner: Runner, simulator: IntegerModel, result: QuantResult, bisect: bool) -> None:
        self.runner, self.simulator, self.converted, self.bisect = runner, simulator, result.converted, bisect
        self.class_axis = result.config.class_axis
        self.codes = CodesTally()
        self.samples = 0
        self.steps: list[float] = []

    @torch.no_grad()
    def add(self, inputs: tuple[Tensor, ...]) -> None:
        arrays = [value.numpy() for value in inputs]
        found = [torch.from_numpy(output) for output in self.runner(*arrays)]
        expected = _outputs(self.simulator(*inputs))
        named = named_outputs(self.converted(*inputs))
        quantized = list(named.values())
        shapes = [[list(output.shape) for output in outputs] for outputs in (found, expected)]
        if shapes[0] != shapes[1]:
            raise ExportError(f"the file's outputs have shapes {shapes[0]}, the result's {shapes[1]}; export it again")
        if not self.steps:
            tallies = [Tally(list(named), self.class_axis) for _ in range(3)]
            self.simulator_tally, self.quantized_tally, self.completion_tally = tallies
            self.steps = [max(float(value.max() - value.min()) / 255, 1e-12) for value in quantized]
        self.simulator_tally.add(found, expected, self.steps)
        self.quantized_tally.add(found, quantized, self.steps)
        self.completion_tally.add(_outputs(self.simulator.graph(*inputs)), quantized, self.steps)
        if self.bisect:
            theirs = self.runner.codes(*arrays)  # type: ignore[attr-defined]
            for name, codes in self.simulator.codes(*inputs).items():
                if name not in theirs:
                    raise ExportError(f"the file has no tensor {name!r}; it is another result's, or was changed")
                self.codes.add(name, torch.from_numpy(theirs[name]), codes)
        self.samples += len(inputs[0])


def _outputs(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _notes(kind: Format, completed: Completed, floats: set[str]) -> tuple[str, ...]:
    found = []
    if not kind.exact:
        found.append(f"the simulator computes as ONNX Runtime does: {kind.differs}")
    if floats:
        found.append(
            f"computed in float, where a library's last bit may tip a code: {', '.join(sorted(floats))}; everything "
            "else is integer arithmetic"
        )
    if completed.added:
        found.append(
            f"the fake-quantized network leaves {len(completed.added)} tensors in float that integer kernels need "
            "quantized (see completion)"
        )
    found.append(
        "the fake-quantized network adds up in float32 and multiplies by 1/scale: a value on the border between two "
        "codes goes either way, and takes what follows with it"
    )
    return tuple(found)
