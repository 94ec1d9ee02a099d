"""What inputs the network takes."""

from __future__ import annotations

import pytest
import torch

from brecq.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from brecq.synthesis.inputs import InputSpec, input_spec, picture_moments


def test_statistics_of_data_make_mean_0_and_deviation_1() -> None:
    mean, std = picture_moments(Preprocessing.imagenet())
    assert mean.tolist() == [[[0.0]]] * 3
    assert std.tolist() == [[[1.0]]] * 3


@pytest.mark.parametrize("color", ["RGB", "BGR"])
def test_a_scaling_leaves_photographs_their_moments(color: str) -> None:
    scaled = Preprocessing(mean=(0.5,), std=(0.5,), size=(8, 8), resize=None, color=color)
    mean, std = (value.flatten() for value in picture_moments(scaled))
    order = slice(None, None, -1 if color == "BGR" else 1)
    torch.testing.assert_close(mean, 2 * torch.tensor(IMAGENET_MEAN[order]) - 1)
    torch.testing.assert_close(std, 2 * torch.tensor(IMAGENET_STD[order]))


def test_noise_has_the_expected_moments_and_range() -> None:
    scaled = Preprocessing(mean=(0.5,), std=(0.5,), size=(32, 32), resize=None)
    spec = input_spec(torch.nn.Identity(), scaled, None)
    noise = spec.noise(64, torch.Generator().manual_seed(0))
    assert noise.shape == (64, 3, 32, 32)
    assert noise.abs().max() <= 1
    torch.testing.assert_close(noise.mean((0, 2, 3)), spec.mean.flatten(), atol=0.03, rtol=0)
    torch.testing.assert_close(noise.std((0, 2, 3)), spec.std.flatten(), atol=0.03, rtol=0)
    torch.testing.assert_close(spec.restore(spec.standardize(noise)), noise)


def test_nothing_is_known_of_a_bare_shape() -> None:
    spec = InputSpec((4, 9))
    x = 100 * torch.randn(2, 4, 9)
    assert not spec.is_picture
    assert torch.equal(spec.clip(x), x)
    assert torch.equal(spec.standardize(x), x)
