"""Compensated start: codes, steps and biases of a block's layers in closed form, see `brecq.quant.compensate`.

The layers are done in the order of the program, each on the input that it gets from those before it, as they are then.
"""

from __future__ import annotations

import torch

from brecq.graph.geometry import geometry_of
from brecq.quant.compensate import compensate, together
from brecq.quant.fake_quant import Start
from brecq.reconstruct.initialize.layer_inputs import layer_inputs, readers
from brecq.reconstruct.learnables import make_room
from brecq.reconstruct.site import Site

DISTRUST = 32.0
"""How fast the damping grows where patches are few for the weights of an output channel: it doubles at one weight for
so many patches."""

FINE = 4
"""Bits of weights from which on what they cost is small, and not the most of what an input has lost."""

NOISY = 7
"""Bits of activations up to which, with such weights, what an input has lost is mostly rounding noise."""

ENOUGH = 50
"""Steps a block that correct what a start can leave to them."""


@torch.no_grad()
def compensated_weights(site: Site) -> None:
    """Set codes and grids of the block's weights, and the biases beside them; weights with a start already keep it."""
    layers = readers(site.block.module)
    values, solved, share = dict(site.mine.biases.values()), [], _correction(site)
    for module, weight in site.mine.weights.values():
        if module.codes is not None or module.start is not None or module not in layers:
            continue
        uses = layers[module]
        geometry = geometry_of(uses[0])
        rows = geometry.rows(weight)
        inputs = layer_inputs(site, uses, rows)
        for bias, one in inputs.items():
            inputs[bias] = (one.central() if bias in values else one).corrected(share)
        whole = together(list(inputs.values()))
        damping = site.recipe.damping * (1 + DISTRUST * rows.shape[2] / whole.count)
        solution = compensate(weight, geometry, whole, module.grid, symmetric=module.symmetric, damping=damping)
        module.grid, module.codes = solution.grid, solution.codes
        solved.append((module, solution))
        quantized = geometry.rows(solution.grid.dequantize(solution.codes))
        for bias, one in inputs.items():
            if bias in values:
                bias.learned = values[bias] + one.bias_shift(rows, quantized).float()
    make_room(site.block.module)
    for module, solution in solved:
        module.start = Start(solution.weight, module.integers(solution.weight))


def _correction(site: Site) -> float:
    """`Recipe.correction`, or what it is by default (docs/results.md, "What recipes are chosen by")."""
    if site.recipe.correction is not None:
        return site.recipe.correction
    fine = site.streams.weight_bits >= FINE
    if not fine and not site.streams.quantizes_activations:
        return 1.0
    noisy = fine and site.streams.activation_bits <= NOISY
    return 0.0 if noisy and site.recipe.steps >= ENOUGH else 0.5
