"""Deliver an allocation: check that it is this network's, and start from what the table learned."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.fx import GraphModule

from brecq.errors import ConfigError
from brecq.graph.dataflow import Dataflow
from brecq.graph.fold import get_tensor
from brecq.placement.prepare import fake_quantize_node
from brecq.precision.allocation import BitAllocation
from brecq.quant.fake_quant import Start, WeightFakeQuantize


def check_layers(graph: GraphModule, allocation: BitAllocation) -> None:
    """Raise `ConfigError` unless the allocation names exactly the layers of the network."""
    layers = {name for name in Dataflow(graph).layers if name}
    for what, names in (("lacks", layers - allocation.layers.keys()), ("names", allocation.layers.keys() - layers)):
        if names:
            raise ConfigError(
                f"the bit allocation {what} {sorted(names)[0]!r}, which the network "
                f"{'has' if what == 'lacks' else 'does not have'}; search for this network's own"
            )


def start_from(prepared: GraphModule, learned: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Let weights start from `learned` codes of their bit-width, by `knob@bits`; returns those that serve, by the
    names of the fake-quantizers.

    Raises:
        ConfigError: codes of another shape: they belong to another network.
    """
    flow = Dataflow(prepared)
    started: dict[str, Tensor] = {}
    for node, layer in zip(flow.ops, flow.layers, strict=True):
        module = fake_quantize_node(prepared, node.args[1]) if layer else None
        if not isinstance(module, WeightFakeQuantize) or module.start is not None:
            continue
        codes = learned.get(f"{layer}/weight@{module.range.bits}")
        if codes is None:
            continue
        weight = get_tensor(prepared, str(node.args[1].args[0].target))
        if codes.shape != weight.shape:
            raise ConfigError(
                f"the learned codes of {layer!r} have shape {list(codes.shape)}, its weight {list(weight.shape)}; "
                "search for this network's own"
            )
        module.start = Start(weight, codes.to(weight.device, copy=True))
        started[f"{node.args[1].target}.start"] = codes
    return started
