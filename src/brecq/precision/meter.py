"""Loss of one block's output when some of its knobs are quantized and everything else stays in float."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from brecq import ranks
from brecq.checkpoint.packing import pack
from brecq.checkpoint.tensors import PackedWeight, stored_bytes
from brecq.config import QuantConfig
from brecq.graph.fold import get_tensor
from brecq.partition.blocks import Block
from brecq.placement.prepare import fake_quantize_node
from brecq.placement.quantizer import activation_scheme, is_symmetric
from brecq.precision.layers import Anatomy, Knob, Quantizer
from brecq.quant.affine import IntRange
from brecq.quant.fake_quant import ActivationFakeQuantize, Mode, WeightFakeQuantize, set_mode
from brecq.reconstruct.cache import Slot
from brecq.reconstruct.initialize import initialize
from brecq.reconstruct.learnables import Learnables
from brecq.reconstruct.optimize import Reconstruction, StepHook
from brecq.reconstruct.site import Site
from brecq.reconstruct.streams import Streams

LEARNED_BELOW = 8
"""Weights of this many bits are rounded to nearest: there is nothing to gain."""


class BlockMeter:
    """Puts fake-quantizers of other bit-widths into the places of a block's own, and measures what they do.

    Args:
        block: whose own fake-quantizers are disabled.
        streams: with its float inputs, also as the quantized ones, its float outputs, and the vectors of
            `fisher.sketch` in the cache.
        seen: weight knobs that earlier blocks own: they act here too, but are learned and counted there.

    Attributes:
        knobs: free knobs that act in this block. variants: the fake-quantizer of each at each of its bits.
        forwards: passes over the calibration set so far.
    """

    def __init__(
        self,
        block: Block,
        anatomy: Anatomy,
        streams: Streams,
        config: QuantConfig,
        draws: int,
        seen: set[str],
    ) -> None:
        self.block, self.streams, self.config, self.draws = block, streams, config, draws
        self.forwards = 0
        names = {module: name for name, module in anatomy.quantizers.items()}
        self._places: dict[str, list[str]] = {}
        self._weights: dict[str, Tensor] = {}
        for node in block.module.graph.nodes:
            module = fake_quantize_node(block.module, node)
            name = names.get(module)
            if name is None:
                continue
            self._places.setdefault(name, []).append(str(node.target))
            if isinstance(module, WeightFakeQuantize):
                self._weights[name] = get_tensor(block.module, str(node.args[0].target))
        self.knobs: list[Knob] = [knob for knob in anatomy.knobs if knob.free and knob.name in self._places]
        self._own = [knob for knob in self.knobs if knob.kind == "weight" and knob.name not in seen]
        self._originals = {place: block.module.get_submodule(place) for ps in self._places.values() for place in ps}
        self.variants: dict[tuple[str, int], Quantizer] = {}
        for knob in self.knobs:
            for bits in knob.bits:
                variant = variant_of(anatomy.quantizers[knob.name], bits, config)
                self.variants[knob.name, bits] = variant
                self._initialize(knob, variant)

    def learn(self, seed: int, on_step: StepHook) -> None:
        """Learn the rounding of the block's own weights, all at the same bit-width, for each bit-width in turn."""
        for bits in sorted({bits for knob in self._own for bits in knob.bits if bits < LEARNED_BELOW}):
            mine = Learnables()
            for knob in self._own:
                variant = self.variants.get((knob.name, bits))
                if isinstance(variant, WeightFakeQuantize):
                    self._place(knob.name, variant)
                    mine.weights[knob.name] = (variant, self._weights[knob.name])
            site = Site(self.block, mine, self.streams, self.config.recipe)
            learner = Reconstruction(site, "weights", seed, autocast=self.config.autocast == "bf16")
            learner.run(self.config.recipe.steps, on_step)
            set_mode(self.block.module, Mode.FLOAT)

    @contextmanager
    def quantized(self, bits: Mapping[str, int]) -> Iterator[None]:
        """Inside, the block computes with these knobs quantized to these bits, and all others in float."""
        active = [self.variants[knob, width] for knob, width in bits.items()]
        for knob, variant in zip(bits, active, strict=True):
            self._place(knob, variant)
            variant.mode = Mode.HARD
        try:
            yield
        finally:
            for variant in active:
                variant.mode = Mode.FLOAT

    @torch.no_grad()
    def losses(self, bits: Mapping[str, int]) -> dict[str, float]:
        """Loss by metric with these knobs at these bits, mean over samples, see `options.Metric`."""
        samples, outputs = self.streams.samples, self.block.targets
        whole = diagonal = error = power = 0.0
        with self.quantized(bits):
            for part in self.streams.slices(self.block):
                found = self.block.module(*self.streams.read("quantized", self.block.inputs, part))
                targets = self.streams.read("float", outputs, part)
                compared = self.block.compared(found)
                deltas = [value.float() - target for value, target in zip(compared, targets, strict=True)]
                error += sum(delta.square().sum().item() for delta in deltas)
                power += sum(target.square().sum().item() for target in targets)
                for draw in range(self.draws):
                    gradients = [self.streams.cache.get(Slot("gradient", name, draw), part) for name in outputs]
                    products = [(g * delta).flatten(1) for g, delta in zip(gradients, deltas, strict=True)]
                    whole += torch.stack([product.sum(1) for product in products]).sum(0).square().sum().item()
                    diagonal += sum(product.square().sum().item() for product in products)
        whole, diagonal, error, power = ranks.current().total(whole, diagonal, error, power)
        self.forwards += 1
        count = 2 * samples * self.draws
        return {"fisher": whole / count, "fisher_diagonal": diagonal / count, "relative": error / max(power, 1e-30)}

    def codes(self) -> dict[str, Tensor]:
        """Learned codes of the block's own weights, by `knob@bits`, on the CPU."""
        found = {}
        for (name, bits), variant in self.variants.items():
            if isinstance(variant, WeightFakeQuantize) and variant.codes is not None:
                found[f"{name}@{bits}"] = variant.codes.cpu()
        return found

    def weight_bytes(self) -> dict[str, dict[int, int]]:
        """Packed size of the block's own weights at each of their bit-widths."""
        sizes: dict[str, dict[int, int]] = {}
        for knob in self._own:
            for bits in knob.bits:
                variant = self.variants[knob.name, bits]
                assert isinstance(variant, WeightFakeQuantize)
                sizes.setdefault(knob.name, {})[bits] = packed_bytes(variant, self._weights[knob.name])
        return sizes

    def close(self) -> None:
        """Put the block's own fake-quantizers back and forget the vectors of its outputs."""
        for place, original in self._originals.items():
            self.block.module.set_submodule(place, original)
        for name in self.block.targets:
            self.streams.cache.drop(Slot("fisher", name))
            for draw in range(self.draws):
                self.streams.cache.drop(Slot("gradient", name, draw))

    def _initialize(self, knob: Knob, variant: Quantizer) -> None:
        name = knob.name
        if isinstance(variant, WeightFakeQuantize):
            mine = Learnables(weights={name: (variant, self._weights[name])})
        else:
            mine = Learnables(activations={name: variant})
            self._place(name, variant)
            self.forwards += 1
        initialize(Site(self.block, mine, self.streams, self.config.recipe), "joint")

    def _place(self, knob: str, variant: Quantizer) -> None:
        for place in self._places[knob]:
            self.block.module.set_submodule(place, variant)


