"""Why a model cannot be captured: the message, and the part of the model that is to blame."""

from __future__ import annotations

import shlex
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from brecq.capture.silence import silent_export
from brecq.errors import first_line
from brecq.forward import Inputs, call, like, tensors
from brecq.graph.shapes import batch_dim, dynamic_shapes

_BRECQ = Path(__file__).parent.parent

SHOWN = 8
"""Parts of a model that are listed in full."""


def explain(model: nn.Module, inputs: Inputs, reason: Exception | None) -> str:
    """Why the model cannot be captured, the part of it that is to blame, and what to do."""
    why = first_line(reason)
    problem = _runs(model, inputs)
    if problem is not None:
        values = tensors(inputs)
        alone = like(inputs, [value[:1] if value.dim() else value for value in values])
        if _runs(model, alone) is None:
            return (
                f"the network takes one sample at a time: with {len(values[0])} it fails ({problem}); let forward "
                "handle batches, x.shape[0] in place of 1"
            )
        hint = "; brecq quantizes in float32: take casts to other types out of forward" if "dtype" in problem else ""
        return f"the model does not run on the example inputs: {problem}{hint}"
    culprit = _in_traceback(model, reason) or _smallest_failing(model, inputs)
    blamed = culprit[0] if culprit else ""
    where = f"submodule {blamed!r} ({culprit[1]})" if culprit and blamed else type(model).__name__
    where += _line(reason)
    if "specialized it to be a constant" in str(reason) or "Specializations unexpectedly" in str(reason):
        why = "it works for one batch size only"
        remedy = "Write x.shape[0] instead of len(x) or a number"
    elif "data-dependent" in str(reason):
        remedy = (
            "Rewrite its data-dependent control flow (also float(t), int(t) and t.item() of a tensor: numbers that do "
            "not change belong into Python numbers)"
        )
    else:
        remedy = "Rewrite what it does there"
    return f"torch.export cannot capture {where}: {why}\n{remedy}{_by_name(_other_parts(model, blamed))}."


def _by_name(parts: list[str]) -> str:
    """How to quantize these parts alone."""
    if not parts:
        return ""
    python, options = repr(parts), [f"--submodule {shlex.quote(part)}" for part in parts]
    if len(parts) > SHOWN:
        python = f"[{parts[0]!r}, {parts[1]!r}, ..., {parts[-1]!r}]"
        options = [*options[:2], "...", options[-1]]
    return (
        ", or quantize the parts that can be captured by name "
        f"(submodules={python} in Python, {' '.join(options)} on the command line)"
    )


def _other_parts(model: nn.Module, culprit: str) -> list[str]:
    """The parts beside the one to blame that hold parameters: children of the model, or of the child it is in."""
    below = f"{culprit}."
    inside = ""
    while True:
        children = [(f"{inside}{name}", child) for name, child in model.named_children()]
        holding = [name for name, child in children if any(True for _ in child.parameters())]
        found = [name for name in holding if not below.startswith(f"{name}.")]
        on_the_way = [(name, child) for name, child in children if below.startswith(f"{name}.") and name != culprit]
        if found or not on_the_way:
            return found
        name, model = on_the_way[0]
        inside = f"{name}."


def _runs(model: nn.Module, inputs: Inputs) -> str | None:
    """What goes wrong when the model runs eagerly; `None` if nothing does."""
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            call(model, inputs)
    except Exception as error:
        return f"{type(error).__name__}: {first_line(error) if str(error).strip() else ''}"
    return None


def _line(reason: BaseException | None) -> str:
    """Where in the network's own code the exporter failed: ` at FILE, line N: CODE`; empty if nowhere."""
    library = Path(torch.__file__).parent
    while reason is not None:
        frames = traceback.extract_tb(reason.__traceback__)
        own = [each for each in frames if not {library, _BRECQ} & set(Path(each.filename).parents)]
        if own and own[-1].line:
            return f" at {Path(own[-1].filename).name}, line {own[-1].lineno} ({own[-1].line})"
        reason = reason.__cause__ or reason.__context__
    return ""


def _in_traceback(model: nn.Module, reason: BaseException | None) -> tuple[str, str] | None:
    """The innermost module that was running when the exporter failed: its path (empty: the model's own) and class."""
    names = {id(module): name for name, module in model.named_modules()}
    while reason is not None:
        found = None
        frame = reason.__traceback__
        while frame is not None:
            owner = frame.tb_frame.f_locals.get("self")
            if isinstance(owner, nn.Module) and id(owner) in names:
                found = (names[id(owner)], type(owner).__name__)
            frame = frame.tb_next
        if found is not None:
            return found
        reason = reason.__cause__ or reason.__context__
    return None


def _smallest_failing(model: nn.Module, inputs: Inputs) -> tuple[str, str] | None:
    """The innermost module that fails when it is exported alone, with the inputs that it receives."""
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
        args, kwargs = received[name]
        leaves = pytree.tree_leaves((args, kwargs))
        if not inside or not all(isinstance(leaf, (Tensor, int, float, bool, type(None))) for leaf in leaves):
            continue
        plain = not kwargs and all(isinstance(value, Tensor) for value in args)
        try:
            shapes = dynamic_shapes(modules[name], args, kwargs, batch_dim(2)) if plain else None
            with silent_export():
                torch.export.export(modules[name], args, kwargs, dynamic_shapes=shapes, strict=False)
        except Exception:  # the question is whether it fails; export raises whatever the module's code raises
            found = (name, type(modules[name]).__name__)
    return found
