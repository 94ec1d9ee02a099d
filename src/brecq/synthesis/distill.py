"""`distill`: calibration inputs from the network alone, by matching what its batch norms remember, or only drawn."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from brecq import ranks
from brecq.checkpoint.resume import BlockState, RunState, agree, alone_in_run_dir, fingerprint
from brecq.checkpoint.walk import walk
from brecq.checks import check_request, check_weights
from brecq.data.preprocessing import Preprocessing
from brecq.errors import ConfigError
from brecq.forward import even_slices
from brecq.progress import Progress
from brecq.ranks import together
from brecq.reconstruct.memory import reuse_freed
from brecq.report import BlockReport
from brecq.settings import MOST, Setting, checked
from brecq.synthesis.config import DistillConfig
from brecq.synthesis.inputs import InputSpec, input_spec
from brecq.synthesis.match import LayerMatch, measure_match
from brecq.synthesis.optimize import optimize_batch
from brecq.synthesis.start import start_inputs
from brecq.synthesis.teacher import Teacher, prepare_teacher

MOST_NOISE = 256
"""So many samples of noise suffice to say how far off noise is."""


@dataclass(frozen=True)
class Distilled:
    """What `synthesize` made.

    Attributes:
        inputs: float32 [n, C, ...] on the CPU, as the network takes them. layers: per batch norm in order of the
            modules, how well the statistics are met, by Gaussian noise before and by the inputs after.
        config: as given. batches: per batch the loss before and after, and the time. seconds: of this run.
        run_state: the finished batches, kept until the inputs are saved.

    Of pictures that are only drawn (`steps=0`) there are no layers, batches and state.
    """

    inputs: Tensor
    layers: list[LayerMatch]
    config: DistillConfig
    batches: list[BlockReport]
    seconds: float
    run_state: RunState | None = field(default=None, repr=False)

    def forget_batches(self) -> None:
        """Remove the finished batches: the inputs are saved, or handed over."""
        if self.run_state is not None:
            self.run_state.clear()


def distill(
    model: nn.Module,
    n: int,
    config: DistillConfig | None = None,
    *,
    preprocessing: Preprocessing | None = None,
    shape: Sequence[int] | None = None,
    run_dir: Path | str | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    device: str | torch.device = "auto",
) -> Tensor:
    """Make `n` calibration inputs for a trained network without any data, from its batch norms unless `steps` is 0.

    Args:
        model: takes one floating-point input [N, C, ...]; it is left unchanged.
        n: at least 2.
        config: steps, batch size, variant, seed; the preset `fast` by default.
        preprocessing: how pictures become inputs: then the result stays between black and white, and each channel
            is held at the mean and deviation of prepared training data.
        shape: of one input without the batch, such as (3, 224, 224), where there is no preprocessing. By default what
            the model's timm metadata says.
        run_dir: folder for the state of the run; with `resume`, continue there after the last finished batch.
        progress: receives what the run is doing. device: where the network runs; `auto` is the CUDA
            device where there is one.

    The processes of an initialized `torch.distributed` group share the batches and all return all inputs.

    Returns:
        Inputs float32 [n, C, ...] on the CPU, ready for `quantize`.

    Raises:
        ConfigError: the network has no batch norm, or none with statistics of training data; it does not take such
            inputs; or the configuration asks for what it does not have. Before any long work starts.
        CheckpointError: the run in `run_dir` is another one, or cannot be written.
    """
    made = synthesize(
        model, n, config, preprocessing=preprocessing, shape=shape, run_dir=run_dir, resume=resume, progress=progress,
        device=device,
    )  # fmt: skip
    made.forget_batches()
    return made.inputs


@together
@alone_in_run_dir
def synthesize(
    model: nn.Module,
    n: int,
    config: DistillConfig | None = None,
    *,
    preprocessing: Preprocessing | None = None,
    shape: Sequence[int] | None = None,
    run_dir: Path | str | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    device: str | torch.device = "auto",
) -> Distilled:
    """`distill` with a report; arguments and errors are the same. Finished batches stay in `run_dir`."""
    config = config or DistillConfig.preset("fast")
    device = check_request(model, config, DistillConfig, device)
    check_weights(model)
    progress = progress or Progress()
    began = time.perf_counter()
    if checked("n", n, int, Setting("", high=MOST)) < 2:
        raise ConfigError(f"n is {n}; distill at least 2 inputs: it is their joint statistics that are matched")
    if resume and run_dir is None:
        raise ConfigError("resume=True needs run_dir: the folder of the run to continue")
    spec = input_spec(model, preprocessing, shape)
    if config.steps == 0:
        return Distilled(_draw(spec, n, config, progress), [], config, [], time.perf_counter() - began)
    teacher = prepare_teacher(model, spec, config, device)
    slices = list(even_slices(n, config.batch_size))
    state = None
    if run_dir is not None or ranks.current().size > 1:
        settings = {**config.to_dict(), "preprocessing": preprocessing and preprocessing.to_dict()}
        names = [f"{_name(rows)} of {spec.shape}" for rows in slices]
        found = fingerprint(settings, model.state_dict(), "none", names)
        agree(found)
        state = None if run_dir is None else RunState(run_dir, found, resume=resume)
    with reuse_freed(teacher.device):
        units = _Batches(teacher, slices, config, progress)
        progress.start(units.names, config.steps, loss="loss")
        batches = walk(units, 0, state, progress)
        progress.stage("measuring the statistics")
        layers = _report(teacher, units.inputs, config)
    progress.close()
    return Distilled(units.inputs, layers, config, batches, time.perf_counter() - began, state)


def _draw(spec: InputSpec, n: int, config: DistillConfig, progress: Progress) -> Tensor:
    """Dead leaves, batch for batch, as distillation would start from."""
    if not spec.is_picture:
        raise ConfigError(
            f"steps is 0, which only draws pictures, but nothing says how a picture becomes an input {spec.shape}; "
            "give preprocessing=brecq.data.Preprocessing(...)"
        )
    progress.stage("drawing pictures")
    inputs = torch.empty(n, *spec.shape)
    for index, rows in enumerate(even_slices(n, config.batch_size)):
        inputs[rows] = start_inputs(spec, rows.stop - rows.start, config, _generator(config, index))
    progress.close()
    return inputs


class _Batches:
    """The batches to distill; see `brecq.checkpoint.walk.Units`."""

    independent = True

    def __init__(self, teacher: Teacher, slices: list[slice], config: DistillConfig, progress: Progress) -> None:
        self.teacher, self.slices, self.config, self.progress = teacher, slices, config, progress
        self.names = [_name(rows) for rows in slices]
        self.inputs = torch.empty(slices[-1].stop, *teacher.spec.shape)

    def enter(self, index: int) -> None:
        """Batches do not depend on each other."""

    def work(self, index: int) -> BlockState:
        rows, began = self.slices[index], time.perf_counter()
        batch = optimize_batch(
            self.teacher,
            rows.stop - rows.start,
            self.config,
            _generator(self.config, index),
            lambda step, loss: self.progress.step(step, loss, None),
        )
        seconds = time.perf_counter() - began
        report = BlockReport(self.names[index], (), self.config.steps, batch.loss_before, batch.loss_after, seconds)
        return BlockState(report.name, {"inputs": batch.inputs}, dataclasses.asdict(report))

    def take(self, index: int, saved: BlockState, resumed: bool) -> BlockReport:
        self.inputs[self.slices[index]] = saved.state["inputs"]
        return BlockReport.from_dict(saved.report, resumed=resumed)


def _report(teacher: Teacher, inputs: Tensor, config: DistillConfig) -> list[LayerMatch]:
    noise = teacher.spec.noise(min(len(inputs), MOST_NOISE), torch.Generator().manual_seed(config.seed))
    before, after = (
        measure_match(teacher.model, teacher.norms, values, config.batch_size) for values in (noise, inputs)
    )
    return [LayerMatch(name, *b, *a) for name, b, a in zip(teacher.norms, before, after, strict=True)]


def _generator(config: DistillConfig, batch: int) -> torch.Generator:
    """Of all that is random in a batch; no two batches of small seeds share one."""
    return torch.Generator().manual_seed((config.seed * 1_000_003 + batch) % 2**64)


def _name(rows: slice) -> str:
    return f"inputs {rows.start + 1}-{rows.stop}"
