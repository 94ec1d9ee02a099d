"""What of a network lies outside the submodules that are quantized, and stays in float: for the quantization scope."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from brecq.report import ScopeEntry

_WHAT = (
    ("anchor", "anchors, computed in float"),
    ("defaultbox", "anchors, computed in float"),
    ("roialign", "pooling of regions, in float"),
    ("transform", "resizing and normalization of pictures, and boxes back to their sizes, in float"),
    ("regionproposal", "anchors, decoding of boxes and NMS, in float"),
    ("roiheads", "choice of regions, decoding of boxes and NMS, in float"),
    ("rcnn", "what joins the parts, in float"),
    ("retinanet", "anchors, decoding of boxes and NMS, in float"),
    ("fcos", "anchors, decoding of boxes and NMS, in float"),
    ("ssd", "anchors, decoding of boxes and NMS, in float"),
)
"""What classes of detectors do outside their convolutions, by words in their names."""


def outside(model: nn.Module, names: Sequence[str]) -> list[ScopeEntry]:
    """One entry for the network itself and for each module beside the named submodules, its parameters counted."""
    return [_entry(path, module, names) for path, module in _beside(model, "", names)]


def _beside(module: nn.Module, path: str, names: Sequence[str]) -> Iterator[tuple[str, nn.Module]]:
    """The modules that hold named submodules, and the largest that hold none and are in none."""
    yield path, module
    if not any(name.startswith(f"{path}.") or not path for name in names):
        return
    for key, child in module.named_children():
        inner = f"{path}.{key}" if path else key
        if inner not in names:
            yield from _beside(child, inner, names)


def _entry(path: str, module: nn.Module, names: Sequence[str]) -> ScopeEntry:
    kind = type(module).__name__
    holds = any(name.startswith(f"{path}.") or not path for name in names)
    parameters = sum(value.numel() for value in module.parameters(recurse=not holds))
    reason = next((reason for word, reason in _WHAT if word in kind.lower()), "outside the submodules, in float")
    if parameters:
        reason = "outside the submodules, in float: quantize it by naming it, too"
    return ScopeEntry(
        op=path or "forward", layer=path, block="", kind=kind, weights="", inputs="float", output="float",
        reason=reason, parameters=parameters,
    )  # fmt: skip
