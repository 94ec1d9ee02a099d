"""Several processes at work on one run (`torchrun`): which samples each of them has, and how what they find is summed.

Every process runs the same program. It has a `Share` of the calibration samples, takes its part of every batch, and
whatever is a sum over samples (gradients, errors, moments) is summed over the processes, so that all of them go on
with the same numbers. What does not depend on samples is done by each. Files are the first one's alone: see `first`.

A run enters by `together`; without an initialized `torch.distributed` group there is one process, and no sum costs
anything.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar, NamedTuple, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from brecq.errors import BrecqError, DataError

P = ParamSpec("P")
R = TypeVar("R")

UNIT = 16
"""Samples that stay together: at one process, and in whatever is observed or summed up a few samples at a time, so
that the result does not depend on the number of processes."""

PATIENCE = timedelta(days=7)
"""A process may wait so long for the others: the first evaluates networks alone meanwhile. One that ends is noticed at
once."""


class PeerError(BrecqError):
    """Another process of the run failed, or is gone."""


class Part(NamedTuple):
    """The samples of a batch that one process has: the batch's `before` to `before + len(places)`, of `total`.

    `places`: where they are among the process's own, int64 on the CPU.
    """

    places: Tensor
    before: int
    total: int

    @property
    def weight(self) -> float:
        """Of a mean over these samples in the mean over the batch."""
        return len(self.places) / self.total

    def pieces(self, count: int) -> list[Part]:
        """These samples in as many parts, or in as many as there are samples; none of none."""
        chunks = self.places.tensor_split(min(count, len(self.places))) if len(self.places) else ()
        edges = itertools.accumulate((len(chunk) for chunk in chunks), initial=self.before)
        return [Part(chunk, before, self.total) for chunk, before in zip(chunks, edges, strict=False)]


class Unit(NamedTuple):
    """Samples that stay together; `rows`: among those of the process that has them."""

    number: int
    rows: slice


@dataclass(frozen=True)
class Share:
    """The samples that process `rank` of `size` has, of `samples` in all: whole units, one after another."""

    samples: int
    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        if self._units < self.size:
            raise DataError(
                f"{self.samples} calibration samples are too few for {self.size} processes; give at least "
                f"{UNIT} each, or start fewer"
            )

    @property
    def start(self) -> int:
        return self._edge(self.rank * self._units // self.size)

    @property
    def stop(self) -> int:
        return self._edge((self.rank + 1) * self._units // self.size)

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop)

    def __len__(self) -> int:
        return self.stop - self.start

    def mine(self, index: Tensor) -> Tensor:
        """Those of `index` (int64, among all samples) that the process has, as places among its own."""
        return self.part(index).places

    def part(self, index: Tensor) -> Part:
        """The process's part of a batch; `index`: the batch, int64, sorted."""
        mine = index[(index >= self.start) & (index < self.stop)] - self.start
        return Part(mine, int((index < self.start).sum()), len(index))

    def units(self, wanted: int | None = None) -> list[Unit]:
        """The process's units: all, or of those that hold `wanted` samples, evenly spread over all samples, the last
        cut short."""
        return [
            Unit(number, slice(rows.start - self.start, rows.stop - self.start))
            for number, rows in self.every_unit(wanted)
            if self.start <= rows.start < self.stop
        ]

    def every_unit(self, wanted: int | None = None) -> list[Unit]:
        """The same of all processes, with `rows` among all samples."""
        wanted = self.samples if wanted is None else min(wanted, self.samples)
        count = min(-(-wanted // (self.samples // self._units)), self._units)
        found, left = [], wanted
        for number in (i * self._units // count for i in range(count)):
            start = self._edge(number)
            stop = min(self._edge(number + 1), start + left)
            left -= stop - start
            if start < stop:
                found.append(Unit(number, slice(start, stop)))
        return found

    def batches(self, size: int) -> Iterator[list[Unit]]:
        """The process's samples in order: whole units, about `size` samples together."""
        units = self.units()
        for first in range(0, len(units), max(1, size // UNIT)):
            yield units[first : first + max(1, size // UNIT)]

    @property
    def _units(self) -> int:
        return -(-self.samples // UNIT)

    def _edge(self, unit: int) -> int:
        return unit * self.samples // self._units  # of nearly the same size: none holds a single sample if avoidable


class Ranks:
    """The processes that work together: this is number `rank` of `size`. This class is the process alone."""

    rank = 0
    size = 1

    def share(self, samples: int) -> Share:
        """This process's of so many samples.

        Raises:
            DataError: there are too few for so many processes.
        """
        return Share(samples, self.rank, self.size)

    def sum(self, values: Sequence[Tensor]) -> None:
        """Replace each of `values`, of one dtype and device, by its sum over the processes."""

    def sum_gradients(self, optimizer: torch.optim.Optimizer, *others: Tensor) -> None:
        """Sum the gradients that an optimizer will use, and `others`, over the processes; missing ones are zeros."""

    def total(self, *values: float) -> list[float]:
        """Sums of numbers over the processes."""
        return list(values)

    def first(self, function: Callable[[], R]) -> R:
        """What `function` returns in the first process, which alone calls it."""
        return function()

    def gather(self, value: R) -> list[R]:
        """Of every process its `value`."""
        return [value]

    def tells(self) -> bool:
        """Whether it is for this process, which failed, to say why: one of them does."""
        return True


ALONE = Ranks()
_current: Ranks | None = None
_calls = itertools.count()


def current() -> Ranks:
    """The processes that this one works with at the moment."""
    return ALONE if _current is None else _current


def is_first() -> bool:
    """Whether this process is the one that writes files."""
    if _current is not None:
        return _current.rank == 0
    return not _in_group() or dist.get_rank() == 0


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process works by itself, whatever the others do."""
    global _current
    before, _current = _current, ALONE
    try:
        yield
    finally:
        _current = before


def together(function: Callable[P, R]) -> Callable[P, R]:
    """While `function` runs, the processes of the `torch.distributed` group work together; all of them must call it.

    Where it fails in one, the others raise `PeerError` with its message as soon as they wait for it.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with joined():
            return function(*args, **kwargs)

    return wrapped


@contextmanager
def joined() -> Iterator[Ranks]:
    """`together` for a block of code; inside another, or without a group of several processes, it does nothing."""
    global _current
    if _current is not None or not _in_group():
        yield current()
        return
    group = _Group(next(_calls))
    _current = group
    try:
        with warnings.catch_warnings():
            if group.rank:
                warnings.simplefilter("ignore")
            group.meet()
            yield group
    except BaseException as error:
        group.fail(error)
        raise
    finally:
        _current = None


def join() -> None:
    """Initialize the group of the processes that `torchrun` started, and give each the device of its number."""
    if dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) < 2 or "MASTER_ADDR" not in os.environ:
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    dist.init_process_group(timeout=PATIENCE)


def _in_group() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class _Group(Ranks):
    """The processes of the `torch.distributed` group, in a group of their own: gloo on the CPU, NCCL on CUDA.

    A failure is written to the group's store, and the group destroyed: whoever waits in it wakes up and reads why.
    """

    _groups: ClassVar[dict[int, dist.ProcessGroup]] = {}

    def __init__(self, call: int) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.store = dist.PrefixStore(f"brecq/{call}", dist.distributed_c10d._get_default_store())
        self.world = id(dist.group.WORLD)

    def meet(self) -> None:
        """Wait for all processes; whoever fails before is noticed."""
        arrived = self.store.add("arrived", 1)
        while arrived < self.size:
            if self._failed():
                raise self._why(RuntimeError("it did not arrive"))
            time.sleep(0.02)
            arrived = self.store.add("arrived", 0)
        if self.world not in self._groups:
            cuda = dist.is_nccl_available() and torch.cuda.is_available()
            backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
            self._groups[self.world] = self._do(dist.new_group, backend=backend, timeout=PATIENCE)

    def sum(self, values: Sequence[Tensor]) -> None:
        values = [value for value in values if value.numel()]
        if not values:
            return
        flat = torch.cat([value.detach().reshape(-1) for value in values])
        self._do(dist.all_reduce, flat, group=self._group)
        for value, part in zip(values, flat.split([value.numel() for value in values]), strict=True):
            value.data.copy_(part.view_as(value))

    def sum_gradients(self, optimizer: torch.optim.Optimizer, *others: Tensor) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.sum([*(parameter.grad for parameter in parameters), *others])

    def total(self, *values: float) -> list[float]:
        sums = torch.tensor(values, dtype=torch.float64)
        self.sum([sums])
        found: list[float] = sums.tolist()
        return found

    def first(self, function: Callable[[], R]) -> R:
        found: list[Any] = [function() if self.rank == 0 else None]
        self._do(dist.broadcast_object_list, found, group=self._group, device=torch.device("cpu"), group_src=0)
        value: R = found[0]
        return value

    def gather(self, value: R) -> list[R]:
        found: list[Any] = [None] * self.size
        self._do(dist.all_gather_object, found, value, group=self._group)
        return found

    def fail(self, error: BaseException) -> None:
        """Let the others know; the first to fail is remembered."""
        message = " ".join(str(error).split()) or type(error).__name__
        with suppress(RuntimeError):
            if self.store.add("failures", 1) == 1:
                self.store.set("failed", json.dumps([self.rank, message]))
        self.leave()

    def tells(self) -> bool:
        with suppress(RuntimeError):
            return bool(self._failed()[0] == self.rank)
        return self.rank == 0

    def leave(self) -> None:
        """End the group: the others' sums with this process fail instead of waiting."""
        group = self._groups.pop(self.world, None)
        if group is not None:
            with suppress(RuntimeError, ValueError):
                dist.destroy_process_group(group)

    @property
    def _group(self) -> dist.ProcessGroup:
        return self._groups[self.world]

    def _do(self, collective: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return collective(*args, **kwargs)
        except RuntimeError as error:
            raise self._why(error) from error

    def _why(self, error: RuntimeError) -> PeerError:
        """Another process is gone: what it left behind, if it does so within a moment."""
        with suppress(RuntimeError):
            for _ in range(40):
                if found := self._failed():
                    return PeerError(f"process {found[0]} of {self.size} failed: {found[1]}")
                time.sleep(0.05)
        reason = next(iter(str(error).splitlines()), "")
        return PeerError(
            f"another of the {self.size} processes has ended ({reason}); start them again: a run that is kept in a "
            "folder continues with resume, also with another number of processes"
        )

    def _failed(self) -> list[Any]:
        """Number and message of the process that failed first, if one did."""
        return list(json.loads(self.store.get("failed"))) if self.store.check(["failed"]) else []
