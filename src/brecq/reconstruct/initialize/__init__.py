"""Initializers: ways of choosing the grids, and where learning starts, of a block's fake-quantizers; one a file.

An initializer is a function of a `Site`: the block, its own fake-quantizers, the streams (float inputs and targets,
quantized inputs, for all samples), the recipe. It may

- set `quantizer.grid` of weights and activations that are not `initialized` yet,
- settle on a weight's codes, `quantizer.codes = codes` (int8): the block has them, whether it is learned or not,
- say where AdaRound starts, `quantizer.start = Start(weight, codes)`: another weight to round, codes to start at,
- settle on a bias, `quantizer.learned = value`, and set the `quantizer.unit` that it is learned in.

They run in the order of `initializers`, each on what those before it left. A new one is a file here, a line in
`initializers`, and its option in `brecq.config`; `brecq.reconstruct.passes` calls them block by block. Quantizers that
several blocks share have their ranges before the first block, see `shared`.
"""

from __future__ import annotations

from collections.abc import Callable

from brecq.config import Recipe
from brecq.reconstruct.initialize.activations import activation_ranges
from brecq.reconstruct.initialize.biases import bias_units
from brecq.reconstruct.initialize.weights import weight_ranges
from brecq.reconstruct.learnables import make_room
from brecq.reconstruct.site import Site, Stage

Initializer = Callable[[Site], None]


def initializers(recipe: Recipe, stage: Stage) -> list[Initializer]:
    """The recipe's, in order, for a pass that learns what `stage` says."""
    found: list[Initializer] = []
    if stage != "activations":
        found.append(weight_ranges)
    if stage in ("joint", "weights") and (recipe.bias_lr or recipe.tuning):
        found.append(bias_units)
    if stage != "weights":
        found.append(activation_ranges)
    return found


def initialize(site: Site, stage: Stage) -> None:
    """Initialize what a pass needs for the first time."""
    for initializer in initializers(site.recipe, stage):
        initializer(site)
    make_room(site.block.module)
