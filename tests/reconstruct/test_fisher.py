"""Diagonal Fisher information against a direct computation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from brecq.errors import DataError
from brecq.partition.blocks import Network
from brecq.ranks import Share, Unit
from brecq.reconstruct.cache import ActivationCache, Slot
from brecq.reconstruct.fisher import log_likelihood, measure, normalized, positions, sampled, sketch

CPU = torch.device("cpu")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def measured(lab, labels: Tensor | None, samples: int = 70, seed: int = 0) -> tuple[ActivationCache, list[str]]:
    _, network = lab.network(lab.config())
    cache = ActivationCache(CPU)
    measure(network, lab.inputs(samples=samples), labels, cache, Share(samples), seed)
    return cache, [block.outputs[0] for block in network.blocks]


def test_squared_gradients_normalized_to_mean_1_over_each_sample(lab) -> None:
    samples = 70
    labels = torch.randint(10, (samples,))
    cache, names = measured(lab, labels, samples)
    _, network = lab.network(lab.config())
    (x,) = lab.inputs(samples=samples)

    # one sample at a time, by the chain of blocks
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for i in range(0, samples, 7):
        values = {network.inputs[0]: x[i : i + 1]}
        for block in network.blocks:
            values.update({k: v.requires_grad_() for k, v in block(values).items()})
        loss = -torch.nn.functional.cross_entropy(network.output(values), labels[i : i + 1])
        for name, gradient in zip(names, torch.autograd.grad(loss, [values[n] for n in names]), strict=True):
            found[name].append(gradient.square())
    for name in names:
        every = cache.get(Slot("fisher", name), slice(0, samples))
        torch.testing.assert_close(every.flatten(1).mean(1), torch.ones(samples))
        expected = torch.cat(found[name]).flatten(1)
        expected = expected / expected.mean(1, keepdim=True)
        torch.testing.assert_close(every[::7].flatten(1), expected, rtol=1e-3, atol=1e-4)


def test_samples_without_any_gradient_have_no_weight() -> None:
    weight = torch.stack([torch.zeros(2, 3), torch.rand(2, 3) * 1e-30])
    found = normalized(weight)
    assert not found[0].any()
    assert found[1].mean().item() == pytest.approx(1.0)


def test_sampled_labels_follow_the_seed(lab) -> None:
    first, names = measured(lab, None)
    again, _ = measured(lab, None)
    other, _ = measured(lab, None, seed=1)
    name = Slot("fisher", names[0])
    everything = slice(0, 70)
    assert torch.equal(first.get(name, everything), again.get(name, everything))
    assert not torch.equal(first.get(name, everything), other.get(name, everything))


def test_labels_are_sampled_from_the_softmax() -> None:
    logits = torch.tensor([0.7, 0.2, 0.1]).log().expand(20_000, 3).clone().requires_grad_()
    log_likelihood(logits, sampled(logits, [Unit(0, slice(0, 10_000)), Unit(1, slice(10_000, 20_000))], 0)).backward()
    # the gradient of the chosen class is 1 - p, of the others -p
    chosen = (logits.grad > 0).float().mean(0)
    torch.testing.assert_close(chosen, torch.tensor([0.7, 0.2, 0.1]), rtol=0, atol=0.02)


def likelihood(output: object, labels: Tensor, class_axis: int | None = None) -> Tensor:
    return log_likelihood(positions(output, class_axis, ""), labels)


def test_given_labels_and_positions() -> None:
    logits, labels = torch.randn(2, 5, 3, 4), torch.randint(5, (2, 3, 4))
    expected = logits.log_softmax(1).gather(1, labels[:, None]).sum()
    torch.testing.assert_close(likelihood({"out": logits}, labels), expected)
    torch.testing.assert_close(likelihood({"aux": labels, "logits": logits}, labels), expected)
    with pytest.raises(DataError, match="2 labels and 24 positions"):
        likelihood({"out": logits}, labels[:, 0, 0])


def test_sequences_have_their_classes_last_unless_told() -> None:
    logits = torch.randn(2, 6, 5)  # tokens, classes
    labels = torch.randint(5, (2, 6))
    expected = logits.log_softmax(-1).gather(-1, labels[..., None]).sum()
    torch.testing.assert_close(likelihood({"logits": logits}, labels), expected)
    labels = torch.randint(6, (2, 5))
    expected = logits.log_softmax(1).gather(1, labels[:, None]).sum()
    torch.testing.assert_close(likelihood(logits, labels, class_axis=1), expected)


@pytest.mark.parametrize(
    "output", [torch.randn(3), torch.randn(3, 1), (torch.randn(3, 4), torch.randn(3, 4)), torch.randn(3, 4, 8, 8)]
)
def test_a_network_without_logits_is_an_error(output: object) -> None:
    with pytest.raises(
        DataError, match=r"returns logits \[N, classes\], not .*\(class_axis=.*\), or use loss='plain'"
    ):
        positions(output, None, "use loss='plain'")


def before_the_head(lab, samples: int) -> tuple[Network, Tensor, dict[str, Tensor]]:
    """The network of the laboratory, inputs, and every activation before its last block by name."""
    _, network = lab.network(lab.config())
    (x,) = lab.inputs(samples=samples)
    values = {network.inputs[0]: x}
    for block in network.blocks[:-1]:
        values.update({name: value.detach() for name, value in block(values).items()})
    return network, x, values


def sketched(network: Network, x: Tensor, name: str, direction: Tensor, draws: int, **how: Any) -> Tensor:
    """The mean of (g · d)² over so many sketched vectors g of each sample, `direction` d [N, ...]."""
    samples, cache, each = len(x), ActivationCache(CPU), draws // 20
    repeated = x.repeat(each, 1, 1, 1)
    found = torch.zeros(samples)
    for draw in range(20):
        sketch(network, (repeated,), cache, Share(len(repeated)), 100 * draw, draw, **how)
        vectors = cache.get(Slot("gradient", name, draw), slice(0, len(repeated)))
        products = (vectors * direction.repeat(each, *[1] * (direction.dim() - 1))).flatten(1).sum(1).square()
        found += products.view(-1, samples).mean(0) / 20
    return found


def test_sketched_vectors_have_the_fisher_information_as_their_covariance(lab) -> None:
    samples, draws = 3, 2000
    network, x, values = before_the_head(lab, samples)
    head = network.blocks[-1]
    name = head.inputs[0]
    z = values[name].requires_grad_()
    logits = network.output(head({**values, name: z}))
    probabilities = logits.softmax(1).detach()
    exact = torch.zeros(samples)
    direction = torch.randn(z.shape, generator=generator(5))
    for label in range(logits.shape[1]):  # Σ_y p(y) (g_y · d)²
        (gradient,) = torch.autograd.grad(logits.log_softmax(1)[:, label].sum(), z, retain_graph=True)
        exact += probabilities[:, label] * (gradient * direction).flatten(1).sum(1).square()

    found = sketched(network, x, name, direction, draws)
    torch.testing.assert_close(found, exact, rtol=0.1, atol=0)


def test_values_have_the_information_of_their_relative_squared_errors(lab) -> None:
    """Of any change d of a block output, E[(g · d)²] is Σ over outputs of |J d|² / (mean Σ r²)."""
    samples, draws = 3, 2000
    network, x, values = before_the_head(lab, samples)
    head = network.blocks[-1]
    name = head.inputs[0]
    direction = torch.randn(values[name].shape, generator=generator(5))
    with torch.no_grad():
        output = network.output(head(values))
    step = 1e-2 * direction
    with torch.no_grad():
        moved = network.output(head({**values, name: values[name] + step}))
    power = output.square().sum() / samples
    exact = ((moved - output) / 1e-2).square().flatten(1).sum(1) / power

    found = sketched(network, x, name, direction, draws, outputs="values")
    torch.testing.assert_close(found, exact, rtol=0.12, atol=0)


def test_values_weigh_every_block(lab) -> None:
    _, network = lab.network(lab.config())
    cache = ActivationCache(CPU)
    measure(network, lab.inputs(samples=8), None, cache, Share(8), 0, outputs="values")
    assert all(cache.get(Slot("fisher", n), slice(0, 8)).isfinite().all() for b in network.blocks for n in b.targets)
