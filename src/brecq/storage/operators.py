"""The operators that a description of a program may name: what they do depends on their arguments alone.

No operator that a file names may read or write files, run code, or look outside its arguments. An operator is known by
its name and its schema: of strings it may take only those that choose a variant.
"""

from __future__ import annotations

import math
import operator
import re
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed

NAMESPACES = ("aten", "prims", "quantized_decomposed", "torchvision", "torchao")
"""Of `torch.ops`."""

VARIANTS = {
    "approximate", "assert_msg", "compute_mode", "driver", "equation", "indexing", "interpolation",
    "interpolation_mode", "mode", "norm", "ord", "padding", "padding_mode", "pad_mode", "reduce", "rounding_mode",
    "side", "UPLO",
}  # fmt: skip
"""Parameters that take a string."""

_OF_SIZES = {
    "operator": (operator, {
        "getitem", "add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow", "eq", "ne", "lt", "le", "gt", "ge",
        "and_", "or_", "not_", "pos",
    }),
    "math": (math, {"ceil", "floor", "trunc", "sqrt"}),
    "torch": (torch, {"sym_int", "sym_float", "sym_max", "sym_min", "sym_not", "sym_ite"}),
}  # fmt: skip

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*|_[A-Za-z][A-Za-z0-9_]*")


def find_operator(name: str) -> Any | None:
    """The function of this name (`aten.conv2d.default`, `operator.getitem`), or `None` if no file may name it."""
    parts = name.split(".")
    if not all(_NAME.fullmatch(part) for part in parts):
        return None
    if len(parts) == 2 and parts[0] in _OF_SIZES:
        module, allowed = _OF_SIZES[parts[0]]
        return getattr(module, parts[1]) if parts[1] in allowed else None
    if len(parts) != 3 or parts[0] not in NAMESPACES:
        return None
    try:
        found = getattr(getattr(getattr(torch.ops, parts[0]), parts[1]), parts[2])
    except (AttributeError, RuntimeError):  # of an operator that is not registered
        return None
    return found if is_allowed(found) else None


def operator_name(function: Any) -> str | None:
    """The name that `find_operator` finds this function by, or `None` if there is none."""
    if isinstance(function, torch._ops.OpOverload):
        name = str(function)
    else:
        name = f"{str(getattr(function, '__module__', '')).removeprefix('_')}.{getattr(function, '__name__', '')}"
    return name if find_operator(name) is function else None


def is_allowed(function: Any) -> bool:
    """Whether this is an operator of a known namespace that takes no other strings than `VARIANTS`."""
    if not isinstance(function, torch._ops.OpOverload) or function.namespace not in NAMESPACES:
        return False
    strings = (argument.name for argument in function._schema.arguments if "str" in str(argument.type))
    return all(name in VARIANTS for name in strings)
