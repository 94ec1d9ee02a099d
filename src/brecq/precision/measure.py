"""Measure the sensitivity table, block by block (Li et al. 2021, section 3.4).

Every block runs on float inputs with one knob quantized (or two, for cross terms) and everything else in float, and
the error of its output is weighted by the Fisher information. Blocks never see each other's errors, so the cost is
linear in their number: per block one float forward, one per knob and bit-width, and one per pair of knobs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from brecq import ranks
from brecq.capture.export import capture, example_batch
from brecq.checkpoint.resume import RunState, agree, alone_in_run_dir, fingerprint
from brecq.checks import check_request, check_runs, check_weights
from brecq.config import FLOAT, QuantConfig
from brecq.data.collect import collect
from brecq.data.dataset import Dataset
from brecq.data.extremes import unlike
from brecq.devices import move
from brecq.errors import ConfigError
from brecq.graph.environment import learning
from brecq.notice import warn
from brecq.partition.blocks import Network, extract
from brecq.partition.check import FloatNetwork
from brecq.partition.cut import partition
from brecq.placement.prepare import prepare
from brecq.placement.quantizer import BrecqQuantizer
from brecq.precision.layers import Anatomy, dissect
from brecq.precision.options import Cross, Quality, SurveyConfig
from brecq.precision.sizes import other_bytes, preview_bytes, with_bytes
from brecq.precision.survey import Survey
from brecq.precision.table import SensitivityTable
from brecq.progress import Progress
from brecq.quant.fake_quant import BaseFakeQuantize
from brecq.ranks import together
from brecq.reconstruct.cache import ActivationCache
from brecq.reconstruct.fisher import check_labels
from brecq.reconstruct.need import left_for_caches
from brecq.reconstruct.run import Run

BITS = SurveyConfig().bits


@together
@alone_in_run_dir
@learning()
def measure_sensitivity(
    model: nn.Module,
    calibration: Iterable[Any] | Tensor | Dataset,
    config: QuantConfig | None = None,
    *,
    bits: Sequence[int] = BITS,
    activation_bits: Sequence[int] | None = None,
    quality: Quality = "fast",
    cross: Cross = "lowest",
    draws: int = 1,
    check: Callable[[SensitivityTable], None] | None = None,
    run_dir: Path | str | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    device: str | torch.device = "auto",
) -> SensitivityTable:
    """Measure what each bit-width costs, for `brecq.search`.

    Args:
        model: any module that `torch.export` can capture; it is left unchanged. Of one that returns no class scores
            (`QuantConfig.outputs`) each output's squared error counts by the power of that output.
        calibration: inputs like those the network will see, as for `brecq.quantize`.
        config: placement, schemes, granularity, first and last layer, rules (what they settle is not searched),
            activation bits, seed; the recipe for `quality="reconstructed"`.
        bits: that weights choose from, 2 to 8 each.
        activation_bits: that activations choose from; `None` keeps those of `config`.
        quality: `fast` rounds weights to nearest; `reconstructed` learns each block at every bit-width below 8, with
            `config.recipe`. Its codes are kept and `brecq.quantize` can start from them.
        cross: pairs of a block's knobs to measure: `none`, both at their `lowest` bits (the paper), or `all`.
        draws: random vectors per sample that the Fisher information is estimated with.
        check: called before anything is measured, with the table that has no terms yet: may raise what its layers
            and sizes already show, such as a budget that cannot be met.
        run_dir: folder for the state of the run; with `resume`, continue there after the last finished block.
        progress: as for `brecq.quantize`, as are several processes. device: where to compute.

    Raises:
        ConfigError, DataError, CaptureError, PartitionError, CheckpointError: before any long work starts.
    """
    config, progress, began = config or QuantConfig(), progress or Progress(), time.perf_counter()
    device = check_request(model, config, QuantConfig, device)
    wanted = SurveyConfig(
        tuple(bits), None if activation_bits is None else tuple(activation_bits), quality, cross, draws
    )
    _check(config, wanted, resume and run_dir is None)
    data = collect(calibration, None, model=model)
    if quality == "reconstructed":
        check_labels(config, data.labels)
    share = ranks.current().share(len(data))
    network, anatomy = _dissect(model, data, config, wanted, progress)
    table = _without_terms(network, anatomy, data, config, wanted)
    if check is not None:
        check(table)
    move(network.graph, device)
    _disable(network.graph)
    state = _run_state(run_dir, network, data, table, wanted, resume)
    cache = ActivationCache(device, left_for_caches(network, config, device), run_dir, exact=True)
    mine = data.subset(share.rows) if ranks.current().size > 1 else data
    run = Run(network, mine.inputs, config, cache, mine.labels, state, progress, part=share)
    survey = Survey(run, anatomy, wanted)
    with survey.run.working():
        survey.measure()
    progress.close()
    return replace(
        table, layers=with_bytes(anatomy, survey.weight_bytes), terms=tuple(survey.terms),
        block_forwards=survey.forwards, seconds=time.perf_counter() - began, codes=survey.codes, run_state=state,
    )  # fmt: skip


def _dissect(
    model: nn.Module, data: Dataset, config: QuantConfig, wanted: SurveyConfig, progress: Progress
) -> tuple[Network, Anatomy]:
    if data.origin:
        progress.note(f"inputs: {data.origin}")
    check_weights(model)
    check_runs(model, data)
    doubt = unlike(data.arguments(), data)
    if doubt is not None:
        warn(doubt)
    progress.stage("capturing the network")
    quantizer = BrecqQuantizer(config)
    captured = capture(model, example_batch(data.arguments()))
    reference = FloatNetwork(model, data.arguments())
    reference.check(captured, "the captured graph")
    prepared = prepare(captured, quantizer)
    reference.check(prepared, "the prepared graph")
    specs = partition(prepared, config.granularity, config.blocks)
    assert quantizer.placement is not None
    anatomy = dissect(prepared, specs, quantizer.placement, wanted.bits, wanted.activation_bits)
    if not any(knob.free for knob in anatomy.knobs):
        raise ConfigError(
            "every layer's bits are settled by first_last and rules: there is nothing to search; give more than one "
            "bit-width to choose from, or loosen them"
        )
    return extract(prepared, specs), anatomy


def _without_terms(
    network: Network, anatomy: Anatomy, data: Dataset, config: QuantConfig, wanted: SurveyConfig
) -> SensitivityTable:
    return SensitivityTable(
        layers=with_bytes(anatomy, preview_bytes(network, anatomy, config)),
        knobs=anatomy.knobs,
        terms=(),
        other_bytes=other_bytes(network, anatomy, config),
        config=config,
        quality=wanted.quality,
        cross=wanted.cross,
        samples=len(data),
        data_digest=data.digest(),
        block_forwards=0,
        seconds=0.0,
    )


def _run_state(
    folder: Path | str | None,
    network: Network,
    data: Dataset,
    table: SensitivityTable,
    wanted: SurveyConfig,
    resume: bool,
) -> RunState | None:
    if folder is None and ranks.current().size == 1:
        return None
    what = {
        "config": {k: v for k, v in table.config.to_dict().items() if k != "memory_budget"},
        **{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(wanted).items()},
    }
    names = [f"{block.name}: {', '.join(block.layers)}" for block in network.blocks]
    found = fingerprint(what, network.graph.state_dict(), data.digest(), names)
    agree(found)
    return None if folder is None else RunState(folder, found, resume=resume)


def _check(config: QuantConfig, survey: SurveyConfig, no_run_dir: bool) -> None:
    if no_run_dir:
        raise ConfigError("resume=True needs run_dir: the folder of the run to continue")
    if config.weights == FLOAT:
        raise ConfigError("weights is 32 bits, floating point: there is nothing to search; leave it at its default")
    if config.activations == FLOAT and survey.activation_bits is not None:
        raise ConfigError(
            f"activations is 32 bits, but activation_bits is {list(survey.activation_bits)}; drop one of them"
        )


def _disable(prepared: nn.Module) -> None:
    """Only the variants that a `BlockMeter` puts in their places quantize."""
    for module in prepared.modules():
        if isinstance(module, BaseFakeQuantize):
            module.enabled = False
