"""Where activations wait between blocks: on the device, in host memory or in memory-mapped files.

The place is chosen from a budget, tensor by tensor; results do not depend on it. Four-dimensional activations are
kept channels-last, the layout that convolutions run fastest in on the CPU.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


@dataclass
class _Entry:
    data: Tensor  # physical layout: channels last for 4-D samples
    place: str
    nbytes: int


class ActivationCache:
    """Named tensors of N samples each, within a memory budget.

    Args:
        device: where blocks run. budget: bytes on the device and in host memory together; `None` takes half of what
            is free on each. folder: for memory-mapped files; a temporary one by default.
    """

    def __init__(self, device: torch.device, budget: int | None = None, folder: Path | None = None) -> None:
        self.device = device
        host = free_host_memory() // 2
        card = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else 0
        self.limits = {"device": card, "host": host}
        self.total = card + host if budget is None else budget
        self._folder = Path(folder) if folder is not None else None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._entries: dict[str, _Entry] = {}
        self._count = 0
        self.peak: dict[str, int] = {"device": 0, "host": 0, "file": 0}

    def put(self, name: str, start: int, batch: Tensor, samples: int) -> None:
        """Store `batch` [n, ...] as samples `start` to `start + n` of `name`, which holds `samples` in all."""
        rows = _physical(batch)
        if name not in self._entries:
            self._entries[name] = self._allocate((samples, *rows.shape[1:]), rows.dtype)
        self._entries[name].data[start : start + len(rows)].copy_(rows)

    def get(self, name: str, index: Tensor | slice) -> Tensor:
        """Samples of `name` on the device, in the layout they had; `index` is a slice or int64 [n] on the CPU."""
        data = self._entries[name].data
        rows = data[index] if isinstance(index, slice) else data.index_select(0, index.to(data.device))
        rows = rows.to(self.device)
        return rows.permute(0, 3, 1, 2) if rows.dim() == 4 else rows

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def samples(self, name: str) -> int:
        return len(self._entries[name].data)

    def place(self, name: str) -> str:
        """`device`, `host` or `file`."""
        return self._entries[name].place

    def drop(self, name: str) -> None:
        entry = self._entries.pop(name, None)
        if entry is not None and entry.place == "file":
            path = Path(entry.data.untyped_storage().filename or "")
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Forget everything and delete the files."""
        for name in list(self._entries):
            self.drop(name)
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None
        if self._folder is not None:
            for path in self._folder.glob("activations-*.bin"):  # left by a run that was killed
                path.unlink(missing_ok=True)

    def used(self, place: str) -> int:
        return sum(entry.nbytes for entry in self._entries.values() if entry.place == place)

    def _allocate(self, shape: tuple[int, ...], dtype: torch.dtype) -> _Entry:
        numel = torch.Size(shape).numel()
        nbytes = numel * dtype.itemsize
        in_memory = self.used("device") + self.used("host")
        place = "file"
        for candidate in ("device", "host"):
            if nbytes + self.used(candidate) <= self.limits[candidate] and nbytes + in_memory <= self.total:
                place = candidate
                break
        if place == "file":
            self._count += 1
            path = str(self._directory() / f"activations-{self._count}.bin")
            data = torch.from_file(path, shared=True, size=numel, dtype=dtype).view(shape)
        else:
            data = torch.empty(shape, dtype=dtype, device=self.device if place == "device" else "cpu")
        entry = _Entry(data, place, nbytes)
        self.peak[place] = max(self.peak[place], self.used(place) + nbytes)
        return entry

    def _directory(self) -> Path:
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            return self._folder
        if self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="brecq-")
        return Path(self._temporary.name)


def _physical(batch: Tensor) -> Tensor:
    batch = batch.detach()
    return batch.permute(0, 2, 3, 1) if batch.dim() == 4 else batch


def free_host_memory() -> int:
    """Bytes of main memory that are available now."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 4 << 30  # not Linux: a size that any development machine has
