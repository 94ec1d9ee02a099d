"""Measure the sensitivity table, block by block (Li et al. 2021, section 3.4).

Every block runs on float inputs with one knob quantized (or two, for cross terms) and everything else in float, and
the error of its output is weighted by the Fisher information. Blocks never see each other's errors, so the cost is
linear in their number: per block one float forward, one per knob and bit-width, and one per pair of knobs.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from brecq.checkpoint.resume import RunState, alone_in_run_dir, fingerprint
from brecq.checkpoint.tensors import collect_tensors, stored_bytes
from brecq.checks import check_request, check_runs, check_weights
from brecq.config import FLOAT, QuantConfig
from brecq.data.collect import collect
from brecq.data.dataset import Dataset
from brecq.errors import ConfigError
from brecq.graph.blocks import Network, extract
from brecq.graph.capture import capture, example_batch
from brecq.graph.check import FloatNetwork
from brecq.graph.convert import convert
from brecq.graph.environment import learning
from brecq.graph.fold import get_tensor
from brecq.graph.partition import partition
from brecq.graph.placement import BrecqQuantizer
from brecq.graph.prepare import fake_quantize_node, prepare
from brecq.precision.layers import Anatomy, Layer, dissect
from brecq.precision.meter import BlockMeter, FloatStreams, packed_bytes, variant_of
from brecq.precision.options import Cross, Quality, SurveyConfig
from brecq.precision.table import SensitivityTable, Term
from brecq.progress import Progress
from brecq.quant.fake_quant import ActivationFakeQuantize, BaseFakeQuantize, Mode, WeightFakeQuantize, set_mode
from brecq.quant.grid import Grid
from brecq.reconstruct import fisher
from brecq.reconstruct.cache import ActivationCache
from brecq.reconstruct.memory import reuse_freed
from brecq.reconstruct.passes import measure_fisher, seed_of
from brecq.report import BlockReport

BITS = SurveyConfig().bits


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
    device: str | torch.device = "cpu",
) -> SensitivityTable:
    """Measure what each bit-width costs, for `brecq.search`.

    Args:
        model: any module that `torch.export` can capture and that returns logits; it is left unchanged.
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
        progress, device: as for `brecq.quantize`.

    Raises:
        ConfigError, DataError, CaptureError, PartitionError, CheckpointError: before any long work starts.
    """
    config = config or QuantConfig()
    check_request(model, config, QuantConfig, device)
    progress = progress or Progress()
    began = time.perf_counter()
    survey_config = SurveyConfig(
        tuple(bits), None if activation_bits is None else tuple(activation_bits), quality, cross, draws
    )
    _check(config, survey_config, resume and run_dir is None)
    data = collect(calibration, None, model=model)
    if data.origin:
        progress.note(f"inputs: {data.origin}")
    check_weights(model)
    check_runs(model, data)

    progress.stage("capturing the network")
    quantizer = BrecqQuantizer(config)
    captured = capture(model, example_batch(data.arguments()))
    reference = FloatNetwork(model, data.arguments())
    reference.check(captured, "the captured graph")
    prepared = prepare(captured, quantizer)
    reference.check(prepared, "the prepared graph")
    specs = partition(prepared, config.granularity, config.blocks)
    network = extract(prepared, specs)
    assert quantizer.placement is not None
    anatomy = dissect(prepared, specs, quantizer.placement, bits, activation_bits)
    if not any(knob.free for knob in anatomy.knobs):
        raise ConfigError(
            "every layer's bits are settled by first_last and rules: there is nothing to search; give more than one "
            "bit-width to choose from, or loosen them"
        )
    table = SensitivityTable(
        layers=_with_bytes(anatomy, _preview_bytes(network, anatomy, config)),
        knobs=anatomy.knobs,
        terms=(),
        other_bytes=_other_bytes(network, anatomy, config),
        config=config,
        quality=quality,
        cross=cross,
        samples=len(data),
        data_digest=data.digest(),
        block_forwards=0,
        seconds=0.0,
    )
    if check is not None:
        check(table)
    prepared.to(device)
    _disable(prepared)

    what = {
        "config": {k: v for k, v in config.to_dict().items() if k != "memory_budget"},
        "bits": list(bits), "activation_bits": activation_bits and list(activation_bits),
        "quality": quality, "cross": cross, "draws": draws,
    }  # fmt: skip
    state = None
    if run_dir is not None:
        names = [f"{block.name}: {', '.join(block.layers)}" for block in network.blocks]
        mark = fingerprint(what, prepared.state_dict(), data.digest(), names)
        state = RunState(run_dir, mark, resume=resume)
    cache = ActivationCache(torch.device(device), config.memory_budget, None if run_dir is None else Path(run_dir))
    survey = _Survey(network, anatomy, data, config, quality, cross, draws, cache, state, progress)
    try:
        with reuse_freed(cache.device):
            survey.run()
    finally:
        cache.close()
    progress.close()
    return replace(
        table,
        layers=_with_bytes(anatomy, survey.weight_bytes),
        terms=tuple(survey.terms),
        block_forwards=survey.forwards,
        seconds=time.perf_counter() - began,
        codes=survey.codes,
        run_state=state,
    )


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


def _with_bytes(anatomy: Anatomy, sizes: dict[str, dict[int, int]]) -> tuple[Layer, ...]:
    """Give the first layer of every searched weight its packed sizes."""
    owner = {knob.name: knob.layers[0] for knob in anatomy.knobs if knob.name in sizes}
    return tuple(
        replace(layer, weight_bytes=sizes[layer.weight]) if owner.get(layer.weight) == layer.name else layer
        for layer in anatomy.layers
    )


@torch.no_grad()
def _preview_bytes(network: Network, anatomy: Anatomy, config: QuantConfig) -> dict[str, dict[int, int]]:
    """Packed sizes of the searched weights before their ranges are searched: minimum to maximum takes their place."""
    weights = {
        network.graph.get_submodule(str(node.target)): get_tensor(network.graph, str(node.args[0].target))
        for node in network.graph.graph.nodes
        if isinstance(fake_quantize_node(network.graph, node), WeightFakeQuantize)
    }
    sizes: dict[str, dict[int, int]] = {}
    for knob in anatomy.knobs:
        original = anatomy.quantizers.get(knob.name)
        if not knob.free or not isinstance(original, WeightFakeQuantize):
            continue
        for bits in knob.bits:
            variant = variant_of(original, bits, config)
            assert isinstance(variant, WeightFakeQuantize)
            variant.initialize(weights[original], config.recipe.range_norm, 1)
            sizes.setdefault(knob.name, {})[bits] = packed_bytes(variant, weights[original])
    return sizes


@torch.no_grad()
def _other_bytes(network: Network, anatomy: Anatomy, config: QuantConfig) -> int:
    """Stored size of all but the searched weights, from a conversion with placeholders where values do not matter."""
    searched = {anatomy.quantizers[knob.name] for knob in anatomy.knobs if knob.free and knob.kind == "weight"}
    skip: set[str] = set()
    for node in network.graph.graph.nodes:
        module: Any = network.graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, ActivationFakeQuantize):
            module.grid = Grid(torch.tensor(1.0), torch.tensor(0.0), module.range)
        elif isinstance(module, WeightFakeQuantize) and not module.initialized:
            weight = get_tensor(network.graph, str(node.args[0].target))
            candidates = 1 if module in searched else config.recipe.range_candidates
            module.initialize(weight, config.recipe.range_norm, candidates)
            skip |= {str(node.args[0].target)} if module in searched else set()
    set_mode(network.graph, Mode.HARD)
    tensors = collect_tensors(convert(network.graph))
    for module in network.graph.modules():
        if isinstance(module, BaseFakeQuantize):
            module.restore({})
    set_mode(network.graph, Mode.FLOAT)
    return stored_bytes({name: value for name, value in tensors.items() if name not in skip})


class _Survey:
    """Measures all blocks in order; finished ones are taken over from an earlier run."""

    def __init__(
        self,
        network: Network,
        anatomy: Anatomy,
        data: Dataset,
        config: QuantConfig,
        quality: Quality,
        cross: Cross,
        draws: int,
        cache: ActivationCache,
        state: RunState | None,
        progress: Progress,
    ) -> None:
        self.network, self.anatomy, self.data, self.config = network, anatomy, data, config
        self.quality, self.cross, self.draws = quality, cross, draws
        self.cache, self.state, self.progress = cache, state, progress
        self.terms: list[Term] = []
        self.codes: dict[str, Tensor] = {}
        self.weight_bytes: dict[str, dict[int, int]] = {}
        self.forwards = 0

    def run(self) -> None:
        blocks = self.network.blocks
        finished = set(self.state.finished(0)) if self.state is not None else set()
        streams = None
        if len(finished) < len(blocks):
            self.progress.stage("measuring the Fisher information of every block")
            generator = torch.Generator().manual_seed(seed_of(self.config.seed, "sensitivity"))
            for draw in range(self.draws):
                fisher.sketch(self.network, self.data.inputs, self.cache, generator, draw, self.config.class_axis)
            self.forwards += self.draws * len(blocks)
            if self.quality == "reconstructed" and self.config.recipe.loss == "fisher":
                measure_fisher(self.network, self.data.inputs, self.data.labels, self.config, self.cache)
                self.forwards += len(blocks)
            streams = FloatStreams(self.network, self.data.inputs, self.cache, Mode.FLOAT)
        learned = self.quality == "reconstructed"
        steps = self.config.recipe.steps if learned else 0
        self.progress.start([block.name for block in blocks], steps)
        seen: set[str] = set()
        for index, block in enumerate(blocks):
            self.progress.block(index, block.name)
            if streams is not None:
                streams.advance("float", block)
            if index in finished:
                assert self.state is not None
                saved = self.state.load_block(0, index)
                terms, codes, sizes = saved.report["terms"], dict(saved.state), saved.report["weight_bytes"]
                report = BlockReport(block.name, block.layers, steps, *_span(terms), 0.0, "sensitivity", True)
            else:
                assert streams is not None
                began = time.perf_counter()
                meter = BlockMeter(block, self.anatomy, streams, self.config, self.draws, seen)
                if learned:
                    meter.learn(seed_of(self.config.seed, "sensitivity", index), self.progress.step)
                terms = [self._term(block.name, meter, bits) for bits in self._settings(meter)]
                codes, sizes = meter.codes(), meter.weight_bytes()
                meter.close()
                self.forwards += meter.forwards
                seconds = time.perf_counter() - began
                report = BlockReport(block.name, block.layers, steps, *_span(terms), seconds, "sensitivity")
                if self.state is not None:
                    self.state.save_block(0, index, block.name, codes, {"terms": terms, "weight_bytes": sizes})
            if streams is not None:
                streams.release(index)
            seen.update(sizes)
            self.terms += [Term(**term) for term in terms]
            self.codes.update(codes)
            for knob, by_bits in sizes.items():
                self.weight_bytes[knob] = {int(bits): size for bits, size in by_bits.items()}
            self.progress.block_done(report)
        self.forwards += 0 if streams is None else streams.forwards

    def _settings(self, meter: BlockMeter) -> list[dict[str, int]]:
        """Knobs to quantize together: each alone at each of its bits, then the pairs."""
        knobs = meter.knobs
        settings = [{knob.name: bits} for knob in knobs for bits in knob.bits]
        if self.cross == "none":
            return settings
        for first, second in itertools.combinations(knobs, 2):
            choices = [knob.bits if self.cross == "all" else knob.bits[:1] for knob in (first, second)]
            settings += [{first.name: a, second.name: b} for a, b in itertools.product(*choices)]
        return settings

    def _term(self, block: str, meter: BlockMeter, bits: dict[str, int]) -> dict[str, Any]:
        return {"block": block, "bits": bits, "losses": meter.losses(bits)}


def _span(terms: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """The largest and the smallest relative error of a single knob."""
    errors = [term["losses"]["relative"] for term in terms if len(term["bits"]) == 1]
    return max(errors, default=0.0), min(errors, default=0.0)
