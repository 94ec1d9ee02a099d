"""What a run over the blocks of a network works with, from its start to its end."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from brecq.checkpoint.resume import RunState
from brecq.config import QuantConfig
from brecq.partition.blocks import Network
from brecq.progress import Progress
from brecq.ranks import Share
from brecq.reconstruct.cache import ActivationCache
from brecq.reconstruct.memory import reuse_freed
from brecq.reconstruct.sampler import hold_out


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        inputs: of the network, each [N, ...] on the CPU: this process's. labels: theirs, int64 [N, ...], if there are
            any. received: what the quantized network gets in their place, where what runs before it is quantized, too.
        share: which of all samples these are.
        cache: where activations wait. state: what was finished before, and is saved; `None` saves nothing.
    """

    network: Network
    inputs: tuple[Tensor, ...]
    config: QuantConfig
    cache: ActivationCache
    labels: Tensor | None = None
    state: RunState | None = None
    progress: Progress = field(default_factory=Progress)
    received: tuple[Tensor, ...] | None = None
    part: Share | None = None

    @property
    def share(self) -> Share:
        return Share(len(self.inputs[0])) if self.part is None else self.part

    @cached_property
    def held(self) -> Tensor:
        """Indices of the samples that nothing is learned from."""
        return hold_out(self.share.samples, self.config.recipe.held_out, self.seed("held out"))

    @contextmanager
    def working(self) -> Iterator[None]:
        """Inside, memory is kept for the next step; afterwards the cache is empty."""
        try:
            with reuse_freed(self.cache.device), _steady_attention(self.cache.device):
                yield
        finally:
            self.cache.close()

    @property
    def autocast(self) -> bool:
        """Whether to learn in bfloat16."""
        return self.config.autocast == "bf16"

    def seed(self, *parts: object) -> int:
        """A seed for one purpose."""
        return seed_of(self.config.seed, *parts)


def _steady_attention(device: torch.device) -> AbstractContextManager[None]:
    """On CUDA the fused kernels of attention add up in any order, unless whatever does is an error: it is computed
    step by step."""
    found: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH) if device.type == "cuda" else nullcontext()
    return found


def seed_of(seed: int, *parts: object) -> int:
    """A seed for one purpose, the same whatever ran before."""
    text = ":".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
