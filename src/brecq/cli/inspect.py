"""`brecq inspect`: the blocks of a model and what would be quantized; changes nothing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from brecq.cli import options as o
from brecq.cli.command import Without, command
from brecq.cli.inputs import in_one_size, override_preprocessing, tell, which_parts
from brecq.cli.parsing import require_data, require_path
from brecq.cli.render import block_table, losses_table, make_console, scope_table, short_count
from brecq.config import QuantConfig
from brecq.errors import ConfigError

if TYPE_CHECKING:
    from brecq.forward import Inputs
    from brecq.sources import Source

SHOWN = 20
"""Tensors in the table of losses, without --full."""


PRODUCTS = {
    "matmul", "mm", "bmm", "baddbmm", "einsum", "dot", "scaled_dot_product_attention", "bilinear", "lstm", "gru",
    "rnn_tanh", "rnn_relu",
}  # fmt: skip
"""Operators that multiply and accumulate besides: of activations with each other, or step by step."""

OF_RUNS = ("method", "recipe", "autocast", "memory_budget", "class_axis", "outputs", "auto_high_precision", "seed")
"""Settings of how a network is learned, which change nothing of what is shown here."""


@command
def inspect(
    spec: o.Spec,
    config: Annotated[QuantConfig, Without(OF_RUNS)],
    checkpoint: o.Checkpoint,
    changes: o.Changes,
    examples: o.Examples,
    submodule: o.Submodules = None,
    sensitivity: Annotated[
        bool,
        typer.Option(
            "--sensitivity",
            help="Also measure what each quantized tensor loses alone at these bits, with weights rounded to nearest, "
            "on 32 samples of --data; the worst first.",
        ),
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="List every op of the scope, not only a summary.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, always in full.")] = False,
) -> None:
    """Show the blocks of MODEL and what would be quantized where; changes nothing.

    brecq inspect timm:mobilenetv2_100

    brecq inspect timm:mobilenetv2_100 --sensitivity --data DIR -w 4 -a 4
    """
    require_path("--weights", checkpoint.weights, file=True)
    require_data("--data", examples.data)
    if sensitivity and examples.data is None:
        raise ConfigError("--sensitivity is measured on real inputs; give some with --data PATH")

    import brecq
    from brecq.reconstruct.alone import outliers, remedy
    from brecq.sources import load_source

    source = load_source(spec, checkpoint.weights, trust_pickle=checkpoint.trust_pickle, pretrained=sensitivity)
    inputs = choose_inputs(source, changes, examples.data, 32 if sensitivity else 2)
    parts = which_parts(tuple(submodule or ()), source)
    inspection = brecq.inspect(source.model, inputs, config, **parts, sensitivity=sensitivity)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(inspection), indent=2))
        return
    console = make_console()
    tell(console, "model", source.name)
    tell(console, "input", describe_inputs(inputs))
    parameters = sum(block.parameters for block in inspection.blocks)
    macs = sum(block.macs for block in inspection.blocks)
    others = sorted({entry.kind for entry in inspection.scope} & PRODUCTS)
    beside = f" (not counted: {', '.join(others)})" if others else ""
    counts = f"{short_count(macs)} multiply-accumulates a sample in convolutions and linear layers{beside}"
    tell(console, "in all", f"{short_count(parameters)} parameters, {counts}")
    console.print(block_table(inspection.blocks))
    console.print(scope_table(inspection.scope, full=full))
    if sensitivity:
        console.print(losses_table(inspection.losses, None if full else SHOWN))
        for each in outliers(inspection.losses):
            tell(console, "too much", f"{each.kind} {each.tensor}: {remedy(each)}, or --auto-high-precision")


def choose_inputs(source: Source, changes: o.Changes, data: Path | None, count: int = 2) -> Inputs:
    """`count` samples of `data`, else random images [2, C, *size], else the model's example inputs."""
    import torch

    inputs, size = source.example_inputs, changes.size
    if data is not None:
        from brecq.data import Form, load_data

        preprocessing = in_one_size(override_preprocessing(source.preprocessing, changes.given(), inputs))
        return load_data(data, preprocessing, count, 0, form=Form(model=source.model)).arguments()
    other = next((name for name in changes.given() if name != "size"), None)
    if other is not None:
        option = "--pad-multiple" if other == "multiple" else f"--{other}"
        raise ConfigError(f"{option} says how pictures become inputs; give some with --data PATH, or drop it")
    if size is None:
        if not inputs:
            raise ConfigError(
                "the model does not say what inputs it takes; give some with --data FILE.npz (several by their names: "
                "--data FILE.npz:input_ids,attention_mask), or --size for images"
            )
        return inputs
    if any(tensor.dim() != 4 for tensor in inputs):
        shapes = ", ".join(str(list(tensor.shape)) for tensor in inputs)
        raise ConfigError(f"--size is for networks that take images [N, C, H, W]; this one takes {shapes}")
    return tuple(torch.rand(2, tensor.shape[1], *size) for tensor in inputs) or (torch.rand(2, 3, *size),)


def describe_inputs(inputs: Inputs) -> str:
    """`3 × 224 × 224`, or `input_ids 128, attention_mask 128`."""
    from brecq.forward import tensors

    shapes = [" × ".join(map(str, tensor.shape[1:])) or "one number" for tensor in tensors(inputs)]
    names = list(inputs) if isinstance(inputs, Mapping) else [""] * len(shapes)
    return ", ".join(f"{name} {shape}".strip() for name, shape in zip(names, shapes, strict=True))
