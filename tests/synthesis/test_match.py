"""Statistics of inputs against those that batch norms remember."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from brecq.synthesis.match import Moments, matching_loss, measure_match
from brecq.synthesis.norms import find_batch_norms, watch_inputs


@pytest.fixture
def trained() -> tuple[nn.Module, Tensor]:
    """A network whose batch norms have seen exactly the inputs beside it."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, momentum=None), nn.ReLU(), nn.Conv2d(6, 4, 3),
        nn.BatchNorm2d(4, momentum=None),
    )  # fmt: skip
    inputs = 2 * torch.randn(64, 3, 12, 12) + 1
    with torch.no_grad():
        network.train()(inputs)
    return network.eval(), inputs


def test_training_data_matches_and_noise_does_not(trained: tuple[nn.Module, Tensor]) -> None:
    network, inputs = trained
    norms = find_batch_norms(network)
    for mean, std in measure_match(network, norms, inputs, 16):
        assert mean < 1e-3
        assert std < 1e-2
    assert all(mean > 0.1 for mean, _ in measure_match(network, norms, torch.randn(64, 3, 12, 12), 16))


def test_batches_are_pooled(trained: tuple[nn.Module, Tensor]) -> None:
    network, inputs = trained
    norms = find_batch_norms(network)
    noise = inputs.flip(0)[:30] + torch.randn(30, 1, 1, 1)
    pooled, whole = (torch.tensor(measure_match(network, norms, noise, size)) for size in (7, 30))
    torch.testing.assert_close(pooled, whole, rtol=1e-3, atol=1e-4)


def test_the_loss_in_plain_arithmetic(trained: tuple[nn.Module, Tensor]) -> None:
    network, inputs = trained
    norms = find_batch_norms(network)
    stored = {name: Moments.of(module) for name, module in norms.items()}
    with watch_inputs(norms) as seen, torch.no_grad():
        network(3 * inputs[:8])
    found = matching_loss(seen, stored)
    expected = 0.0
    for name, x in seen:
        module = norms[name]
        for channel in range(x.shape[1]):
            values = x[:, channel].double()
            mean, variance = float(module.running_mean[channel]), float(module.running_var[channel])
            mean_error, std_error = float(values.mean()) - mean, float(values.std(correction=0)) - variance**0.5
            expected += (mean_error**2 + std_error**2) / (variance + module.eps) / x.shape[1] / len(seen)
    assert float(found) == pytest.approx(expected, rel=1e-3)


def test_a_constant_channel_gives_no_infinite_gradient() -> None:
    x = torch.zeros(4, 3, 2, 2, requires_grad=True)
    norm = nn.BatchNorm2d(3).eval()
    matching_loss([("norm", x)], {"norm": Moments.of(norm)}).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
