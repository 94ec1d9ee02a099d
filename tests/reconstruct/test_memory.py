"""Keeping freed memory changes where memory comes from, and nothing else."""

from __future__ import annotations

import ctypes
import platform

import pytest
import torch

from brecq.reconstruct import memory
from brecq.reconstruct.memory import reuse_freed


def large_tensor() -> torch.Tensor:
    return torch.arange(1 << 24, dtype=torch.float32)  # 64 MB: beyond what glibc takes from its heap by default


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_used_again() -> None:
    with reuse_freed(torch.device("cpu")):
        first = large_tensor()
        address = first.data_ptr()
        del first
        assert large_tensor().data_ptr() == address


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
