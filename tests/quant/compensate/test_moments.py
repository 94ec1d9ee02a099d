from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from brecq.quant.compensate import Geometry, MomentSum, geometry

LAYERS = [
    Geometry.conv((3, 3), 1, 1),
    Geometry.conv((1, 1), 2, 0, groups=2),
    Geometry.conv((3, 3), 2, "valid", 1, groups=4),
    Geometry.conv((2, 3), 1, "same", 2),
    Geometry.conv_transpose((3, 3), 2, 1, 1, groups=2),
]


def naive(layer: Geometry, x_q: torch.Tensor, x_f: torch.Tensor) -> list[torch.Tensor]:
    q, f = (torch.cat(list(layer.patches(x)), dim=2).double() for x in (x_q, x_f))
    return [torch.einsum("gin,gjn->gij", a, q) / q.shape[2] for a in (q, f)] + [q.mean(2), f.mean(2)]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_moments_are_means_of_products(layer: Geometry, monkeypatch: pytest.MonkeyPatch) -> None:
    x_q, x_f = torch.randn(6, 4, 8, 9) + 1, torch.randn(6, 4, 8, 9)
    expected = naive(layer, x_q, x_f)
    monkeypatch.setattr(geometry, "BLOCK", 1 << 10)
    total = MomentSum()
    for part in (slice(0, 1), slice(1, 4), slice(4, 6)):
        total.add(layer, x_q[part], x_f[part])
    found = total.found()
    for value, wanted in zip((found.gram, found.cross, found.mean, found.float_mean), expected, strict=True):
        torch.testing.assert_close(value, wanted, atol=1e-5, rtol=1e-5)
    central = found.central()
    torch.testing.assert_close(
        central.gram, expected[0] - expected[2][:, :, None] * expected[2][:, None], atol=1e-5, rtol=1e-5
    )


def test_uses_of_a_layer_add_up() -> None:
    x, y = torch.randn(4, 7, 6), torch.randn(4, 2, 6)
    apart, together = MomentSum(), MomentSum()
    apart.add(Geometry.linear(), x)
    apart.add(Geometry.linear(), y)
    together.add(Geometry.linear(), torch.cat([x, y], dim=1))
    # products are float32
    torch.testing.assert_close(apart.found().gram, together.found().gram, rtol=1e-6, atol=1e-6)
    assert torch.equal(apart.found().gram, apart.found().cross)


def test_a_convolution_has_the_moments_of_the_linear_layer_on_its_patches() -> None:
    x = torch.randn(2, 3, 8, 8)
    conv, linear = MomentSum(), MomentSum()
    conv.add(Geometry.conv((3, 3), padding=1), x)
    linear.add(Geometry.linear(), F.unfold(x, 3, padding=1).transpose(1, 2))
    torch.testing.assert_close(conv.found().gram, linear.found().gram, rtol=1e-6, atol=1e-6)


def test_a_bias_takes_the_mean_error() -> None:
    layer, w, q = Geometry.conv((3, 3), 2, 1, groups=2), torch.randn(6, 2, 3, 3), torch.randn(6, 2, 3, 3)
    x_q, x_f = torch.randn(3, 4, 8, 8) + 1, torch.randn(3, 4, 8, 8)
    total = MomentSum()
    total.add(layer, x_q, x_f)
    shift = total.found().bias_shift(layer.rows(w), layer.rows(q))
    missing = F.conv2d(x_f, w, None, 2, 1, 1, 2) - F.conv2d(x_q, q, None, 2, 1, 1, 2)
    torch.testing.assert_close(shift.float(), missing.mean((0, 2, 3)), atol=1e-4, rtol=1e-4)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_moments_on_cuda(layer: Geometry) -> None:
    x_q, x_f = torch.randn(6, 4, 8, 9), torch.randn(6, 4, 8, 9)
    total = MomentSum()
    total.add(layer, x_q.cuda(), x_f.cuda())
    torch.testing.assert_close(total.found().cross.cpu(), naive(layer, x_q, x_f)[1], atol=1e-3, rtol=1e-3)


def test_uses_with_and_without_a_float_input_of_their_own_add_up() -> None:
    x = 10 + torch.randn(40, 6)
    apart, together = MomentSum(), MomentSum()
    apart.add(Geometry.linear(), x[:20], x[:20] + 1)
    apart.add(Geometry.linear(), x[20:])
    together.add(Geometry.linear(), x, torch.cat([x[:20] + 1, x[20:]]))
    for name in ("gram", "cross", "mean", "float_mean"):
        torch.testing.assert_close(getattr(apart.found(), name), getattr(together.found(), name), rtol=1e-6, atol=1e-5)
