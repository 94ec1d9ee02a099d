"""A result in words: what it is of, and the bits that its layers really have, for titles, tags and tables."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from brecq.page.facts import FLOAT_BITS, Facts, Layer
from brecq.result import QuantResult


def network(result: QuantResult) -> str:
    """The network's name, or that of the part of it."""
    source = (result.metadata.get("source") or {}).get("spec") or result.metadata.get("part_of") or ""
    if not source.startswith(("timm:", "torchvision:", "hf:")):
        source = re.split(r"[/\\]", source)[-1]  # a file's folder says nothing to others
    part = result.metadata.get("part")
    return f"{part} of {source or 'a network'}" if part else source or "A network"


def title(facts: Facts) -> str:
    """`timm:resnet18 at W4A8 in 19 of 21 layers`"""
    return f"{network(facts.result)} at {bits(facts)}"


def bits(facts: Facts) -> str:
    """The bits of all layers, `W8A8`; of those that have what was asked for, `W2A4 in 3 of 5 layers`; or, where none
    has or a search chose them, from the least to the most, `W3-8A8`."""
    layers = _able(facts.layers)
    pairs = Counter((layer.bits, layer.input_bits) for layer in layers)
    config, searched = facts.result.config, facts.result.report.allocation is not None
    asked = (config.weights, config.activations)
    if len(pairs) > 1 and asked in pairs and not searched:
        return f"W{asked[0]}A{asked[1]} in {pairs[asked]} of {len(layers)} layers"
    quantized = [pair for pair in pairs if min(pair) < FLOAT_BITS] or list(pairs) or [asked]
    found = "W{}A{}".format(*(_span(widths) for widths in zip(*quantized, strict=True)))
    count = sum(pairs[pair] for pair in quantized)
    return found if count == len(layers) else f"{found} in {count} of {len(layers)} layers"


def summary(facts: Facts) -> str:
    """What was done, in a sentence."""
    config = facts.result.config
    layers = _able(facts.layers)
    how = (
        "rounded to nearest"
        if config.method == "rtn"
        else f"reconstructed {config.granularity} by {config.granularity}"
    )
    searched = ", bits per layer from a search" if facts.result.report.allocation is not None else ""
    return (
        f"Weights of {_counted(layer.bits for layer in layers)}; activations of "
        f"{_counted(layer.input_bits for layer in layers)}{searched}; {how}."
    )


def tags(facts: Facts) -> list[str]:
    """`4-bit`, `8-bit`: the widths that quantized weights have, the least first."""
    return [f"{width}-bit" for width in sorted({layer.bits for layer in facts.layers if layer.bits < FLOAT_BITS})]


def _able(layers: Sequence[Layer]) -> list[Layer]:
    """Those that brecq can quantize: convolutions and linear layers."""
    return [layer for layer in layers if layer.able]


def _span(widths: Iterable[int]) -> str:
    low, high = min(found := list(widths)), max(found)
    return str(low) if low == high else f"{low}-{high}"


def _counted(widths: Iterable[int]) -> str:
    """`8 bits`, or `2 bits in 3 layers, 8 bits in 2`."""
    counts = sorted(Counter(widths).items())
    named = [("float" if width == FLOAT_BITS else f"{width} bits", count) for width, count in counts]
    if len(named) == 1:
        return named[0][0]
    (name, count), *rest = named or [("no layer", 0)]
    first = f"{name} in {count} layer{'s' if count > 1 else ''}"
    return ", ".join([first, *(f"{name} in {count}" for name, count in rest)])
