"""Capture: a module becomes a functional ATen graph in eval mode, with a dynamic batch and batch norm folded.

The captured graph is a `torch.fx.GraphModule` that takes the model's positional inputs and returns its output.
No operator writes in place, so a block can never overwrite an activation that another block still needs.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from brecq.capture import batch_norm, canonical, selection
from brecq.capture.chunks import SymbolicChunks
from brecq.capture.culprit import explain
from brecq.capture.derivatives import check_derivatives
from brecq.capture.functional import functionalize
from brecq.capture.lengths import symbolic_lengths
from brecq.capture.randomness import check_deterministic
from brecq.capture.repeated import fold_repeated
from brecq.capture.silence import silent_export
from brecq.devices import device_of
from brecq.errors import CaptureError
from brecq.float32 import in_float32, in_kind
from brecq.forward import Inputs, call, evaluating, like, tensors, unwrap
from brecq.graph import constants, fold, ops, outputs
from brecq.graph.locations import without_locations
from brecq.graph.shapes import arguments, batch_dim, dynamic_shapes, one_batch
from brecq.names import is_variable, unwritable


def capture(model: nn.Module, example_inputs: Inputs, *, any_size: bool = False) -> GraphModule:
    """Export `model` with `torch.export`; dimension 0 of every input tensor is the dynamic batch.

    Args:
        model: any module; it is exported in eval mode and left unchanged, in float32 (a copy, where it is not).
        example_inputs: positional inputs, or inputs by name; tensors of shape [N, ...] with the same N of at least 2.
        any_size: height and width of inputs [N, C, H, W] may differ from the examples', where the model allows it.

    Raises:
        CaptureError: the model cannot be exported; the message names the module and what to do.
    """
    model, _ = in_float32(_without_guards(unwrap(model)))
    home = device_of(model)
    values = [in_kind(value.to(home)) if isinstance(value, Tensor) else value for value in tensors(example_inputs)]
    if len({id(value) for value in values}) < len(values):  # a tensor given twice would become one input
        values = [value.clone() if isinstance(value, Tensor) else value for value in values]
    inputs = like(example_inputs, values)
    _check_inputs(tensors(inputs))
    _check_names(model, inputs)
    with evaluating(model), one_batch(model), outputs.plain(model), symbolic_lengths(model):
        graph = _export(model, inputs, any_size)
    check_deterministic(graph)
    batch_norm.normalize_batch_norm(graph)
    fold.drop_no_ops(graph)
    canonical.spell_out_writes(graph)
    constants.spell_out_sizes(graph)
    canonical.canonicalize(graph)
    selection.read_from_parts(graph)
    constants.fold_constants(graph)
    fold_repeated(graph)
    batch_norm.fold_batch_norm(graph)
    batch_norm.fold_affine(graph)
    fold.relax_views(graph)
    _name_layers(graph, model)
    check_derivatives(graph, tensors(inputs))
    return graph


def example_batch(inputs: Inputs) -> Inputs:
    """A batch of two to capture with; a single sample is repeated.

    Raises:
        CaptureError: an input has no dimension that could be the batch.
    """
    values = tensors(inputs)
    for name, value in zip(inputs if isinstance(inputs, Mapping) else range(len(values)), values, strict=True):
        if not value.dim():
            raise CaptureError(
                f"input {name!r} is a single number (shape []), where dimension 0 of every input is the batch; give "
                "one number a sample ([N]), or fix it in the network's forward"
            )
    few = [value[:2] if len(value) > 1 else value.repeat(2, *[1] * (value.dim() - 1)) for value in values]
    return like(inputs, few)


def _without_guards(model: nn.Module) -> nn.Module:
    """An exported program without the checks that tie it to the batch sizes that it was exported for."""
    if isinstance(model, GraphModule) and any(map(fold.is_guard, model.graph.nodes)):
        model = GraphModule(model, copy.deepcopy(model.graph))
        fold.drop_guards(model)
    return model


def _check_inputs(inputs: tuple[Any, ...]) -> None:
    sizes = {value.shape[0] for value in inputs if isinstance(value, Tensor) and value.dim()}
    if not sizes:
        raise CaptureError("the example inputs hold no tensor with a batch dimension; give tensors of shape [N, ...]")
    if len(sizes) > 1 or min(sizes) < 2:
        raise CaptureError(
            f"the example inputs have batch sizes {sorted(sizes)}; give the same batch size of at least 2 in each"
        )


def _check_names(model: nn.Module, inputs: Inputs) -> None:
    """A captured graph is a `GraphModule`: what is called like one of its own attributes would hide behind it, and
    names become parts of its program's text."""
    tensors_of = itertools.chain(model.named_parameters(), model.named_buffers())
    found = next(((path, part) for path, _ in tensors_of if (part := unwritable(path)) is not None), None)
    if found:
        raise CaptureError(
            f"{type(model).__name__} has a part called {found[1]!r} ({found[0]!r}), a name that PyTorch cannot write "
            "into a program: it is a word of Python's, or holds a quotation mark, a backslash, a line end or "
            "characters that Python reads as others; rename it"
        )
    strange = [name for name in inputs if not is_variable(str(name))] if isinstance(inputs, Mapping) else []
    if strange:
        raise CaptureError(f"the input {strange[0]!r} has a name that PyTorch cannot write into a program; rename it")
    own = [*model._modules, *model._parameters, *model._buffers]
    taken = [name for name in own if name == "meta" or hasattr(GraphModule, name)]
    if taken:
        raise CaptureError(
            f"{type(model).__name__} calls a part of itself {taken[0]!r}, a name that torch.fx keeps for its graphs; "
            f"rename it, such as {taken[0]}_"
        )