def variant_of(original: Quantizer, bits: int, config: QuantConfig) -> Quantizer:
    """A fake-quantizer for the place of `original`, as placement would make it for `bits`."""
    if isinstance(original, WeightFakeQuantize):
        symmetric = is_symmetric(config, bits)
        scheme = torch.per_channel_symmetric if symmetric else torch.per_channel_affine
        if not original.per_channel:
            scheme = torch.per_tensor_symmetric if symmetric else torch.per_tensor_affine
        return WeightFakeQuantize(IntRange.weights(bits, symmetric), scheme, original.ch_axis)
    range = IntRange.activations(bits, signed=activation_scheme(config) == "signed")
    return ActivationFakeQuantize(range, original.qscheme, dtype=range.carrier)


def packed_bytes(quantizer: WeightFakeQuantize, weight: Tensor) -> int:
    """Bytes that `weight` takes in the packed checkpoint: codes, scales and, where there are any, zero points."""
    range = quantizer.range
    codes = pack(quantizer.integers(weight).to(torch.int16).cpu() - range.low, range.bits)
    scale, zero_point = (value.cpu() for value in quantizer.calculate_qparams())
    packed = PackedWeight(codes, range.bits, range.low, tuple(weight.shape), scale, zero_point, quantizer.ch_axis)
    return stored_bytes({"weight": packed})
