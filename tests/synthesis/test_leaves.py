"""Dead leaves: pictures with the edges of photographs."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from brecq.synthesis.leaves import dead_leaves
from brecq.synthesis.match import measure_match
from brecq.synthesis.norms import find_batch_norms
from brecq.synthesis.spectrum import pink

SIZE = (4, 48, 64)


@pytest.fixture(scope="module")
def leaves() -> Tensor:
    return dead_leaves(*SIZE, seed=0)


@pytest.fixture(scope="module")
def noise() -> Tensor:
    return torch.randn(4, 3, 48, 64, generator=torch.Generator().manual_seed(0))


def test_shape_and_moments(leaves: Tensor) -> None:
    assert leaves.shape == (4, 3, 48, 64)
    assert leaves.dtype == torch.float32
    variance, mean = torch.var_mean(leaves, (0, 2, 3))
    torch.testing.assert_close(mean, torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(variance, torch.ones(3), rtol=0, atol=1e-3)


def test_the_seed_alone_decides(leaves: Tensor) -> None:
    torch.manual_seed(99)
    assert torch.equal(dead_leaves(*SIZE, seed=0), leaves)
    assert not torch.equal(dead_leaves(*SIZE, seed=1), leaves)
    assert not torch.equal(leaves[0], leaves[1])


def kurtosis(x: Tensor) -> float:
    """Of differences between neighbours: 3 for Gaussian ones, more for edges that are sharp and sparse."""
    steps = x.diff(dim=3)
    return (steps.pow(4).mean() / steps.square().mean().square()).item()


def test_edges_are_sharp_and_sparse(leaves: Tensor, noise: Tensor) -> None:
    assert kurtosis(leaves) > 8
    assert kurtosis(pink(noise)) < 4


def test_neighbours_and_colors_go_together(leaves: Tensor, noise: Tensor) -> None:
    assert (
        leaves.diff(dim=3).square().mean()
        < pink(noise).diff(dim=3).square().mean()
        < noise.diff(dim=3).square().mean()
    )
    assert torch.corrcoef(leaves.transpose(0, 1).flatten(1))[0, 1] > 0.6


def test_a_trained_network_knows_them_better_than_noise(shared_data: Path, networks: ModuleType) -> None:
    model = networks.CifarResNet().eval()
    model.load_state_dict(load_file(shared_data / "weights" / "cifar10_resnet20.safetensors"))
    norms = find_batch_norms(model)

    def mismatch(x: Tensor) -> float:
        return sum(mean**2 + std**2 for mean, std in measure_match(model, norms, x, 32))

    noise = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert mismatch(dead_leaves(32, 32, 32, seed=0)) < mismatch(pink(noise)) < mismatch(noise)
