"""Where activations wait changes nothing but where they wait."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest
import torch

from brecq.errors import CheckpointError
from brecq.quant import kernels
from brecq.quant.affine import IntRange
from brecq.quant.grid import Grid
from brecq.reconstruct.cache import ActivationCache, Slot, free_host_memory
from brecq.reconstruct.memory import reuse_freed

CPU = torch.device("cpu")
X, A, B, C, D = (Slot("input", name) for name in "xabcd")
F = Slot("float", "f")
PLACES = {"host": 1 << 30, "file": 0}


@pytest.fixture(params=PLACES)
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> ActivationCache:
    made = ActivationCache(CPU, PLACES[request.param], tmp_path)
    made.expected = request.param
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("shape", [(10,), (10, 4), (10, 3, 5), (10, 3, 5, 6)])
def test_what_is_put_can_be_got(cache: ActivationCache, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = (torch.randn(shape) * 10).to(dtype)
    for start in range(0, 10, 4):
        cache.put(X, start, x[start : start + 4], 10)
    assert cache.place(X) == cache.expected
    assert X in cache
    assert cache.samples(X) == 10
    assert torch.equal(cache.get(X, slice(2, 7)), x[2:7])
    index = torch.tensor([7, 0, 3])
    found = cache.get(X, index)
    assert torch.equal(found, x[index])
    assert found.dtype == dtype
    cache.close()


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_streams_are_kept_in_half_precision(cache: ActivationCache, unit: float) -> None:
    x = torch.randn(12, 3, 5, 6) * unit
    for start in range(0, 12, 4):
        cache.put(F, start, x[start : start + 4], 12)
    found = cache.get(F, slice(0, 12))
    assert found.dtype == torch.float32
    assert (found - x).norm() < 3e-4 * x.norm()
    assert cache.used(cache.expected) == 2 * x.numel()
    cache.close()


def test_what_does_not_fit_half_precision_is_kept_as_it_is(cache: ActivationCache) -> None:
    x = torch.randn(12, 7)
    x[8:] *= 1e6
    for start in range(0, 12, 4):
        cache.put(F, start, x[start : start + 4], 12)
    found = cache.get(F, torch.arange(12))
    assert (found[:4] - x[:4]).norm() < 3e-4 * x[:4].norm()
    assert torch.equal(found[8:], x[8:])
    assert cache.used(cache.expected) == 4 * x.numel()
    cache.close()


@pytest.mark.parametrize(("low", "high", "zero_point"), [(0, 255, 100.0), (-128, 127, 0.0), (0, 3, 1.0)])
def test_codes_of_a_grid_lose_nothing(cache: ActivationCache, low: int, high: int, zero_point: float) -> None:
    grid = Grid(torch.tensor(0.0137), torch.tensor(zero_point), IntRange(low, high))
    x = kernels.on_grid(torch.randn(10, 3, 5, 6), grid)
    for start in range(0, 10, 4):
        cache.put(F, start, x[start : start + 4], 10, grid)
    assert torch.equal(cache.get(F, torch.arange(10)), x)
    assert cache.used(cache.expected) == x.numel()
    cache.close()


def test_inputs_are_not_copied(cache: ActivationCache) -> None:
    for x in (torch.randn(5, 3, 4, 4), torch.randn(5, 7), torch.arange(5)):
        cache.keep(X, x)
        assert (cache.place(X), cache.used("host"), cache.used("file")) == ("given", 0, 0)
        for index in (slice(1, 4), torch.tensor([3, 0])):
            found = cache.get(X, index)
            assert torch.equal(found, x[index])
            assert x.dim() < 4 or found.is_contiguous(memory_format=torch.channels_last)
    cache.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")
def test_what_is_dropped_goes_back_to_the_system() -> None:
    """Also where freed memory is kept, and something else was allocated meanwhile."""
    cache, size = ActivationCache(CPU), 1 << 24
    with reuse_freed(CPU):
        for slot in (A, B):
            cache.put(slot, 0, torch.ones(1, size), 1)
        meanwhile, before = torch.ones(1 << 16), resident()
        cache.drop(A)
        assert before - resident() > 4 * size * 0.9
    assert meanwhile.sum() == 1 << 16
    cache.close()


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_measurements_keep_what_they_are_given() -> None:
    cache = ActivationCache(CPU, exact=True)
    x = torch.randn(4, 7)
    cache.put(F, 0, x, 4)
    assert torch.equal(cache.get(F, slice(0, 4)), x)


def test_images_come_back_channels_last(cache: ActivationCache) -> None:
    cache.put(X, 0, torch.randn(4, 3, 5, 6), 4)
    assert cache.get(X, slice(0, 4)).is_contiguous(memory_format=torch.channels_last)
    cache.close()


def test_what_is_got_is_not_what_is_kept(cache: ActivationCache) -> None:
    cache.put(X, 0, torch.ones(4, 2), 4)
    cache.get(X, torch.arange(4)).zero_()
    assert cache.get(X, torch.arange(4)).sum() == 8
    cache.close()


def test_the_budget_decides_tensor_by_tensor(tmp_path: Path) -> None:
    cache = ActivationCache(CPU, 1000, tmp_path)
    cache.put(A, 0, torch.zeros(1, 200), 1)  # 800 bytes
    cache.put(B, 0, torch.zeros(1, 100), 1)  # 400: too much
    cache.put(C, 0, torch.zeros(1, 50), 1)  # 200: just fits
    assert [cache.place(slot) for slot in (A, B, C)] == ["host", "file", "host"]
    assert cache.used("host") == 1000
    cache.drop(A)
    cache.put(D, 0, torch.zeros(1, 200), 1)
    assert cache.place(D) == "host"
    assert cache.peak == {"device": 0, "host": 1000, "file": 400}
    cache.close()


def test_files_have_no_name_and_are_gone_with_their_tensor(tmp_path: Path) -> None:
    cache = ActivationCache(CPU, 0, tmp_path)
    (tmp_path / "activations-1.bin").write_text("the user's")
    for value, slot in enumerate((A, B)):
        cache.put(slot, 0, torch.full((4, 4), float(value)), 4)
    assert [file.name for file in tmp_path.iterdir()] == ["activations-1.bin"]
    assert torch.equal(cache.get(A, slice(0, 4)), torch.zeros(4, 4))
    assert torch.equal(cache.get(B, slice(0, 4)), torch.ones(4, 4))
    cache.drop(A)
    cache.drop(A)  # twice is fine
    assert A not in cache
    cache.close()
    assert B not in cache
    assert [file.name for file in tmp_path.iterdir()] == ["activations-1.bin"]


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    cache = ActivationCache(CPU, 0, tmp_path)
    with pytest.raises(CheckpointError, match=r"the disk is full: 64 bytes are needed, \d+ bytes are free; make room"):
        cache.put(A, 0, torch.zeros(4, 4), 4)
    assert list(tmp_path.iterdir()) == []


def test_without_a_budget_half_of_what_is_free() -> None:
    assert 0 < ActivationCache(CPU).total <= free_host_memory()
