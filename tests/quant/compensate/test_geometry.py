"""A layer's output is its weight's rows times its input's patches, whatever kind of layer it is."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F

from brecq.quant.compensate import Geometry, geometry

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def product_of(layer: Geometry, weight: torch.Tensor, x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """rows · patches in the layout of the layer's output `like` [N, C, ...]; N is 1 or a block holds all samples."""
    columns = torch.cat(list(layer.patches(x)), dim=2)
    y = (layer.rows(weight) @ columns).flatten(0, 1)  # [C, N·positions]
    return y.view(like.shape[1], like.shape[0], *like.shape[2:]).transpose(0, 1)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": 1},
        {"padding": "same", "dilation": 4},
        {"padding": "valid", "dilation": 2},
        {"stride": 2, "padding": 2},
        {"stride": 3, "dilation": 2, "groups": 2},
        {"stride": 2, "padding": 1, "groups": 4},
    ],
    ids=str,
)
def test_convolutions_are_products(dims: int, options: dict) -> None:
    groups, kernel = options.get("groups", 1), (2, 3, 2)[:dims]
    x, w = torch.randn(2, 4, *(9, 8, 7)[:dims]), torch.randn(8, 4 // groups, *kernel)
    y = CONV[dims](x, w, **options)
    layer = Geometry.conv(kernel, **options)
    torch.testing.assert_close(product_of(layer, w, x, y), y, atol=1e-4, rtol=1e-4)
    assert torch.equal(layer.weight(layer.rows(w), w.shape), w)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1},
        {"stride": 3, "output_padding": 2, "groups": 2},
        {"stride": 2, "padding": 3, "dilation": 2, "groups": 4},
    ],
    ids=str,
)
def test_transposed_convolutions_are_products(dims: int, options: dict) -> None:
    groups, kernel = options.get("groups", 1), (2, 3, 3)[:dims]
    x, w = torch.randn(2, 4, *(6, 5, 5)[:dims]), torch.randn(4, 8 // groups, *kernel)
    y = TRANSPOSED[dims](x, w, **options)
    layer = Geometry.conv_transpose(kernel, **options)
    torch.testing.assert_close(product_of(layer, w, x, y), y, atol=1e-4, rtol=1e-4)
    assert torch.equal(layer.weight(layer.rows(w), w.shape), w)


@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 3, 6), (2, 3, 2, 6)])
def test_linear_layers_of_any_rank(shape: tuple[int, ...]) -> None:
    x, w = torch.randn(shape), torch.randn(4, 6)
    (columns,) = Geometry.linear().patches(x)
    torch.testing.assert_close((Geometry.linear().rows(w) @ columns)[0].T.view(*shape[:-1], 4), F.linear(x, w))


def test_an_input_without_batch_dimension() -> None:
    x, layer = torch.randn(3, 8, 8), Geometry.conv((3, 3), padding=1)
    assert torch.equal(next(layer.patches(x)), next(layer.patches(x[None])))


def test_small_blocks_hold_the_same_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    x, layer = torch.randn(3, 4, 9, 7), Geometry.conv((3, 3), 2, 1, groups=2)
    whole = torch.cat(list(layer.patches(x[:1])), dim=2)
    monkeypatch.setattr(geometry, "BLOCK", 4 * 9 * 4 * 2)  # two lines of one sample
    blocks = list(layer.patches(x))
    assert len(blocks) == 9
    assert all(block.numel() <= geometry.BLOCK for block in blocks)
    assert torch.equal(torch.cat(blocks[:3], dim=2), whole)
    linear = list(Geometry.linear().patches(torch.randn(100, geometry.BLOCK // 10)))
    assert len(linear) == 10


def test_offsets_together_visit_every_position_once() -> None:
    x, layer = torch.arange(2 * 10 * 7.0).view(2, 1, 10, 7), Geometry.conv((1, 1), 1)
    visited = [torch.cat(list(layer.patches(x, 3, offset)), dim=2).flatten() for offset in range(9)]
    assert torch.equal(torch.cat(visited).sort().values, x.flatten())
    rows = Geometry.conv((1,), 2)
    line = torch.arange(11.0).view(1, 1, 11)
    parts = [torch.cat(list(rows.patches(line, 2, offset)), dim=2).flatten().tolist() for offset in (0, 1)]
    assert parts == [[0, 4, 8], [2, 6, 10]]


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("groups", [1, 6])
def test_offsets_together_visit_every_patch_of_padded_pictures(kernel: int, groups: int) -> None:
    x = torch.randn(2, 6, 9, 7).contiguous(memory_format=torch.channels_last)
    layer = Geometry.conv((kernel, kernel), padding=kernel // 2, groups=groups)
    (whole,) = layer.patches(x)
    parts = [block for offset in range(4) for block in layer.patches(x, 2, offset)]
    together = torch.cat(parts, dim=2)
    assert together.shape == whole.shape
    torch.testing.assert_close(together @ together.mT, whole @ whole.mT)


def test_patches_of_single_pixels_are_not_copied() -> None:
    x = torch.randn(2, 6, 9, 7).contiguous(memory_format=torch.channels_last)
    (patches,) = Geometry.conv((1, 1)).patches(x)
    assert patches.data_ptr() == x.data_ptr()


@pytest.mark.parametrize(("every", "offset"), list(product((2, 5), (0, 3, 11))))
def test_fewer_positions_than_steps_leave_one(every: int, offset: int) -> None:
    (block,) = Geometry.conv((3, 3)).patches(torch.randn(1, 2, 3, 3), every, offset)
    assert block.shape == (1, 18, 1)


@pytest.mark.parametrize("wanted", [1, 100, 400, 10_000])
def test_positions_are_left_out_while_enough_remain(wanted: int) -> None:
    x, layer = torch.randn(3, 2, 20, 20), Geometry.conv((3, 3), padding=1)
    every = layer.every(layer.total(x, 3, 3), wanted)
    counts = [sum(block.shape[2] for block in layer.patches(x, step)) for step in (every, every + 1)]
    assert counts[0] >= min(wanted, 1200)
    assert every == 1 or counts[1] < 1.3 * wanted or counts[1] == 3  # one a sample is the least


def test_lines_of_a_linear_layer_are_left_out_evenly() -> None:
    x, layer = torch.arange(120.0).view(6, 10, 2), Geometry.linear()
    assert layer.total(x, 6, 12) == 120
    assert layer.every(120, 50, most=True) == 3
    assert layer.every(120, 50) == 2
    parts = [block for offset in range(3) for block in layer.patches(x, 3, offset)]
    assert [part.shape[2] for part in parts] == [20, 20, 20]
    assert torch.equal(torch.cat(parts, dim=2)[0].T.sort(0).values, x.reshape(-1, 2))
