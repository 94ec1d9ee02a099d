"""Initializers: each is no worse than what it builds on, and what it leaves is what learning starts from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from brecq.config import QuantConfig, Recipe
from brecq.pipeline import quantize
from brecq.quant import affine
from brecq.quant.fake_quant import Start, WeightFakeQuantize
from brecq.ranks import Share
from brecq.reconstruct import initialize as initializing
from brecq.reconstruct.cache import ActivationCache
from brecq.reconstruct.initialize import initialize
from brecq.reconstruct.initialize.shared import shared_quantizers, shared_ranges
from brecq.reconstruct.learnables import learnables
from brecq.reconstruct.optimize import Reconstruction
from brecq.reconstruct.site import Site
from brecq.reconstruct.streams import Streams

CPU = torch.device("cpu")


def site_of(lab, index: int = 0, **changes) -> Site:
    """Block `index` of the ResNet, with those before it as they are in float."""
    config = lab.config(**changes)
    _, network = lab.network(config)
    streams = Streams(network, lab.inputs(), ActivationCache(CPU))
    done: set[torch.nn.Module] = set()
    for number, block in enumerate(network.blocks[: index + 1]):
        streams.advance("float", block)
        site = Site(block, learnables(block.module, done), streams, config.recipe)
        if number == index:
            return site
        initialize(site, "rtn")
        streams.advance("quantized", block)
        done.update(site.mine.named().values())
    raise AssertionError(index)


def lp_error(module: WeightFakeQuantize, w: Tensor, p: float) -> float:
    return (module.grid.dequantize(module.integers(w)) - w).abs().pow(p).sum().item()


def test_every_range_is_set_once(lab) -> None:
    site = site_of(lab)
    initialize(site, "weights")
    modules = list(site.mine.activations.values())
    assert modules
    assert not any(module.initialized for module in modules)
    weight = next(iter(site.mine.weights.values()))[0]
    scale = weight.scale
    initialize(site, "activations")
    assert all(module.initialized for module in modules)
    kept = [module.scale for module in modules]
    initialize(site, "joint")
    assert weight.scale is scale
    assert all(module.scale is old for module, old in zip(modules, kept, strict=True))


@pytest.mark.parametrize("bits", [2, 4])
def test_the_search_of_weights_beats_minimum_to_maximum(lab, bits: int) -> None:
    found = site_of(lab, 1, weights=bits)
    whole = site_of(lab, 1, weights=bits, range_candidates=1)  # nothing but the factor 1
    for site in (found, whole):
        initialize(site, "weights")
    p = found.recipe.range_norm
    for name, (module, w) in found.mine.weights.items():
        assert lp_error(module, w, p) < lp_error(whole.mine.weights[name][0], w, p)


def test_the_search_of_activations_beats_minimum_to_maximum(lab) -> None:
    """On what the block makes of the quantized inputs that it receives."""
    found, whole = site_of(lab, 1), site_of(lab, 1, range_candidates=1)
    for site in (found, whole):
        initialize(site, "joint")
    searched = 0
    for name, module in found.mine.activations.items():
        assert module.scale <= whole.mine.activations[name].scale
        searched += bool(module.scale < whole.mine.activations[name].scale)
    assert searched > 0


def test_ranges_from_the_float_network_cover_every_tensor_that_is_joined(lab) -> None:
    config = lab.config(activations=8)
    graph, network = lab.network(config, "UNet")
    shared = shared_quantizers(network)
    assert len(shared) == 2
    inputs = lab.inputs("UNet", 16)
    shared_ranges(shared, network, inputs, Share(16), config.recipe, CPU)
    seen: dict[torch.nn.Module, list[Tensor]] = {module: [] for module in shared}
    hooks = [m.register_forward_pre_hook(lambda m, a: seen[m].append(a[0])) for m in shared]
    graph(*inputs)
    for hook in hooks:
        hook.remove()
    for module in shared:
        assert len(seen[module]) == 2
        for x in seen[module]:
            rounded = affine.fake_quantize(x, module.scale, module.zero_point, module.range)
            assert (rounded - x).square().mean() < 1e-3 * x.square().mean()


def test_what_an_initializer_settles_on_is_where_a_block_starts(lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes, and another weight to round: the error before learning is theirs, and without learning they stay."""

    def up(site: Site) -> None:
        for module, w in site.mine.weights.values():
            module.codes = (module.integers(w).int() + 1).clamp(module.range.low, module.range.high).to(torch.int8)
            module.start = Start(module.grid.dequantize(module.codes), module.codes)

    nearest = site_of(lab, 1)
    initialize(nearest, "joint")
    usual = initializing.initializers
    monkeypatch.setattr(initializing, "initializers", lambda recipe, stage: [*usual(recipe, stage), up])
    site = site_of(lab, 1)
    initialize(site, "joint")
    chosen = {name: module.codes for name, (module, _) in site.mine.weights.items()}
    learner = Reconstruction(site, "joint", 0)
    before = learner.hard_error().relative
    assert before > Reconstruction(nearest, "joint", 0).hard_error().relative
    outcome = learner.run(0, lambda *_: None)
    assert outcome.before == outcome.after == before
    for name, (module, w) in site.mine.weights.items():
        assert torch.equal(module.integers(w), chosen[name])
        assert not torch.equal(module.integers(w), nearest.mine.weights[name][0].integers(w))
        assert module.start is None


@pytest.mark.parametrize(("share", "by_outputs"), [(1.0, False), (1e-4, True), (0.0, True)])
def test_the_unit_of_biases_is_theirs_or_a_tenth_of_what_the_layer_gives(lab, share: float, by_outputs: bool) -> None:
    site = site_of(lab)
    ((module, bias),) = site.mine.biases.values()
    with torch.no_grad():
        bias.mul_(share)
    initialize(site, "joint")
    (x,) = site.streams.read("float", site.block.inputs, slice(0, 96))
    ((_, weight),) = site.mine.weights.values()
    few = torch.cat([x[unit.rows] for unit in Share(96).units(64)])
    outputs = torch.nn.functional.conv2d(few, weight, bias, padding=1).square().mean().sqrt()
    expected = 0.1 * outputs if by_outputs else bias.square().mean().sqrt()
    torch.testing.assert_close(module.unit, expected, rtol=1e-4, atol=0)


def test_biases_of_zero_are_learned() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 3, 8, 8) + 1  # what rounding adds to a mean, biases can take away
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3)).eval()
    for layer in (net[0], net[2]):
        torch.nn.init.zeros_(layer.bias)
    recipe = Recipe.preset("fast").replace(
        steps=40, tuning=0.0, range_candidates=20, rounding_lr=0.0, compensate=False
    )
    config = QuantConfig(2, 8, first_last=None, recipe=recipe)
    errors = []
    for rate in (0.05, 0.0):
        result = quantize(net, x, replace(config, recipe=recipe.replace(bias_lr=rate)))
        errors.append(result.report.blocks[0].error_after)
    assert errors[0] < 0.8 * errors[1]
