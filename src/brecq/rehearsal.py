"""`refusal`: whether a target's format will take a network, found out by exporting it once before any work."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from brecq import ranks
from brecq.config import QuantConfig
from brecq.deploy.formats import export, find, option_types
from brecq.errors import BrecqError, ExportError
from brecq.forward import Inputs, like, tensors
from brecq.targets import load

SAMPLES = 4


def refusal(quantize: Callable[..., Any], model: nn.Module, inputs: Inputs, config: QuantConfig) -> str:
    """Why the export for `config.target` will refuse this network, in a line; empty if it takes it.

    The network is rounded to nearest and written to a temporary folder. What depends on the codes that will be learned
    does not show; operators, widths and shapes do.

    Args:
        quantize: `brecq.quantize`. inputs: a sample or more. config: with a target.

    Raises:
        ConfigError: as `quantize`, of what is asked for.
    """
    assert config.target is not None
    format = find(load(config.target).format)
    try:
        known = option_types(format.name)
    except ExportError:
        return ""  # its packages are not here: it will be exported elsewhere
    # where samples of a batch are mixed the export wants to know of how many, and is told then
    options = {**({"batch": 2} if "batch" in known else {}), **load(config.target).options}
    rounded = config.replace(method="rtn", auto_high_precision=False)
    samples = like(inputs, [_varied(value) for value in tensors(inputs)])
    values = [samples] if isinstance(samples, dict) else [tuple(samples)]
    with ranks.alone(), warnings.catch_warnings(), TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        result = quantize(model, values, rounded, device="cpu")
        try:
            export(result, Path(folder) / f"network{format.suffix}", format.name, **options)
        except BrecqError as error:
            return str(error)
    return ""


def _varied(value: Tensor) -> Tensor:
    """A few samples that are not all alike: of constants no range can be told."""
    if value.is_floating_point() and bool((value == value.reshape(-1)[0]).all()):
        generator = torch.Generator().manual_seed(0)
        return torch.randn(SAMPLES, *value.shape[1:], generator=generator, dtype=torch.float32).to(value.dtype)
    return value[:SAMPLES] if len(value) > 1 else value.repeat(2, *[1] * (value.dim() - 1))
