"""Keeping freed memory changes where memory comes from, and nothing else."""

from __future__ import annotations

import ctypes
import platform

import pytest
import torch

from brecq.reconstruct import memory
from brecq.reconstruct.cache import ActivationCache, Slot
from brecq.reconstruct.memory import reuse_freed, with_room


def large_tensor() -> torch.Tensor:
    return torch.arange(1 << 24, dtype=torch.float32)  # 64 MB: beyond what glibc takes from its heap by default


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_used_again() -> None:
    """Not always at once: where the heap begins decides whether a freed tensor's place is large enough for another."""
    with reuse_freed(torch.device("cpu")):
        addresses = [large_tensor().data_ptr() for _ in range(16)]
    assert addresses[-1] == addresses[-2]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_the_settings_are_put_back_also_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []

    class Library:
        def mallopt(self, option: int, value: int) -> None:
            calls.append((option, value))

        def malloc_trim(self, pad: int) -> None:
            calls.append((0, pad))

    monkeypatch.setattr(ctypes, "CDLL", lambda _name: Library())
    with pytest.raises(KeyError), reuse_freed(torch.device("cpu")):
        raise KeyError
    assert dict(calls[-4:-1]) == memory._DEFAULTS
    assert calls[-1] == (0, 0)


def test_other_devices_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: pytest.fail("asked for the C library"))
    with reuse_freed(torch.device("cuda")):
        pass


def test_caches_leave_a_device_that_is_out_of_memory(recwarn: pytest.WarningsRecorder) -> None:
    cache = ActivationCache(torch.device("cpu"))
    cache.limits["device"] = 1 << 20  # the CPU as the device
    slot, values = Slot("float", "x"), torch.arange(24.0).view(6, 4)
    cache.put(slot, 0, values, 6)
    assert cache.place(slot) == "device"
    failures = ["first", "second"]

    def work(value: int) -> int:
        if failures:
            failures.pop()
            raise torch.OutOfMemoryError("out of memory")
        return value

    assert with_room(cache, work, 7, smaller=lambda: True) == 7
    assert cache.place(slot) == "host"
    assert torch.equal(cache.get(slot, torch.tensor([4, 1])), values[[4, 1]])
    assert cache.notes == ["cpu ran out of memory: cached activations were moved to the host"]
    assert str(recwarn.pop(RuntimeWarning).message) == cache.notes[0]
    failures.append("third")
    with pytest.raises(torch.OutOfMemoryError):
        with_room(cache, work, 7)


def test_batches_are_cut_by_what_the_backward_pass_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(64, 256, requires_grad=True)

    def forward(count: int) -> torch.Tensor:
        return (torch.ones(count, 256) @ weight.T).exp()  # keeps 256 + 64 numbers of a sample, and the weight

    for largest, parts in ((1 << 20, 1), (16 * 4 * 320, 2), (8 * 4 * 320, 4), (9 * 4 * 320, 4), (1, 16)):
        monkeypatch.setattr(memory, "LARGEST_PART", largest)
        assert memory.parts_of(32, forward) == parts
    assert memory.parts_of(3, forward) == 1
