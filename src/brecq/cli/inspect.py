"""`brecq inspect`: the blocks of a model and what would be quantized; changes nothing."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

import typer

from brecq.cli import options as o
from brecq.cli.command import Without, command
from brecq.cli.inputs import tell
from brecq.cli.parsing import require_path
from brecq.cli.render import block_table, make_console, scope_table, short_count
from brecq.config import QuantConfig
from brecq.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


@command
def inspect(
    spec: o.Spec,
    config: Annotated[QuantConfig, Without(("method", "recipe", "autocast", "memory_budget", "class_axis", "seed"))],
    checkpoint: o.Checkpoint,
    changes: Annotated[o.Changes, Without(("mean", "std", "resize", "interpolation", "color"))],
    submodule: o.Submodule = None,
    full: Annotated[bool, typer.Option("--full", help="List every op of the scope, not only a summary.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, always in full.")] = False,
) -> None:
    """Show the blocks of MODEL and what would be quantized where; changes nothing.

    brecq inspect timm:mobilenetv2_100
    """
    require_path("--weights", checkpoint.weights, file=True)

    import brecq
    from brecq.sources import load_source

    source = load_source(spec, checkpoint.weights, trust_pickle=checkpoint.trust_pickle, pretrained=False)
    inputs = choose_inputs(source.example_inputs, changes.size)
    inspection = brecq.inspect(source.model, inputs, config, submodule=submodule)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(inspection), indent=2))
        return
    console = make_console()
    tell(console, "model", source.name)
    tell(console, "input", ", ".join(" × ".join(map(str, tensor.shape[1:])) for tensor in inputs))
    parameters = sum(block.parameters for block in inspection.blocks)
    macs = sum(block.macs for block in inspection.blocks)
    tell(console, "in all", f"{short_count(parameters)} parameters, {short_count(macs)} multiply-accumulates a sample")
    console.print(block_table(inspection.blocks))
    console.print(scope_table(inspection.scope, full=full))


def choose_inputs(inputs: tuple[Tensor, ...], size: tuple[int, int] | None) -> tuple[Tensor, ...]:
    """The model's example inputs, or random images [2, C, *size] in their place."""
    import torch

    if size is None:
        if not inputs:
            raise ConfigError("the model does not say what inputs it takes; give --size for images")
        return inputs
    if any(tensor.dim() != 4 for tensor in inputs):
        shapes = ", ".join(str(list(tensor.shape)) for tensor in inputs)
        raise ConfigError(f"--size is for networks that take images [N, C, H, W]; this one takes {shapes}")
    return tuple(torch.rand(2, tensor.shape[1], *size) for tensor in inputs) or (torch.rand(2, 3, *size),)
