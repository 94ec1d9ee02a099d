"""`verify`: does an exported file compute what was measured? In its runtime, beside the simulator and the network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from brecq.converted.plan import float_operators
from brecq.data.collect import stream
from brecq.data.dataset import Dataset
from brecq.deploy.compare import CodesCompared, CodesTally, Comparison, Tally
from brecq.deploy.complete import Completed, as_converted
from brecq.deploy.formats import Format, some
from brecq.deploy.options import Tolerance
from brecq.deploy.runtime import Kernels, Runner, batches, check_any, open_file, traceable
from brecq.deploy.samples import together
from brecq.deploy.simulate import simulate
from brecq.deploy.simulate.choices import close_choices
from brecq.devices import on_cpu
from brecq.errors import ConfigError, ExportError
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
        tensors: the codes of every quantized tensor, in order of execution, each against what the simulator computes
            from the file's own codes before it; empty where they need not be looked at, or the runtime hides them.
        followed: the file against the simulator that goes on from the file's own codes; `None` where there are none.
        notes: what cannot be exact, and why.
        exact: True if nothing excuses a difference from the simulator: the runtime computes as it does, on integers.
        failures: what is wrong with the file; empty if it computes what was measured.
        tolerance: what was asked of a file that is not `exact`.
    """

    runtime: str
    samples: int
    simulator: Comparison
    quantized: Comparison
    completion: Comparison
    kernels: Kernels | None
    tensors: tuple[CodesCompared, ...]
    followed: Comparison | None
    notes: tuple[str, ...]
    exact: bool
    failures: tuple[str, ...] = ()
    tolerance: Tolerance = field(default_factory=Tolerance)

    @property
    def as_expected(self) -> bool:
        """True if the file is this result's and computes what the simulator computes, up to the tolerance."""
        return not self.failures

    @property
    def first_difference(self) -> CodesCompared | None:
        """The first tensor whose codes differ; `None` without one, or where codes were not compared."""
        return next((tensor for tensor in self.tensors if tensor.differing), None)


def verify(
    result: QuantResult,
    path: Path | str,
    data: Dataset | Iterable[Any],
    *,
    format: str | None = None,
    bisect: bool = False,
    batch_size: int = 16,
    tolerance: Tolerance | None = None,
) -> Verification:
    """Compare an exported file, run in its runtime, with the integer simulator and the fake-quantized network.

    First the file has to name this result (`QuantResult.digest`). Then, where nothing but integers is computed in a
    runtime that computes as the simulator does, every output has to be equal; elsewhere up to the `tolerance`.

    Args:
        data: inputs to compare on, as `brecq.quantize` takes them; labels are ignored.
        format: of the file, where its name does not tell.
        bisect: compare the codes of every quantized tensor on the way also where nothing differs.
        tolerance: for files that cannot be exact.

    Raises:
        ConfigError: the format is unknown, cannot be run here, or shows no inner tensors to bisect.
        ExportError: the file is missing or does not load. DataError: the data does not fit the network.
    """
    checked("batch_size", batch_size, int, BATCH_SIZE)
    runner, kind = open_file(path, format)
    if bisect and not hasattr(runner, "trace"):
        raise ConfigError(f"{runner.name} shows no tensors inside a file of the format {kind.name}; leave out bisect")
    simulator = simulate(result, kind.arithmetic) if kind.arithmetic else _Measured(result)
    floats = float_operators(simulator.completed.graph, simulator.on_codes, constants=simulator.joins_constants)
    loose = simulator.loose()
    exact, tolerance = kind.exact and not floats and not loose, tolerance or Tolerance()
    run = _Run(runner, simulator, result, always=bisect or not exact)
    exactly = together(runner, simulator.completed)
    for part in stream(data, model=result.converted):
        for inputs in batches(part, batch_size, exactly):
            run.add(inputs)
    check_any(run.samples, exactly)
    kernels = runner.kernels()
    found = Verification(
        runner.name,
        run.samples,
        run.simulator_tally.result(),
        run.quantized_tally.result(),
        run.completion_tally.result(),
        kernels,
        tuple(run.codes.tensors.values()),
        run.followed_tally.result() if run.followed_tally.values else None,
        (*_notes(kind, simulator.completed, floats, loose), *_float_kernels(kind, runner.name, kernels)),
        exact,
        tolerance=tolerance,
    )
    failures = [*_another_result(runner.digest, result.digest()), *_differences(found)]
    if failures:
        failures += [f"{each}: the runtime may have chosen others, behind which nothing is alike" for each in run.ties]
    notes = found.notes if runner.digest else (*found.notes, "the file does not name the result it was exported from")
    return replace(found, failures=tuple(failures), notes=notes)


def _another_result(theirs: str | None, ours: str) -> list[str]:
    if theirs is None or theirs == ours:
        return []
    return [f"the file was exported from another result: it names {theirs[:12]}, this one is {ours[:12]}"]


