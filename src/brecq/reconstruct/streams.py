"""Two streams of activations through the blocks: float (the targets) and quantized (the inputs).

Each block runs once in float and once quantized over the calibration set, so the whole pass costs two block-forwards
a block; nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from brecq.config import FLOAT, WIDE
from brecq.forward import even_slices
from brecq.partition.blocks import Block, Network
from brecq.placement.prepare import fake_quantize_node
from brecq.quant.fake_quant import ActivationFakeQuantize, GridFakeQuantize, Mode, WeightFakeQuantize, set_mode
from brecq.quant.grid import Grid
from brecq.ranks import Share
from brecq.reconstruct.cache import ActivationCache, Kind, Slot
from brecq.reconstruct.memory import with_room
from brecq.reconstruct.sizes import at_once

Stream = Literal["float", "quantized"]

KINDS: tuple[Kind, ...] = ("input", "received", "float", "quantized")
"""Of the activations that blocks read."""


class Streams:
    """The activations that the next block needs, float and quantized, for all calibration samples.

    Args:
        network: the blocks. inputs: the network's inputs, each [N, ...] on the CPU, those of the `share`.
        cache: where activations wait.
        activations: mode of the activations' fake-quantizers in the quantized stream (`FLOAT`: weights only).
        quantized: what is read as the quantized stream; `float` where what a block receives is not to depend on the
            blocks before it.
        received: what the quantized stream starts from, where that is something else than `inputs`.

    Attributes:
        share: the samples whose activations are here; `read` counts among these.
        samples: how many there are in all. forwards: block-forwards over the whole set done so far.
        weight_bits, activation_bits: the fewest of any in the quantized stream; `FLOAT` where none is quantized.
        quantizes_activations: whether it differs by more than weights; what rounding to 16 bits changes counts for
            nothing. Where it does not, there is nothing for QDrop to drop, and mixing in the float stream would only
            hide the error to correct.
    """

    def __init__(
        self,
        network: Network,
        inputs: Sequence[Tensor],
        cache: ActivationCache,
        activations: Mode = Mode.HARD,
        quantized: Stream = "quantized",
        share: Share | None = None,
    ) -> None:
        self.network = network
        self._sources: dict[Stream, Stream] = {"float": "float", "quantized": quantized}
        self.cache = cache
        self.activations = activations
        self.share = Share(len(inputs[0])) if share is None else share
        self.samples = self.share.samples
        self.forwards = 0
        quantizers = [m for m in network.graph.modules() if isinstance(m, GridFakeQuantize) and m.enabled]
        self.weight_bits = min((m.range.bits for m in quantizers if isinstance(m, WeightFakeQuantize)), default=FLOAT)
        bits = (m.range.bits for m in quantizers if isinstance(m, ActivationFakeQuantize) and activations is Mode.HARD)
        self.activation_bits = min(bits, default=FLOAT)
        self.quantizes_activations = self.activation_bits < WIDE
        self._last_use = network.last_use()
        self._at_once: dict[str, int] = {}
        self._starts: dict[Stream, Kind] = {"float": "input", "quantized": "input"}
        self._keep("input", inputs)

    def receive(self, values: Sequence[Tensor]) -> None:
        """Let the quantized stream start from what quantized parts before give, not from the float inputs."""
        self._starts["quantized"] = "received"
        self._keep("received", values)

    def _keep(self, kind: Kind, values: Sequence[Tensor]) -> None:
        for name, tensor in zip(self.network.inputs, values, strict=True):
            self.cache.keep(Slot(kind, name), tensor)

    def read(self, stream: Stream, names: Sequence[str], index: Tensor | slice) -> list[Tensor]:
        """Activations of some samples, on the device."""
        return [self.cache.get(self._slot(stream, name), index) for name in names]

    @torch.no_grad()
    def advance(self, stream: Stream, block: Block) -> None:
        """Run `block` over all samples and keep its outputs."""
        self.set_mode(stream, block)
        grids = _grids(block)
        for rows in self.slices(block):
            outputs = with_room(self.cache, self._run, block, stream, rows)
            for name, value, grid in zip(block.outputs, outputs, grids, strict=True):
                self.cache.put(Slot(stream, name), rows.start, value, len(self.share), grid)
        self.forwards += 1

    def slices(self, block: Block, rows: slice | None = None) -> Iterator[slice]:
        """Of all samples here, or of `rows`, the parts that the block is run on without gradients."""
        rows = slice(0, len(self.share)) if rows is None else rows
        if block.name not in self._at_once:  # layers ask for each unit of samples, and it takes a walk over the graph
            self._at_once[block.name] = at_once(block.module, self.cache.device)
        for part in even_slices(rows.stop - rows.start, self._at_once[block.name]):
            yield slice(rows.start + part.start, rows.start + part.stop)

    def _run(self, block: Block, stream: Stream, part: slice) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = block.module(*self.read(stream, block.inputs, part))
        return outputs

    def set_mode(self, stream: Stream, block: Block) -> None:
        """Put the block's fake-quantizers into the mode of a stream."""
        if stream == "float":
            set_mode(block.module, Mode.FLOAT)
        else:
            set_mode(block.module, Mode.HARD, activations=self.activations)

    def release(self, index: int, kinds: Sequence[Kind] = KINDS) -> None:
        """Forget what no block after number `index` reads."""
        for name, last in self._last_use.items():
            if last == index:
                for kind in kinds:
                    self.cache.drop(Slot(kind, name))

    def _slot(self, stream: Stream, name: str) -> Slot:
        source = self._sources[stream]
        return Slot(self._starts[source] if name in self.network.inputs else source, name)


def _grids(block: Block) -> list[Grid | None]:
    """The grids that the block's outputs are on now, where a fake-quantizer makes them."""
    (outputs,) = block.module.graph.output_node().args
    made_by = [fake_quantize_node(block.module, node) for node in outputs]  # type: ignore[union-attr]
    found = (module if isinstance(module, ActivationFakeQuantize) and module.active else None for module in made_by)
    return [module.grid if module is not None and module.range.bits <= 8 else None for module in found]


def run_batches(network: Network, inputs: Sequence[Tensor], device: torch.device) -> None:
    """Run the whole network block after block, batch by batch."""
    for rows in even_slices(len(inputs[0]), at_once(network.graph, device)):
        network.run({name: tensor[rows].to(device) for name, tensor in zip(network.inputs, inputs, strict=True)})
