"""What is asked for of a run, and where it works."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torchao.quantization.pt2e.quantizer import Quantizer

from brecq.config import QuantConfig
from brecq.errors import ConfigError
from brecq.placement.plan import End
from brecq.precision.allocation import BitAllocation
from brecq.progress import Progress

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Request:
    """The arguments of `brecq.quantize`, settled. `part`: of a part of a network, the ends it holds."""

    config: QuantConfig
    quantizer: Quantizer | None = None
    allocation: BitAllocation | None = None
    learned: Mapping[str, Tensor] = field(default_factory=dict)
    run_dir: Path | str | None = None
    resume: bool = False
    progress: Progress = field(default_factory=Progress)
    device: torch.device = CPU
    part: frozenset[End] | None = None


def settled(config: QuantConfig, quantizer: Quantizer | None, allocation: BitAllocation | None) -> QuantConfig:
    """The configuration with the bits of a search.

    Raises:
        ConfigError: two of them decide the same.
    """
    if allocation is not None and quantizer is not None:
        raise ConfigError("allocation and quantizer both decide on bits; give one of them")
    if config.target is not None and quantizer is not None:
        raise ConfigError("target and quantizer both decide what is quantized; give one of them")
    if config.auto_high_precision and quantizer is not None:
        raise ConfigError("auto_high_precision and quantizer both decide on bits; give one of them")
    return config if allocation is None else allocation.apply(config)
