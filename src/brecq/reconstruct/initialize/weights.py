"""Weights: scale and zero point with the smallest Lp error of the weight itself."""

from __future__ import annotations

from brecq.reconstruct.site import Site


def weight_ranges(site: Site) -> None:
    """Set the grids of the block's weights by range search, see `brecq.quant.ranges`."""
    for module, weight in site.mine.weights.values():
        if not module.initialized:
            module.initialize(weight, site.recipe.range_norm, site.recipe.range_candidates)
