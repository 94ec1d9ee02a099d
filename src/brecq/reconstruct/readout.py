"""Numbers of a device, read without waiting for it: the host goes on, and tells them when they have arrived."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Readout:
    """Hands a number on: at once on the CPU; from a CUDA device when the next one is put, or at the end."""

    def __init__(self) -> None:
        self._waiting: tuple[Tensor, torch.cuda.Event, Callable[[float], None]] | None = None

    def put(self, value: Tensor, tell: Callable[[float], None]) -> None:
        """`tell` receives `value`, 0-dim."""
        self.close()
        if value.device.type != "cuda":
            tell(value.item())
            return
        copied = value.detach().to("cpu", non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._waiting = copied, event, tell

    def close(self) -> None:
        """Tell what is waiting."""
        if self._waiting is not None:
            (copied, event, tell), self._waiting = self._waiting, None
            event.synchronize()
            tell(copied.item())
