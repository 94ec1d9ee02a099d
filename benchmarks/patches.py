"""How many patches the closed form needs: a layer's error on new pictures, by the patches its weight was made from.

    python benchmarks/patches.py

Two convolutions of ResNet-20 on CIFAR-10 with the float network's inputs, of 512 training pictures. So many patches
for each input of a row, evenly spread, as patches and as second moments; errors on 256 other pictures, in percent of
the output's power. Then the processor seconds of both for layers of 1 000 rows that see 224 random patches.
"""

from __future__ import annotations

import time

import torch
from cells import environment
from common import calibration_data, network
from torch import Tensor, nn

from brecq.quant.affine import IntRange
from brecq.quant.compensate import Geometry, MomentSum, SampleSum, compensate
from brecq.quant.grid import Grid
from brecq.quant.ranges import weight_range
from brecq.reconstruct.initialize.compensated import DISTRUST

SHARES = (0.25, 0.5, 1, 2, 4, 32)
LAYERS = ("layer2.2.conv2", "layer3.2.conv2")
PICTURES, CHECKED = 512, 256
WIDTHS, ROWS, FEW = (512, 1280, 2048), 1000, 224


def lines_of(model: nn.Module, layer: nn.Conv2d, x: Tensor) -> Tensor:
    """The patches that a layer gets, [N, K]."""
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _module, args, _out: seen.append(args[0]))
    with torch.no_grad():
        for part in x.split(128):
            model(part)
    handle.remove()
    geometry = Geometry.conv(layer.kernel_size, layer.stride, layer.padding)
    return torch.cat([block[0].T for part in seen for block in geometry.patches(part)])


def rounded(weight: Tensor, lines: Tensor, bits: int, kind: type[MomentSum] | type[SampleSum]) -> Tensor:
    """What the closed form makes of a weight [R, K]."""
    total = kind()
    total.add(Geometry.linear(), lines, lines)
    range = IntRange.weights(bits, symmetric=False)
    grid = Grid(*weight_range(weight, range), range, 0)
    damping = 0.01 * (1 + DISTRUST * lines.shape[1] / len(lines))
    found = compensate(weight, Geometry.linear(), total.found(), grid, symmetric=False, damping=damping)
    return found.grid.dequantize(found.codes)


def accuracy() -> None:
    """A table of errors."""
    model = network("resnet20").model.eval()
    pictures = calibration_data("resnet20", PICTURES + CHECKED).inputs[0]
    print("| layer | bits | patches a weight | patches, % | second moments, % |\n|---|---:|---:|---:|---:|")
    for name in LAYERS:
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Conv2d)
        weight = layer.weight.detach().flatten(1)
        lines, others = (lines_of(model, layer, part) for part in pictures.split([PICTURES, CHECKED]))
        power = (others @ weight.T).square().mean()
        for bits in (2, 4):
            for share in SHARES:
                few = lines[:: max(1, round(len(lines) / (share * weight.shape[1])))]
                errors = []
                for kind in (SampleSum, MomentSum) if share <= 4 else (MomentSum,):
                    error = others @ (rounded(weight, few, bits, kind) - weight).T
                    errors.append(100 * float(error.square().mean() / power))
                told = [""] * (2 - len(errors)) + [f"{value:.3f}" for value in errors]
                print(f"| {name} | {bits} | {share} | {' | '.join(told)} |", flush=True)


def seconds() -> None:
    """A table of times."""
    print("\n| inputs | patches, s | second moments, s |\n|---:|---:|---:|")
    for width in WIDTHS:
        generator = torch.Generator().manual_seed(0)
        lines, weight = (torch.randn(n, width, generator=generator) for n in (FEW, ROWS))
        taken = []
        for kind in (SampleSum, MomentSum):
            began = time.process_time()
            rounded(weight, lines, 4, kind)
            taken.append(time.process_time() - began)
        print(f"| {width} | {taken[0]:.1f} | {taken[1]:.1f} |", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    print(f"{environment()}\n")
    accuracy()
    seconds()


if __name__ == "__main__":
    main()
