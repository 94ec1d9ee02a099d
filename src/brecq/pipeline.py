"""`quantize`: from a trained network and unlabeled inputs to a quantized network. The pipeline, top to bottom."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchao.quantization.pt2e.quantizer import Quantizer

from brecq import ranks
from brecq.checkpoint.resume import alone_in_run_dir
from brecq.checks import check_request
from brecq.config import QuantConfig
from brecq.data.dataset import Dataset
from brecq.errors import ConfigError, ExportError
from brecq.forward import tensors
from brecq.graph.environment import learning
from brecq.precision.allocation import BitAllocation
from brecq.progress import Progress
from brecq.ranks import together
from brecq.reconstruct.cache import ActivationCache
from brecq.reconstruct.need import left_for_caches
from brecq.reconstruct.run import Run
from brecq.rehearsal import refusal
from brecq.result import QuantResult
from brecq.steps.carry_out import carry_out
from brecq.steps.parts import quantize_parts
from brecq.steps.plan import check_something, make_plan, run_state, with_outliers_raised
from brecq.steps.request import Request, settled
from brecq.steps.subject import Subject, subject_of


@together
@alone_in_run_dir
@learning()
def quantize(
    model: nn.Module,
    calibration: Iterable[Any] | Tensor | Dataset,
    config: QuantConfig | None = None,
    *,
    quantizer: Quantizer | None = None,
    allocation: BitAllocation | None = None,
    learned: Mapping[str, Tensor] | None = None,
    submodule: str | None = None,
    submodules: Sequence[str] | None = None,
    run_dir: Path | str | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    device: str | torch.device = "auto",
) -> QuantResult:
    """Quantize a trained network by block reconstruction.

    In an initialized `torch.distributed` group all processes call it, with the same arguments (`device` aside), and
    share the work; all return the same result. Inside `brecq.ranks.alone()` a process works by itself.

    Args:
        model: any module that `torch.export` can capture; it is left unchanged. Of a network in another floating-point
            type than float32 a float32 copy is quantized, and the report says so.
        calibration: inputs like those the network will see, unlabeled: a tensor [N, ...], an iterable of batches
            (tensors, tuples of the model's positional inputs, dictionaries by the names of its parameters), a
            `DataLoader`, or a `Dataset`; see `brecq.data.collect`.
        config: bits, placement, granularity, recipe, seed; 4-bit weights and 8-bit activations by default.
        quantizer: a PT2E quantizer that decides what is quantized in place of `config`'s bits and placement.
        allocation: bits per layer from `brecq.search`; they replace those of `config`, its rules excepted.
        learned: codes of weights to start learning from (`SensitivityTable.codes`), where they fit.
        submodule: quantize only the submodule of this name, with the inputs that it receives, and put it back.
        submodules: quantize these, each with the inputs that it receives when those called before it are quantized,
            and put them back: a `CompositeResult`. They may take and return tensors in lists and dictionaries. Of
            detectors the calibration may be an iterable of lists of pictures [C, H, W] of any sizes.
        run_dir: folder for the state of the run; with `resume`, continue there after the last finished block.
        progress: receives what the run is doing.
        device: where blocks run; `auto` is the CUDA device where there is one.

    Returns:
        The converted network, on the device that the model is on, and a report.

    Raises:
        ConfigError, DataError, CaptureError, PartitionError, CheckpointError: before any long work starts.
    """
    began = time.perf_counter()
    config, progress = config or QuantConfig(), progress or Progress()
    device = check_request(model, config, QuantConfig, device)
    if resume and run_dir is None:
        raise ConfigError("resume=True needs run_dir: the folder of the run to continue")
    config = settled(config, quantizer, allocation)
    request = Request(config, quantizer, allocation, learned or {}, run_dir, resume, progress, device)
    if submodules is not None:
        if submodule is not None or allocation is not None or learned:
            raise ConfigError("submodules goes with neither submodule nor the bits of a search; give one of them")
        result: QuantResult = quantize_parts(model, calibration, submodules, request)
    else:
        subject = subject_of(model, calibration, submodule, progress, config)
        share = ranks.current().share(len(subject.data))
        request = with_outliers_raised(subject, request)
        if not resume:
            _rehearse(subject, request)
        plan = make_plan(subject, request)
        check_something([plan])
        room = left_for_caches(plan.network, request.config, device, subject.copied)
        state = run_state([plan], subject.data, request)
        cache = ActivationCache(device, room, run_dir)
        if device.type == "cuda":
            cache.notes.append(f"computed on {torch.cuda.get_device_name(device)}")
            progress.note(cache.notes[0])
        inputs = tuple(value[share.rows] for value in tensors(subject.arguments))
        labels = None if subject.data.labels is None else subject.data.labels[share.rows]
        run = Run(plan.network, inputs, request.config, cache, labels, state, progress, part=share)
        result = carry_out(run, subject, plan)
    result.report.allocation = None if allocation is None else allocation.to_dict()
    result.report.seconds = time.perf_counter() - began
    progress.close()
    return result


def _rehearse(subject: Subject, request: Request) -> None:
    """Refuse what a target's format will not take before anything is learned for it."""
    config = request.config
    if config.target is None or config.method != "reconstruct":
        return
    request.progress.stage(f"rehearsing the export for {config.target}")
    refused = ranks.current().first(lambda: refusal(quantize, subject.model, subject.arguments, config))
    if refused:
        raise ExportError(refused)
