"""Which modules are batch norms, and the moments of what reaches them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torchvision.ops.misc import FrozenBatchNorm2d

from brecq.errors import ConfigError
from brecq.synthesis.norms import batch_moments, find_batch_norms, is_batch_norm, stored_moments, watch_inputs


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(st.integers(2, 5), st.integers(1, 5)),
    sides=st.lists(st.integers(1, 5), max_size=3),
    channels_last=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_moments_and_their_gradient(shape: tuple[int, int], sides: list[int], channels_last: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(*shape, *sides, generator=generator) + 1
    if channels_last and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_(True)
    weights = torch.randn(2, shape[1], generator=generator)

    def gradient(moments: tuple[Tensor, Tensor]) -> Tensor:
        return torch.autograd.grad((moments[0] * weights[0] + moments[1] * weights[1]).sum(), x)[0]

    dims = [dim for dim in range(x.dim()) if dim != 1]
    expected = (x.mean(dims), x.var(dims, correction=0))
    found = batch_moments(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradient(found), gradient(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "module",
    [
        nn.BatchNorm1d(4), nn.BatchNorm2d(4), nn.BatchNorm3d(4), nn.SyncBatchNorm(4), BatchNormAct2d(4),
        FrozenBatchNorm2d(4),
    ],
    ids=lambda module: type(module).__name__,
)  # fmt: skip
def test_batch_norms_are_known_by_type(module: nn.Module) -> None:
    assert is_batch_norm(module)
    mean, variance = stored_moments(module)
    assert mean.shape == variance.shape == (4,)


@pytest.mark.parametrize(
    "module",
    [
        nn.BatchNorm2d(4, track_running_stats=False), nn.InstanceNorm2d(4, track_running_stats=True),
        nn.GroupNorm(2, 4), nn.LayerNorm(4), nn.LazyBatchNorm2d(), nn.Conv2d(3, 4, 1),
    ],
    ids=lambda module: type(module).__name__,
)  # fmt: skip
def test_others_are_not(module: nn.Module) -> None:
    assert not is_batch_norm(module)


def test_an_untrained_network_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    with pytest.raises(ConfigError, match=r"all 2 batch norms .* load trained weights"):
        find_batch_norms(network)
    nn.init.constant_(network[2].running_mean, 0.1)
    assert list(find_batch_norms(network)) == ["1", "2"]


def test_inputs_are_watched_in_order_of_execution(resnet: nn.Module) -> None:
    norms = find_batch_norms(resnet)
    with watch_inputs(norms) as seen:
        resnet(torch.randn(2, 3, 16, 16))
    assert [name for name, _ in seen][:3] == ["bn1", "layer1.0.bn1", "layer1.0.bn2"]
    assert sorted(name for name, _ in seen) == sorted(norms)
    count = len(seen)
    resnet(torch.randn(2, 3, 16, 16))
    assert len(seen) == count  # no hook is left behind
