"""What a network returns, in containers that every file format knows: tensors, tuples, lists and dictionaries."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from brecq.errors import CaptureError
from brecq.report import OutputNoise, ScopeEntry


@contextmanager
def plain(model: nn.Module) -> Iterator[None]:
    """While this lasts, `model` returns plain containers: named tuples become tuples, data classes and the outputs of
    transformers dictionaries. What it may return beside tensors are numbers and `None`.

    Raises:
        CaptureError: (when the model is called) it returns anything else, or no tensor at all.
    """

    def hook(module: nn.Module, _inputs: Any, result: Any) -> Any:
        found = _plain(result)
        if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(found)):
            raise CaptureError(
                f"{type(model).__name__} returns {_describe(result)}, no tensor; return the tensors that are to be "
                "computed, or quantize a submodule that does (submodule=..., --submodule)"
            )
        return found

    handle = model.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def plain_structure(spec: pytree.TreeSpec) -> pytree.TreeSpec:
    """The same containers without those that torch.fx keeps instead of lists and dictionaries, immutable ones."""
    return pytree.tree_structure(_plain(pytree.tree_unflatten(range(spec.num_leaves), spec)))


def structured(graph: GraphModule, output: Any) -> Any:
    """The output of a captured graph, a tuple of leaves, with the names that the network gives its parts."""
    codegen: Any = graph.graph._codegen
    spec = codegen.pytree_info.out_spec if hasattr(codegen, "pytree_info") else None
    leaves = list(output) if isinstance(output, (tuple, list)) else [output]
    return pytree.tree_unflatten(leaves, spec) if spec is not None and spec.num_leaves == len(leaves) else output


def returned(graph: GraphModule) -> list[tuple[str, Any]]:
    """What a captured program returns, flat and in order: the name of each, and a node, or what is no tensor.

    Names are the keys of dictionaries and the places in tuples and lists, joined by dots (`head.boxes`, `levels.0`),
    as those of `brecq.logits.named_outputs`; that of a single output is empty.
    """
    leaves, spec = pytree.tree_flatten(graph.graph.output_node().args[0])
    info = getattr(graph.graph._codegen, "pytree_info", None)
    if info is not None and info.out_spec is not None and info.out_spec.num_leaves == len(leaves):
        spec = info.out_spec
    paths, _ = pytree.tree_flatten_with_path(pytree.tree_unflatten(leaves, spec))
    return [(".".join(map(_key, path)), leaf) for path, leaf in paths]


def _key(entry: Any) -> str:
    return str(getattr(entry, "key", getattr(entry, "idx", getattr(entry, "name", entry))))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, (str, int)):
                raise CaptureError(f"the network returns a dictionary with the key {key!r}; use texts as keys")
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {name: _plain(item) for name, item in fields if item is not None}
    if value is None or isinstance(value, (Tensor, bool, int, float, torch.SymInt, torch.SymFloat)):
        return value
    raise CaptureError(
        f"the network returns {_describe(value)}, which no file can hold; return tensors, tuples, lists or "
        "dictionaries of them, or quantize a submodule that does (submodule=..., --submodule)"
    )


def _describe(value: Any) -> str:
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    return f"a {type(value).__name__}"


BEHIND = 6.0
"""Decibels that an output may lose more than the best one without being named: twice its amplitude."""

FINE = 30.0
"""Decibels from which on no output is named, whatever the best one has: a thousandth of its power."""


def weakest(outputs: Sequence[OutputNoise], scope: Sequence[ScopeEntry]) -> list[str]:
    """What to do about outputs that lose far more than others: a sentence for each, naming the layers behind it."""
    ratios = [output.sqnr for output in outputs if output.signal > 0]
    found = []
    for output in outputs:
        if output.signal == 0 or output.sqnr >= min(max(ratios) - BEHIND, FINE):
            continue
        entries = [entry for entry in scope if entry.layer in output.layers and entry.weights]
        bits = ", ".join(f"{entry.layer} {entry.weights}, input {entry.inputs}" for entry in entries[:3])
        low = any(not entry.weights.startswith(("8", "float")) or not entry.inputs.startswith(("8", "float"))
                  for entry in entries)  # fmt: skip
        remedy = (
            "; raise its last layers: " + " ".join(f"--set '{entry.layer}' w=8,a=8" for entry in entries[:3])
            if low
            else "; its last layers have 8 bits: give the layers before them more, or calibrate on more samples"
        )
        found.append(
            f"output {output.name!r} has an SQNR of {output.sqnr:.1f} dB, the best one {max(ratios):.1f} "
            f"(last layers: {bits}){remedy}"
        )
    return found
