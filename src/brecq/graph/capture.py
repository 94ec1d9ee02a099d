"""Capture: a module becomes a functional ATen graph in eval mode, with a dynamic batch and batch norm folded.

The captured graph is a `torch.fx.GraphModule` that takes the model's positional inputs and returns its output.
No operator writes in place, so a block can never overwrite an activation that another block still needs.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from brecq.errors import CaptureError
from brecq.forward import Inputs, call, evaluating, like, tensors
from brecq.graph import fold
from brecq.graph.randomness import check_deterministic

MAX_BATCH = 65_536


def capture(model: nn.Module, example_inputs: Inputs) -> GraphModule:
    """Export `model` with `torch.export`; dimension 0 of every input tensor is the dynamic batch.

    Args:
        model: any module; it is exported in eval mode and left unchanged.
        example_inputs: positional inputs, or inputs by name; tensors of shape [N, ...] with the same N of at least 2.

    Raises:
        CaptureError: the model cannot be exported; the message names the module and what to do.
    """
    inputs = example_inputs if isinstance(example_inputs, Mapping) else tuple(example_inputs)
    _check_inputs(tensors(inputs))
    with evaluating(model):
        graph = _export(model, inputs)
    check_deterministic(graph)
    fold.normalize_batch_norm(graph)
    fold.fold_constants(graph)
    fold.fold_batch_norm(graph)
    fold.drop_no_ops(graph)
    fold.relax_views(graph)
    return graph


def example_batch(inputs: Inputs) -> Inputs:
    """A batch of two to capture with; a single sample is repeated."""
    values = tensors(inputs)
    few = [value[:2] if len(value) > 1 else value.repeat(2, *[1] * (value.dim() - 1)) for value in values]
    return like(inputs, few)


def batch_dim(low: int = 1) -> Any:
    """The dynamic batch dimension."""
    return torch.export.Dim("batch", min=low, max=MAX_BATCH)


def dynamic_shapes(inputs: Sequence[Any], dim: Any) -> tuple[Any, ...]:
    """The `dynamic_shapes` argument of `torch.export` that makes dimension 0 of every tensor dynamic."""
    return tuple({0: dim} if isinstance(value, Tensor) and value.dim() else None for value in inputs)


def _check_inputs(inputs: tuple[Any, ...]) -> None:
    sizes = {value.shape[0] for value in inputs if isinstance(value, Tensor) and value.dim()}
    if not sizes:
        raise CaptureError("the example inputs hold no tensor with a batch dimension; give tensors of shape [N, ...]")
    if len(sizes) > 1 or min(sizes) < 2:
        raise CaptureError(
            f"the example inputs have batch sizes {sorted(sizes)}; give the same batch size of at least 2 in each"
        )


def _export(model: nn.Module, inputs: Inputs) -> GraphModule:
    reason: Exception | None = None
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        # Some models treat a batch of one specially: fall back to a dynamic batch of at least two.
        for low in (1, 2):
            dim = batch_dim(low)
            try:
                args, kwargs = ((), dict(inputs)) if isinstance(inputs, Mapping) else (tuple(inputs), {})
                places = dynamic_shapes(tensors(inputs), dim)
                shapes = dict(zip(kwargs, places, strict=True)) if kwargs else places
                program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
                module = program.run_decompositions({}).module()
                fold.drop_guards(module)
                fold.drop_writes(module)
                _detach(module)
                return module
            except Exception as error:  # torch.export raises many unrelated types
                reason = error
    raise CaptureError(_explain(model, inputs, reason)) from reason


def _detach(module: GraphModule) -> None:
    """Give the graph parameters of its own over the same memory: the model keeps its `requires_grad` and device."""
    for owner in module.modules():
        for name, value in owner._parameters.items():
            if value is not None:
                owner._parameters[name] = nn.Parameter(value.detach(), requires_grad=False)


def _explain(model: nn.Module, inputs: Inputs, reason: Exception | None) -> str:
    """Name the smallest submodule that fails on its own, by running the model eagerly and exporting its parts."""
    first_line = next((line for line in str(reason).splitlines() if line.strip()), type(reason).__name__)
    try:
        culprit = _smallest_failing(model, inputs)
    except Exception as error:
        return f"the model does not run on the example inputs: {type(error).__name__}: {error}"
    where = f"submodule {culprit[0]!r} ({culprit[1]})" if culprit and culprit[0] else type(model).__name__
    if "specialized it to be a constant" in str(reason):
        first_line = "it works for one batch size only"
        remedy = "Write x.shape[0] instead of len(x) or a number"
    else:
        remedy = "Rewrite its data-dependent control flow"
    return (
        f"torch.export cannot capture {where}: {first_line.strip()}\n"
        f"{remedy}, or quantize the parts that can be captured by name "
        "(submodule='backbone' in Python, --submodule backbone on the command line)."
    )


def _smallest_failing(model: nn.Module, inputs: Inputs) -> tuple[str, str] | None:
    received: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda _m, args, kwargs, name=name: received.setdefault(name, (args, kwargs)) and None, with_kwargs=True
        )
        for name, module in model.named_modules()
    ]
    try:
        with torch.no_grad():
            call(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    modules = dict(model.named_modules())
    found: tuple[str, str] | None = None
    for name in sorted(received, key=lambda path: path.count(".") if path else -1):
        inside = found is None or name.startswith(f"{found[0]}." if found[0] else "")
        if not inside or (not any(True for _ in modules[name].parameters()) and found is not None):
            continue
        args, kwargs = received[name]
        plain = not kwargs and all(isinstance(value, Tensor) for value in args)
        shapes = dynamic_shapes(args, batch_dim(2)) if plain else None
        try:
            torch.export.export(modules[name], args, kwargs, dynamic_shapes=shapes, strict=False)
        except Exception:  # the question is whether it fails; export raises whatever the module's code raises
            found = (name, type(modules[name]).__name__)
    return found
