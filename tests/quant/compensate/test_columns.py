"""The kernel for CUDA decides as the loop over columns does; Triton's interpreter runs it on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from brecq.quant.affine import IntRange
from brecq.quant.compensate import columns


def problem(groups: int, rows: int, width: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(groups, width, 2 * width, dtype=torch.float64, generator=generator)
    matrix = random @ random.mT / width + torch.eye(width, dtype=torch.float64)
    shape = (groups, rows, width)
    local = 3 * torch.randn(shape, dtype=torch.float64, generator=generator)
    scale = 0.1 + torch.rand(shape, dtype=torch.float64, generator=generator)
    zero_point, codes = (torch.randint(-2, 3, shape, generator=generator).double() for _ in range(2))
    return [local, matrix, scale, zero_point, codes]


SHAPES = [(1, 37, 24), (3, 5, 9), (4, 1, 1), (2, 16, 16)]


def test_the_kernel_is_the_loop() -> None:
    pytest.importorskip("triton")
    source = Path(columns.__file__).parents[3]
    done = subprocess.run(  # the interpreter has to be chosen before triton is imported
        [sys.executable, __file__], env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(source)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["equal"] * (len(SHAPES) + 1)


def main() -> None:
    from brecq.quant.compensate.columns_cuda import decide_on_device

    for shape in SHAPES:
        *arguments, codes = problem(*shape)
        given = (*arguments, IntRange(-4, 3), codes)
        expected, found = columns.decide(*given), decide_on_device(*given)
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True)), shape
        assert len(expected[0].unique()) > (1 if shape[2] == 1 else 4)
        print("equal")
    local = torch.tensor(TIES, dtype=torch.float64).view(1, -1, 1)
    ones = torch.ones_like(local)
    codes, _ = decide_on_device(local, ones[:, :1], ones, 0 * ones, IntRange(-4, 3), 0 * ones)
    print("equal" if codes.flatten().tolist() == EVEN else "ties differ")


TIES, EVEN = [0.5, 1.5, 2.5, -0.5, -1.5], [0, 2, 2, 0, -2]


def test_ties_go_to_the_even_code() -> None:
    local = torch.tensor(TIES, dtype=torch.float64).view(1, -1, 1)
    ones = torch.ones_like(local)
    codes, _ = columns.decide(local, ones[:, :1], ones, 0 * ones, IntRange(-4, 3), 0 * ones)
    assert codes.flatten().tolist() == EVEN


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("groups", "rows", "width"), [*SHAPES, (1, 512, 128), (64, 62, 9)])
def test_on_cuda(groups: int, rows: int, width: int) -> None:
    *arguments, codes = problem(groups, rows, width)
    given = [*arguments, codes]
    expected = columns.decide(*arguments, IntRange(-4, 3), codes)
    *moved, codes = (value.cuda() for value in given)
    found = columns.decide(*moved, IntRange(-4, 3), codes)
    assert (found[0].cpu() == expected[0]).double().mean() > 0.999
    assert (found[1].cpu() - expected[1]).abs().median() < 1e-12


if __name__ == "__main__":
    main()