def _export(model: nn.Module, inputs: Inputs, any_size: bool) -> GraphModule:
    reason: Exception | None = None
    eagerly = torch.compiler.set_stance
    with silent_export(), without_locations(), torch.no_grad(), eagerly("force_eager"), SymbolicChunks():
        # Some models treat a batch of one specially: fall back to a dynamic batch of at least two.
        for low, free in itertools.product((1, 2), (True, False) if any_size else (False,)):
            try:
                with evaluating(model):  # a failed attempt leaves symbols in what the model remembers
                    if low > 1:
                        _remember_one(model, inputs)
                    return _exported(model, inputs, batch_dim(low), free)
            except CaptureError:
                raise
            except Exception as error:  # torch.export raises many unrelated types
                reason = error
    raise CaptureError(explain(model, inputs, reason)) from reason


def _exported(model: nn.Module, inputs: Inputs, dim: Any, any_size: bool) -> GraphModule:
    args, kwargs = arguments(inputs)
    shapes = dynamic_shapes(model, args, kwargs, dim, any_size=any_size)
    program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
    module = functionalize(program)
    module._forward_pre_hooks.clear()  # they insist on the keywords and sizes of the examples
    module._forward_pre_hooks_with_kwargs.clear()
    fold.drop_guards(module)
    fold.drop_writes(module)
    _detach(module)
    _check_regions(module)
    return module


def _remember_one(model: nn.Module, inputs: Inputs) -> None:
    """Let the model run on one sample: what some keep of the last batch (anchors, and for which sizes they are) is
    then of a size that a program for two or more never meets, and is made anew in the export."""
    one = like(
        inputs, [value[:1] if isinstance(value, Tensor) and value.dim() else value for value in tensors(inputs)]
    )
    with suppress(Exception):  # a model that takes no single sample keeps nothing of one
        call(model, one)


def _name_layers(module: GraphModule, model: nn.Module) -> None:
    """Name a layer with tied weights after the module that calls it, where `torch.export` kept another's name."""
    owners: dict[int, set[str]] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(value), set()).add(name.rpartition(".")[0])
    tied = {path: paths for paths in owners.values() if len(paths) > 1 for path in paths}
    for node in module.graph.nodes:
        weight = node.args[1] if ops.kind(node) else None
        if isinstance(weight, Node) and weight.op == "get_attr":
            path, stem = ops.module_path(node), str(weight.target).rpartition(".")[0]
            if stem in tied:
                node.meta[ops.TIED] = sorted(tied[stem])
            if path != stem and path in tied.get(stem, ()):
                node.meta[ops.LAYER] = path


def _check_regions(module: GraphModule) -> None:
    """Refuse what the exporter keeps as a program inside the program: autocast regions, branches, loops."""
    for node in module.graph.nodes:
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            path = ops.module_path(node)
            raise CaptureError(
                f"forward{f' of {path!r}' if path else ''} holds a region of its own ({node.target.name()}): brecq "
                "needs one graph; take torch.autocast and torch.cond out of forward, or quantize a submodule "
                "(submodule=..., --submodule)"
            )


def _detach(module: GraphModule) -> None:
    """Give the graph parameters of its own over the same memory: the model keeps its `requires_grad` and device."""
    for owner in module.modules():
        for name, value in owner._parameters.items():
            if value is not None:
                owner._parameters[name] = nn.Parameter(value.detach(), requires_grad=False)
