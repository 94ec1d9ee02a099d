"""The closed-form start inside blocks: which inputs it sees, in which order, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from brecq.quant.compensate import Inputs, Moments, Samples, form
from brecq.quant.fake_quant import Start
from brecq.reconstruct.cache import ActivationCache
from brecq.reconstruct.initialize import compensated, initialize
from brecq.reconstruct.initialize.compensated import compensated_weights
from brecq.reconstruct.initialize.layer_inputs import layer_inputs, readers
from brecq.reconstruct.learnables import learnables
from brecq.reconstruct.optimize import Reconstruction
from brecq.reconstruct.sampler import hold_out
from brecq.reconstruct.site import Site
from brecq.reconstruct.streams import Streams

CPU = torch.device("cpu")


def site_of(lab, name: str, index: int, *, inputs: tuple[Tensor, ...] | None = None, **changes) -> Site:
    """Block `index` of a network with its ranges set, those before it rounded to nearest."""
    config = lab.config(**changes)
    _, network = lab.network(config, name)
    samples = lab.inputs(name, 64) if inputs is None else inputs
    streams = Streams(network, samples, ActivationCache(CPU))
    held, done = hold_out(len(samples[0]), 0.125, 0), set()
    for number, block in enumerate(network.blocks):
        streams.advance("float", block)
        site = Site(block, learnables(block.module, done), streams, config.recipe, held)
        initialize(site, "joint")
        if number == index:
            return site
        streams.advance("quantized", block)
        done.update(site.mine.named().values())
    raise AssertionError(index)


def error(site: Site) -> float:
    return Reconstruction(site, "joint", 0, held=site.held).hard_error().relative


@pytest.mark.parametrize(
    ("name", "index", "bits", "most"),
    [
        ("ResNet", 1, (2, 32), 0.75),
        ("ResNet", 3, (2, 8), 0.75),
        ("MobileNet", 1, (2, 32), 0.85),
        ("ViT", 1, (3, 8), 0.85),
        ("Signal", 0, (2, 8), 0.95),
        ("Wide", 1, (2, 8), 0.85),
    ],
)
def test_below_rounding_to_nearest(lab, name: str, index: int, bits: tuple[int, int], most: float) -> None:
    """On samples that it has not seen, in convolutions of several kinds and linear layers."""
    site = site_of(lab, name, index, weights=bits[0], activations=bits[1], first_last=None)
    nearest = error(site)
    compensated_weights(site)
    assert error(site) < most * nearest
    assert all(module.codes is not None for module, _ in site.mine.weights.values())
    assert all(bias.learned is not None for bias, _ in site.mine.biases.values())


def test_each_layer_sees_what_those_before_it_make(lab, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    solve = compensated.compensate
    monkeypatch.setattr(
        compensated, "compensate", lambda *args, **named: seen.append(args[2]) or solve(*args, **named)
    )
    site = site_of(lab, "ResNet", 1, correction=1.0)
    compensated_weights(site)
    _, (second, weight) = site.mine.weights.values()
    uses = readers(site.block.module)[second]
    (again,) = layer_inputs(site, uses, weight.flatten(1)[None]).values()
    assert torch.equal(again.central().gram, seen[1].gram)
    assert torch.equal(again.central().cross, seen[1].cross)
    assert not torch.equal(seen[1].gram, seen[1].cross)


def inputs_of(site: Site, name: str) -> Inputs:
    """What the closed form of a weight sees, where one bias is beside all of its uses."""
    module, weight = next(value for key, value in site.mine.weights.items() if name in key)
    uses = readers(site.block.module)[module]
    (found,) = layer_inputs(site, uses, weight.flatten(1)[None]).values()
    return found


def weights_of(site: Site) -> list[str]:
    return list(site.mine.weights)


def test_patches_are_kept_where_they_are_few(lab) -> None:
    site = site_of(lab, "Wide", 1)
    found = inputs_of(site, weights_of(site)[0])
    assert isinstance(found, Samples)
    assert found.count == 64 - len(site.held)  # all that is learned from


@pytest.mark.parametrize("name", ["ViT", "ResNet"])
def test_of_too_many_patches_some_of_every_sample_are_kept(lab, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(form, "WIDEST", 1)
    monkeypatch.setattr(form, "FEW", 1)
    monkeypatch.setattr(form, "MOST", 200)
    site = site_of(lab, name, 1)
    nearest = error(site)
    for weight in weights_of(site):
        found = inputs_of(site, weight)
        assert isinstance(found, Samples)
        assert 100 < found.count < 260
    compensated_weights(site)
    assert error(site) < nearest


def test_samples_held_out_are_not_looked_at(lab) -> None:
    inputs = lab.inputs("ResNet", 64)
    other = tuple(value.clone() for value in inputs)
    for value in other:
        value[hold_out(64, 0.125, 0)] *= 3
    found = []
    for data in (inputs, other):
        site = site_of(lab, "ResNet", 1, inputs=data, weights=2, activations=32)
        compensated_weights(site)
        found.append([module.codes for module, _ in site.mine.weights.values()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_start_that_was_handed_over_is_kept(lab) -> None:
    site = site_of(lab, "ResNet", 1)
    module, weight = next(iter(site.mine.weights.values()))
    start = Start(weight, module.integers(weight))
    module.start = start
    compensated_weights(site)
    assert module.start is start
    assert module.codes is None


def test_the_instant_recipe_makes_no_step(lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_step(*_: object) -> None:
        raise AssertionError("a gradient step was made")

    monkeypatch.setattr(torch.optim.Adam, "step", no_step)
    run = lab.run(recipe="instant", weights=2, activations=8, steps=0)
    assert [report.steps for report in run.reports] == [0] * len(run.reports)
    assert all(report.error_after < report.error_before for report in run.reports if report.error_before > 1e-3)
    assert lab.same(run, lab.run(recipe="instant", weights=2, activations=8, steps=0))


@pytest.mark.parametrize(
    ("weights", "activations", "steps", "share"),
    [
        (2, 32, 2, 1.0),
        (3, 16, 2, 1.0),
        (4, 32, 2, 0.5),
        (4, 8, 2, 0.5),
        (4, 8, 50, 0.5),
        (4, 4, 2, 0.5),
        (4, 4, 50, 0.0),
        (2, 4, 50, 0.5),
    ],
)
def test_how_much_of_its_inputs_error_a_layer_corrects(
    lab, weights: int, activations: int, steps: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    corrected = Moments.corrected
    monkeypatch.setattr(Moments, "corrected", lambda self, share: seen.append(share) or corrected(self, share))
    site = site_of(lab, "ResNet", 1, weights=weights, activations=activations, steps=steps)
    compensated_weights(site)
    assert set(seen) == {share}


def test_weights_alone_are_corrected_in_full(lab) -> None:
    """In the first stage of two, where activations are in float whatever their bits."""
    first, same = (
        lab.run(compensate=True, correction=value, joint=False, weights=3, activations=4, steps=2, samples=32)
        for value in (None, 1.0)
    )
    assert lab.same(first, same)