def _differences(found: Verification) -> list[str]:
    """What differs by more than it may, in order of execution."""
    allowed, followed = found.tolerance, found.followed
    failures = []
    for tensor in found.tensors:
        share = 100 * tensor.differing / tensor.count
        few = not found.exact and tensor.largest <= 1 and (share <= allowed.codes or tensor.differing <= 2)
        if tensor.differing and not few:
            failures.append(
                f"the file parts from the simulator at {tensor.tensor}: {tensor.differing} of {tensor.count} codes "
                f"({share:.3g} %) differ by up to {tensor.largest}"
            )
            break
    outputs = found.simulator
    if found.exact:
        if outputs.identical < 100 and not failures:
            failures.append(
                f"{100 - outputs.identical:.3g} % of the outputs differ, by up to {outputs.largest:.3g} steps"
            )
        return failures
    if followed is not None and not failures and (followed.largest > 1 or followed.mean > allowed.codes / 100):
        failures.append(f"behind the last quantizer the outputs differ by up to {followed.largest:.3g} steps")
    for name, value, limit in (("largest", outputs.largest, allowed.largest), ("mean", outputs.mean, allowed.mean)):
        if value > limit:
            failures.append(f"the {name} difference of outputs is {value:.3g} steps, {limit:g} are allowed")
    if outputs.agreement is not None and outputs.agreement < allowed.agreement:
        failures.append(f"the agreement is {outputs.agreement:.2f} %, at least {allowed.agreement:g} are asked for")
    return failures


class _Measured:
    """The program that was measured, in place of a simulator for files that say the same."""

    joins_constants = False

    def __init__(self, result: QuantResult) -> None:
        self.completed = as_converted(result)
        self.graph: Any = on_cpu(result.converted)

    def on_codes(self, node: Node) -> bool:
        return False

    def loose(self) -> set[str]:
        return set()

    def __call__(self, *inputs: Tensor) -> Any:
        return self.graph(*inputs)


class _Run:
    """The three networks side by side; `always`: look at codes also where outputs are equal."""

    def __init__(self, runner: Runner, simulator: Any, result: QuantResult, always: bool) -> None:
        self.runner, self.simulator, self.converted, self.always = runner, simulator, on_cpu(result.converted), always
        self.class_axis = result.config.class_axis
        self.codes = CodesTally()
        self.samples = 0
        self.steps: list[float] = []
        self.ties: list[str] = []  # of the first batch that differs

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
            tallies = [Tally(list(named), self.class_axis) for _ in range(4)]
            self.simulator_tally, self.quantized_tally, self.completion_tally, self.followed_tally = tallies
            self.steps = [_step(value) for value in quantized]
        self.simulator_tally.add(found, expected, self.steps)
        self.quantized_tally.add(found, quantized, self.steps)
        self.completion_tally.add(_outputs(self.simulator.graph(*inputs)), quantized, self.steps)
        if not self.ties and self.simulator_tally.result().identical < 100:
            self.ties = close_choices(self.simulator.completed.graph, inputs)
        if hasattr(self.runner, "trace") and (self.always or self.simulator_tally.result().identical < 100):
            for part in traceable(self.runner, inputs):
                self._follow(part, *self.runner.trace(*(value.numpy() for value in part)))
        self.samples += len(inputs[0])

    def _follow(self, inputs: tuple[Tensor, ...], outputs: list[Any], codes: dict[str, Any]) -> None:
        """Compare each tensor's codes with what the simulator makes of the file's codes before it."""
        theirs = {name: torch.from_numpy(value) for name, value in codes.items()}
        missing = [name for name in self.simulator.completed.quantizers() if name not in theirs]
        if missing:
            raise ExportError(f"the file has no tensor {missing[0]!r}; it is another result's, or was changed")
        expected, ours, borders = self.simulator.follow(inputs, theirs)
        for name, value in ours.items():
            self.codes.add(name, theirs[name], value, borders.get(name, 0.0))
        self.followed_tally.add([torch.from_numpy(each) for each in outputs], _outputs(expected), self.steps)


def _step(output: Tensor) -> float:
    """1/255 of the range of an output; a single number, or the same everywhere, ranges from 0."""
    span = float(output.max() - output.min()) or float(output.abs().max())
    return max(span / 255, 1e-12)


def _outputs(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _float_kernels(kind: Format, runtime: str, kernels: Kernels | None) -> list[str]:
    """Layers that a runtime computes in float among others on integers; nothing of one that stands for another."""
    if kernels is None or not kernels.integer or not kernels.floating or kind.name in ("tensorrt", "qualcomm"):
        return []
    names = f": {some(kernels.floats)}" if kernels.floats else ""
    return [f"{runtime} has a float kernel for {kernels.floating} of the layers, between two roundings{names}"]


def _notes(kind: Format, completed: Completed, floats: set[str], loose: set[str]) -> tuple[str, ...]:
    found = []
    if not kind.arithmetic:
        return (f"compared with the quantized program in PyTorch, not a simulator of integers: {kind.differs}",)
    if not kind.exact:
        found.append(f"the simulator computes as ONNX Runtime does: {kind.differs}")
    if floats:
        found.append(
            f"computed in float, where a library's last bit may tip a code: {', '.join(sorted(floats))}; everything "
            "else is integer arithmetic"
        )
    if loose:
        found.append(f"the runtime has two kernels of {', '.join(sorted(loose))}, whose codes may be a step apart")
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
