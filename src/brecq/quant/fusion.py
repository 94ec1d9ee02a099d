"""Elementwise kernels fused into one loop by `torch.compile`, or run operation by operation where it cannot be had.

Both ways give the same bits, except that sums may be added in another order and σ and powers may differ in the last
place. `backend` tells which one runs, for the report. The environment variable `BRECQ_KERNELS` forces one: `eager`, or
`compiled` (an error where it is impossible).
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from brecq.errors import ConfigError

VARIABLE = "BRECQ_KERNELS"

SMALL = {"cpu": 1 << 15, "cuda": 1 << 12}
"""Tensors with fewer elements, by device type, run eagerly: compiling takes seconds, and a toy network should not wait
for it. On CUDA every operation of an eager kernel is a launch of its own."""

_failures: dict[str, str] = {}
"""Why compilation failed, by device type."""


def backend(device: str | torch.device = "cpu") -> str:
    """`compiled`, or `eager (why)`: how kernels for large tensors run on `device`.

    Raises:
        ConfigError: `BRECQ_KERNELS` is neither `eager` nor `compiled`.
    """
    reason = _eager_because(torch.device(device).type)
    return f"eager ({reason})" if reason else "compiled"


def cpp_compiler() -> str | None:
    """The C++ compiler that PyTorch compiles kernels for the processor with, or `None`."""
    from torch._inductor import config

    compilers = config.cpp.cxx if isinstance(config.cpp.cxx, tuple | list) else (config.cpp.cxx,)
    return next((path for name in compilers if name and (path := shutil.which(name))), None)


def _forced() -> str:
    value = os.environ.get(VARIABLE, "")
    if value not in ("", "eager", "compiled"):
        raise ConfigError(f"{VARIABLE} is {value!r}; set it to eager or compiled, or leave it unset")
    return value


def _eager_because(device: str) -> str | None:
    forced = _forced()
    if forced == "eager":
        return f"{VARIABLE}=eager"
    if forced == "compiled":
        return None
    return _failures.get(device) or _missing_compiler(device)


def _missing_compiler(device: str) -> str | None:
    if device == "cpu":
        return None if cpp_compiler() else "no C++ compiler found"
    if device == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "Triton not found"
    return f"no compiler for {device}"


def give_up(device: str, error: Exception) -> None:
    """Run kernels eagerly on devices of this type from now on, and say why; with `BRECQ_KERNELS=compiled`, fail."""
    if _forced() == "compiled":
        raise error
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    reason = " ".join(lines[: 2 if lines[0].endswith(":") else 1])  # "backend='inductor' raised:", then what
    _failures[device] = f"compilation failed: {reason}"
    warnings.warn(
        f"compilation failed, kernels run eagerly on {device}, several times slower: {reason} "
        f"(set {VARIABLE}=compiled to see the whole error, {VARIABLE}=eager to silence this)",
        RuntimeWarning,
        stacklevel=3,
    )


class Fused:
    """Wraps an elementwise function of tensors; its first argument decides device and size.

    The function is compiled once for all sizes, when it first gets a large tensor: pass 1-D views, and tensors
    instead of numbers.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.eager = function
        self._compiled: Callable[..., Any] | None = None
        self._ready: set[str] = set()

    def __call__(self, first: Tensor, *others: Tensor) -> Any:
        device = first.device.type
        forced = _forced()
        if forced == "eager" or (first.numel() < SMALL.get(device, 0) and forced != "compiled"):
            return self.eager(first, *others)
        if device not in self._ready and _eager_because(device):
            return self.eager(first, *others)
        if self._compiled is None:
            self._compiled = torch.compile(self.eager, dynamic=True, fullgraph=True, options=_options())
        try:
            result = self._compiled(first, *others)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            give_up(device, error)
            return self.eager(first, *others)
        self._ready.add(device)
        return result


class FusedSum:
    """Wraps an elementwise function that returns terms and one more tensor: gives the sum of the terms, and the other.

    On CUDA the terms are added up outside: the compiler decides how to add up by the first tensor that it sees, and a
    way that is right for a small one takes hundreds of times as long for a large one.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, Tensor]]) -> None:
        def summed(*arguments: Tensor) -> tuple[Tensor, Tensor]:
            terms, other = function(*arguments)
            return terms.sum(), other

        self._terms, self._summed = Fused(function), Fused(summed)

    def __call__(self, first: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
        if first.is_cuda:
            terms, other = self._terms(first, *others)
            return terms.sum(), other
        found: tuple[Tensor, Tensor] = self._summed(first, *others)
        return found


def _options() -> dict[str, Any] | None:
    """The compiler makes no choice between ways to add up by how fast each runs now."""
    from torch._inductor import config

    return {"deterministic": True} if hasattr(config, "deterministic") else None


@lru_cache(maxsize=64)
def bounds(low: int, high: int, device: torch.device) -> Tensor:
    """[2] float32: the ends of an integer range."""
    return constants([low, high], torch.float32, device)


def constants(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A few numbers as a 1-D tensor on the device, which the host does not wait for."""
    made = torch.tensor(values, dtype=dtype)
    return made.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else made.to(device)


def dense(x: Tensor) -> Tensor:
    """x, copied if its elements do not fill one block of memory (in any order of dimensions)."""
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return x.contiguous()
            expected *= size
    return x


def like(x: Tensor, model: Tensor) -> Tensor:
    """x with the memory layout of `model`."""
    if x.stride() == model.stride():
        return x
    return torch.empty_like(model, dtype=x.dtype).copy_(x)


def flat(x: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
    """The memory of a dense x, in order, as a 1-D tensor (or row-major in `shape`), outside autograd.

    `.data` makes it forget that it is a view: the compiler would look at what it is a view of, and compile anew for
    every number of dimensions there.
    """
    return x.as_strided((x.numel(),), (1,)).view(shape or -1).data
