"""Where activations wait between blocks: on the device, in host memory or in memory-mapped files.

The place is chosen from a budget, tensor by tensor; results do not depend on it. Four-dimensional activations are
kept channels-last, the layout that convolutions run fastest in on the CPU. Activations on a grid are kept as their
codes, others in half precision: `brecq.reconstruct.stored` says what that loses.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from brecq.errors import CheckpointError
from brecq.forward import even_slices
from brecq.quant.grid import Grid
from brecq.reconstruct.stored import AsIs, Codes, Coding, Half
from brecq.storage.files import TEMPORARY, explain, reserve, unload

Kind = Literal["input", "received", "float", "quantized", "fisher", "gradient", "tuned", "target"]


class Slot(NamedTuple):
    """What a tensor in the cache is.

    Attributes:
        kind: an `input` of the network, or what the quantized one `received` in its place; a block's output in the
            `float` or the `quantized` stream; the weights of its squared error (`fisher`) or a vector of the Fisher
            information (`gradient`); `tuned`: an input of the end-to-end tuning, `target`: what it is to give.
        of: the activation's name; the number of the network's input or output in the tuning. draw: of the vector.
    """

    kind: Kind
    of: str | int
    draw: int = 0


@dataclass
class _Entry:
    data: Tensor  # physical layout: channels last for 4-D samples
    place: str
    nbytes: int
    coding: Coding


_SMALL = 1 << 20
"""Bytes of what the heap has room for."""

HALVED = ("float", "quantized", "target")
"""Kinds of slots that are kept in half precision."""


class ActivationCache:
    """Tensors of N samples each, by slot, within a memory budget.

    Attributes:
        notes: what was done otherwise than planned, for the report.

    Args:
        device: where blocks run. budget: bytes on the device and in host memory together; `None` takes half of what
            is free on each. folder: for memory-mapped files; the system's for temporary files by default. They have no
            name once they are mapped, so that nothing of them is left however a run ends. exact: nothing in half
            precision, for measurements of differences that are as small as its rounding.
    """

    def __init__(
        self,
        device: torch.device,
        budget: int | None = None,
        folder: Path | str | None = None,
        *,
        exact: bool = False,
    ) -> None:
        self.device, self.exact = device, exact
        host = free_host_memory() // 2
        card = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else 0
        self.limits = {"device": card, "host": host}
        self.total = card + host if budget is None else budget
        self._folder = Path(tempfile.gettempdir()) if folder is None else Path(folder)
        self._entries: dict[Slot, _Entry] = {}
        self.peak: dict[str, int] = {"device": 0, "host": 0, "file": 0}
        self.notes: list[str] = []
        self._copies: torch.cuda.Stream | None = None

    def put(self, slot: Slot, start: int, batch: Tensor, samples: int, grid: Grid | None = None) -> None:
        """Store `batch` [n, ...] as samples `start` to `start + n` of a slot that holds `samples` in all.

        `grid`: one with at most 256 codes, if all values are on it.
        """
        rows = _physical(batch)
        if slot not in self._entries:
            halved = slot.kind in HALVED and rows.dtype == torch.float32 and not self.exact
            coding = Codes(grid) if grid is not None else Half.of(rows) if halved else AsIs(rows.dtype)
            self._entries[slot] = self._allocate((samples, *rows.shape[1:]), coding)
        entry = self._entries[slot]
        stored = entry.coding.encode(rows)
        if stored is None:  # much larger than what came before
            self._entries[slot] = self._allocate(tuple(entry.data.shape), AsIs(rows.dtype))
            self._entries[slot].data[:start].copy_(entry.coding.decode(entry.data[:start]))
            entry, stored = self._entries[slot], rows
        entry.data[start : start + len(rows)].copy_(stored)
        self._unload(entry)

    def keep(self, slot: Slot, values: Tensor) -> None:
        """Store all samples of a slot. On the CPU the slot refers to `values`, which nobody may write into."""
        if self.device.type == "cpu":
            self._entries[slot] = _Entry(_physical(values), "given", 0, AsIs(values.dtype))
            return
        for rows in even_slices(len(values)):
            self.put(slot, rows.start, values[rows], len(values))

    def get(self, slot: Slot, index: Tensor | slice) -> Tensor:
        """Samples of a slot on the device, in the layout they had; `index` is a slice or int64 [n] on the CPU."""
        entry = self._entries[slot]
        if self.device.type == "cuda":
            rows = self._on_device(entry.data, index) if entry.place == "device" else self._fetch(entry.data, index)
        else:
            rows = entry.data[index] if isinstance(index, slice) else entry.data.index_select(0, index)
        rows = entry.coding.decode(rows.contiguous())
        if entry.place == "file" and isinstance(index, slice) and rows.data_ptr() == entry.data[index].data_ptr():
            rows = rows.clone()  # of its own, and the file can be unloaded
        self._unload(entry)
        return rows.permute(0, 3, 1, 2) if rows.dim() == 4 else rows

    def _unload(self, entry: _Entry) -> None:
        """Let go of the pages of a file: what is in memory of it is the system's cache, not this process's."""
        if entry.place == "file":
            unload(entry.data)

    def _on_device(self, data: Tensor, index: Tensor | slice) -> Tensor:
        if isinstance(index, slice):
            return data[index]
        return data.index_select(0, index.pin_memory().to(self.device, non_blocking=True))

    def _fetch(self, data: Tensor, index: Tensor | slice) -> Tensor:
        """From host memory or a file. The host runs ahead of the device, and this stream copies what the next step
        needs while the last one is still computed."""
        count = len(range(*index.indices(len(data)))) if isinstance(index, slice) else len(index)
        staged = torch.empty((count, *data.shape[1:]), dtype=data.dtype, pin_memory=True)
        if isinstance(index, slice):
            staged.copy_(data[index])
        else:
            torch.index_select(data, 0, index, out=staged)
        computing = torch.cuda.current_stream(self.device)
        if self._copies is None:
            self._copies = torch.cuda.Stream(self.device)
        with torch.cuda.stream(self._copies):
            rows = staged.to(self.device, non_blocking=True)
        computing.wait_stream(self._copies)
        rows.record_stream(computing)
        return rows

    def evict(self) -> bool:
        """Move what is on the device to where there is room for it, and keep the device clear from now on: it is out
        of memory. Whether that freed anything; if so, `notes` tell."""
        there = {slot: entry for slot, entry in self._entries.items() if entry.place == "device"}
        self.limits["device"] = 0
        for slot, entry in there.items():
            del self._entries[slot]
            moved = self._allocate(tuple(entry.data.shape), entry.coding)
            moved.data.copy_(entry.data)
            self._entries[slot] = moved
        if there:
            self.say(f"{self.device} ran out of memory: cached activations were moved to the host")
        return bool(there)

    def say(self, note: str) -> None:
        """Warn of what is done otherwise than planned, and keep it for the report."""
        self.notes.append(note)
        warnings.warn(note, RuntimeWarning, stacklevel=2)

    def __contains__(self, slot: object) -> bool:
        return slot in self._entries

    def samples(self, slot: Slot) -> int:
        return len(self._entries[slot].data)

    def place(self, slot: Slot) -> str:
        """`device`, `host` or `file`; `given`: with the caller."""
        return self._entries[slot].place

    def drop(self, slot: Slot) -> None:
        self._entries.pop(slot, None)

    def close(self) -> None:
        """Forget everything."""
        self._entries.clear()

    def used(self, place: str) -> int:
        return sum(entry.nbytes for entry in self._entries.values() if entry.place == place)

    def _allocate(self, shape: tuple[int, ...], coding: Coding) -> _Entry:
        dtype = coding.dtype
        numel = torch.Size(shape).numel()
        nbytes = numel * dtype.itemsize
        in_memory = self.used("device") + self.used("host")
        place = "file"
        for candidate in ("device", "host"):
            if nbytes + self.used(candidate) <= self.limits[candidate] and nbytes + in_memory <= self.total:
                place = candidate
                break
        if place == "file":
            data = self._mapped(numel, dtype).view(shape)
        else:
            try:
                data = (
                    torch.empty(shape, dtype=dtype, device=self.device) if place == "device" else _apart(shape, dtype)
                )
            except torch.OutOfMemoryError:  # others use the device, too
                self.limits["device"] = self.used("device")
                return self._allocate(shape, coding)
        entry = _Entry(data, place, nbytes, coding)
        self.peak[place] = max(self.peak[place], self.used(place) + nbytes)
        return entry

    def _mapped(self, numel: int, dtype: torch.dtype) -> Tensor:
        """Zeros in a file whose room is reserved: on a full disk, writing to a mapped hole would end the process."""
        size = numel * dtype.itemsize
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            descriptor, path = tempfile.mkstemp(prefix=f"{TEMPORARY}activations-", dir=self._folder)
            try:
                reserve(descriptor, size)
                return torch.from_file(path, shared=True, size=numel, dtype=dtype)
            finally:
                os.close(descriptor)
                os.unlink(path)
        except OSError as error:
            reason = explain(error, self._folder / "activations", size)
            raise CheckpointError(f"activations exceed the memory budget, and {reason}") from error


def _apart(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory of the host, uninitialized, that goes back to the system with the tensor. On the heap, which keeps what
    is freed while blocks are learned, it would lie between the activations of the steps and leave holes behind."""
    size = torch.Size(shape).numel() * dtype.itemsize
    if size < _SMALL or not hasattr(mmap, "MAP_ANONYMOUS"):
        return torch.empty(shape, dtype=dtype)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


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
