"""The options that several commands share, and what they amount to."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from brecq.cli.parsing import (
    distillation_settings,
    parse_blocks,
    parse_bytes,
    parse_first_last,
    parse_numbers,
    parse_recipe,
    parse_resize,
    parse_rule,
    parse_size,
)
from brecq.config import Autocast, Granularity, Loss, Method, Placement, QuantConfig, Recipe, Scheme

DEFAULTS = QuantConfig()
FAST = DEFAULTS.recipe.name

_WHAT, _HOW, _MODEL, _DATA, _RUN = (
    "What is quantized", "How it is learned", "The model", "The data", "The run",
)  # fmt: skip

# What is quantized
WeightBits = Annotated[
    int,
    typer.Option("-w", "--weight-bits", metavar="BITS", help="Bits per weight: 2 to 8, or 32.", rich_help_panel=_WHAT),
]
ActivationBits = Annotated[
    int,
    typer.Option(
        "-a", "--activation-bits", metavar="BITS", help="Bits per activation: 2 to 8, or 32.", rich_help_panel=_WHAT
    ),
]
FirstLast = Annotated[
    str,
    typer.Option(
        metavar="BITS|none",
        help="Bits of the first and last layer; none treats them as any other.",
        rich_help_panel=_WHAT,
    ),
]
PlacementOption = Annotated[
    Placement,
    typer.Option(
        help="output: after activation functions and additions (the paper); "
        "input: only the inputs of convolutions and linear layers.",
        rich_help_panel=_WHAT,
    ),
]
WeightScheme = Annotated[
    Scheme, typer.Option(help="auto is symmetric at 8 bits, asymmetric below.", rich_help_panel=_WHAT)
]
ActivationScheme = Annotated[Scheme, typer.Option(help="auto is asymmetric.", rich_help_panel=_WHAT)]
Rules = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATTERN SETTINGS",
        help="Override layers by name, e.g. --set 'layer4.*' w=8 or --set head float; repeatable, the last one wins.",
        rich_help_panel=_WHAT,
    ),
]
GranularityOption = Annotated[Granularity, typer.Option(help="What is reconstructed as one.", rich_help_panel=_HOW)]
Blocks = Annotated[
    list[str] | None,
    typer.Option(
        "--block",
        metavar="NAME=PATTERN,…",
        help="A block of your own, e.g. stem='conv1,layer1.*'; repeatable, the rest is partitioned automatically.",
        rich_help_panel=_HOW,
    ),
]

# How it is learned
MethodOption = Annotated[Method, typer.Option(help="rtn: rounding to nearest, the baseline.", rich_help_panel=_HOW)]
RecipeName = Annotated[
    str, typer.Option("--recipe", metavar="NAME", help="fast, paper or thorough.", rich_help_panel=_HOW)
]
RecipeSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--recipe-set",
        metavar="KEY=VALUE",
        help=f"Any setting of the recipe; repeatable: {', '.join(f.name for f in dataclasses.fields(Recipe))}.",
        rich_help_panel=_HOW,
    ),
]
Steps = Annotated[int | None, typer.Option(metavar="N", help="Short for --recipe-set steps=N.", rich_help_panel=_HOW)]
BatchSize = Annotated[
    int | None, typer.Option(metavar="N", help="Short for --recipe-set batch_size=N.", rich_help_panel=_HOW)
]
QDrop = Annotated[
    float | None,
    typer.Option("--qdrop", metavar="P", help="Short for --recipe-set qdrop=P.", rich_help_panel=_HOW),
]
LossOption = Annotated[Loss | None, typer.Option(help="Short for --recipe-set loss=….", rich_help_panel=_HOW)]
AutocastOption = Annotated[Autocast, typer.Option(help="bf16 where it is faster.", rich_help_panel=_HOW)]
MemoryBudget = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Memory for cached activations, e.g. 4GB; the rest goes to files. Default: half of what is free.",
        rich_help_panel=_RUN,
    ),
]
Seed = Annotated[int, typer.Option(metavar="N", help="Of every random choice.", rich_help_panel=_RUN)]

# The model
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        metavar="FILE",
        help="Checkpoint to load into the model (.pt, .pth, .safetensors).",
        rich_help_panel=_MODEL,
    ),
]
TrustPickle = Annotated[
    bool,
    typer.Option("--trust-pickle", help="Load checkpoints that run code (only your own).", rich_help_panel=_MODEL),
]
Submodule = Annotated[
    str | None, typer.Option(metavar="NAME", help="Quantize this submodule alone.", rich_help_panel=_MODEL)
]

# The data
Mean = Annotated[
    str | None,
    typer.Option(metavar="R,G,B", help="Override the mean of pixels in 0 to 1.", rich_help_panel=_DATA),
]
Std = Annotated[
    str | None, typer.Option(metavar="R,G,B", help="Override their standard deviation.", rich_help_panel=_DATA)
]
Size = Annotated[
    str | None, typer.Option(metavar="N|H,W", help="Override the height and width.", rich_help_panel=_DATA)
]
Resize = Annotated[
    str | None,
    typer.Option(
        metavar="N|H,W|none",
        help="Override the short side (or both) before the center crop; none scales straight to the size.",
        rich_help_panel=_DATA,
    ),
]
Interpolation = Annotated[
    Literal["bilinear", "bicubic", "nearest"] | None,
    typer.Option(help="Override the interpolation.", rich_help_panel=_DATA),
]
Color = Annotated[
    Literal["RGB", "BGR"] | None, typer.Option(help="Override the order of channels.", rich_help_panel=_DATA)
]

DistillPreset = Annotated[
    str | None,
    typer.Option(
        "--distill-preset",
        metavar="NAME",
        help="fast (the default), full, or leaves: pictures of random shapes.",
        rich_help_panel=_DATA,
    ),
]
DistillSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--distill-set",
        metavar="KEY=VALUE",
        help=f"Any setting of the distillation; repeatable: {', '.join(distillation_settings())}.",
        rich_help_panel=_DATA,
    ),
]

# The run
Device = Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1, …", rich_help_panel=_RUN)]
Threads = Annotated[int | None, typer.Option(metavar="N", help="CPU threads.", rich_help_panel=_RUN)]


def config_from_options(
    *,
    weight_bits: int = DEFAULTS.weights,
    activation_bits: int = DEFAULTS.activations,
    first_last: str = str(DEFAULTS.first_last),
    placement: Placement = DEFAULTS.placement,
    weight_scheme: Scheme = DEFAULTS.weight_scheme,
    activation_scheme: Scheme = DEFAULTS.activation_scheme,
    rules: Sequence[str] | None = None,
    granularity: Granularity = DEFAULTS.granularity,
    blocks: Sequence[str] | None = None,
    method: Method = DEFAULTS.method,
    recipe: str = FAST,
    recipe_settings: Sequence[str] | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    qdrop: float | None = None,
    loss: Loss | None = None,
    autocast: Autocast = DEFAULTS.autocast,
    memory_budget: str | None = None,
    seed: int = DEFAULTS.seed,
) -> QuantConfig:
    """The configuration that the command line's text asks for; `ConfigError` names what cannot be read."""
    shortcuts = {"steps": steps, "batch_size": batch_size, "qdrop": qdrop, "loss": loss}
    return QuantConfig(
        weights=weight_bits,
        activations=activation_bits,
        first_last=parse_first_last(first_last),
        placement=placement,
        weight_scheme=weight_scheme,
        activation_scheme=activation_scheme,
        rules=tuple(parse_rule(rule) for rule in rules or ()),
        granularity=granularity,
        blocks=parse_blocks(blocks or ()) or None,
        method=method,
        recipe=parse_recipe(recipe, recipe_settings or (), {k: v for k, v in shortcuts.items() if v is not None}),
        autocast=autocast,
        memory_budget=None if memory_budget is None else parse_bytes(memory_budget),
        seed=seed,
    )


def preprocessing_changes(
    *,
    mean: str | None = None,
    std: str | None = None,
    size: str | None = None,
    resize: str | None = None,
    interpolation: str | None = None,
    color: str | None = None,
) -> dict[str, Any]:
    """The fields of a `Preprocessing` that the command line overrides."""
    changes: dict[str, Any] = {}
    if mean is not None:
        changes["mean"] = parse_numbers("--mean", mean)
    if std is not None:
        changes["std"] = parse_numbers("--std", std)
    if size is not None:
        changes["size"] = parse_size(size)
    if resize is not None:
        changes["resize"] = parse_resize(resize)
    if interpolation is not None:
        changes["interpolation"] = interpolation
    if color is not None:
        changes["color"] = color
    return changes
