"""The two stages of the authors' code: step sizes learned as a few lines of plain PyTorch learn them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from brecq.config import QuantConfig, Recipe
from brecq.errors import ConfigError
from brecq.quant.fake_quant import Mode, set_mode
from brecq.ranks import Part
from brecq.reconstruct.cache import ActivationCache
from brecq.reconstruct.initialize import initialize
from brecq.reconstruct.learnables import learnables
from brecq.reconstruct.optimize import Reconstruction
from brecq.reconstruct.passes import stages
from brecq.reconstruct.site import Site
from brecq.reconstruct.streams import Streams

SAMPLES, STEPS, RATE = 48, 30, 0.002


def second_stage(lab, **changes) -> tuple[Site, Reconstruction]:
    """The second layer of a network, its weights rounded to nearest, all samples in every batch."""
    config = lab.config(
        recipe="official", granularity="layer", activations=3, batch_size=SAMPLES, range_samples=SAMPLES, step_lr=RATE,
        **changes,
    )  # fmt: skip
    _, network = lab.network(config)
    streams = Streams(network, lab.inputs("ResNet", SAMPLES), ActivationCache(torch.device("cpu")))
    done: set = set()
    for block in network.blocks[:2]:
        streams.advance("float", block)
        site = Site(block, learnables(block.module, done), streams, config.recipe)
        initialize(site, "joint")
        if block is network.blocks[1]:
            return site, Reconstruction(site, "activations", 0)
        streams.advance("quantized", block)
        done.update(site.mine.named().values())
    raise AssertionError


class Code(torch.autograd.Function):
    """The code of a value, straight through the rounding, unless it is clamped (at either end it is not yet)."""

    @staticmethod
    def forward(ctx, steps: Tensor, low: float, high: float) -> Tensor:
        ctx.inside = (steps.round() >= low) & (steps.round() <= high)
        return steps.round().clamp(low, high)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient * ctx.inside, None, None


def by_hand(site: Site, norm: float, inputs: str, schedule: str) -> Tensor:
    """The step after `STEPS` steps of Adam on all samples: LSQ by plain autograd, straight through the rounding."""
    (x,) = site.streams.read(inputs, site.block.inputs, slice(0, SAMPLES))
    (target,) = site.streams.read("float", site.block.targets, slice(0, SAMPLES))
    (quantizer,) = site.mine.activations.values()
    grid = quantizer.grid
    set_mode(site.block.module, Mode.HARD, activations=Mode.FLOAT)
    (out,) = site.block.module(x)
    low, high = grid.range.low - float(grid.zero_point), grid.range.high - float(grid.zero_point)
    step = grid.scale.clone().requires_grad_()
    adam = torch.optim.Adam([step])
    for i in range(STEPS):
        adam.param_groups[0]["lr"] = RATE * ((1 + math.cos(math.pi * i / STEPS)) / 2 if schedule == "cosine" else 1)
        values = Code.apply(out / step, low, high) * step
        loss = (values - target).abs().pow(norm).sum(1).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return step.detach()


@pytest.mark.parametrize(
    ("norm", "inputs", "schedule"),
    [(2.4, "float", "cosine"), (2.0, "float", "cosine"), (2.4, "quantized", "cosine"), (2.4, "float", "constant")],
)
def test_steps_are_those_of_plain_pytorch(lab, norm: float, inputs: str, schedule: str) -> None:
    changes = {"activation_norm": norm, "activation_inputs": inputs, "step_schedule": schedule}
    site, learner = second_stage(lab, **changes)
    start = next(iter(site.mine.activations.values())).grid.scale.clone()
    expected = by_hand(site, norm, inputs, schedule)
    learner.run(STEPS, lambda *_: None)
    (quantizer,) = site.mine.activations.values()
    assert abs(float(expected - start)) > 0.05 * float(start)
    torch.testing.assert_close(quantizer.grid.scale, expected, rtol=2e-3, atol=0)


def test_the_first_layer_stays_as_it_is(lab) -> None:
    """Rounded to nearest, on the searched range, in both stages; everything behind it is learned."""
    changes = {"joint": False, "activation_steps": 4, "steps": 4, "first_last": None, "keep_best": False}
    nearest, learned = lab.run(method="rtn", first_last=None), lab.run(first_layer=False, **changes)
    assert [report.steps for report in learned.reports if report.name == "conv1"] == [0, 0]
    assert all(report.steps == 4 for report in learned.reports if report.name != "conv1")
    found, expected = learned.learned(), nearest.learned()
    first = next(name for name in expected if name.endswith("codes"))
    assert torch.equal(found[first], expected[first])
    assert not lab.same(learned, lab.run(**changes))


def test_inputs_of_the_second_stage(lab) -> None:
    part = Part(torch.arange(8), 0, 8)
    for inputs in ("float", "quantized"):
        site, learner = second_stage(lab, activation_inputs=inputs)
        (found,) = learner._inputs(part, 0)
        (expected,) = site.streams.read(inputs, site.block.inputs, slice(0, 8))
        assert torch.equal(found, expected)


def test_what_belongs_to_two_stages_is_refused_in_one() -> None:
    for change in ({"activation_norm": 2.4}, {"activation_inputs": "float"}, {"activation_steps": 5}):
        with pytest.raises(ConfigError, match=f"{next(iter(change))} belongs to the two-stage recipe"):
            Recipe.preset("fast").replace(**change)


def test_paper_and_official_differ_in_the_loss() -> None:
    paper, official = Recipe.preset("paper"), Recipe.preset("official")
    assert official.replace(name="paper", loss="fisher", activation_norm=2.0) == paper
    for recipe in (paper, official):
        assert stages(QuantConfig(recipe=recipe)) == [("weights", 20_000), ("activations", 5_000)]
