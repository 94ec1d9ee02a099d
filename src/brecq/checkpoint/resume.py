"""State of an unfinished run, block by block, so that a killed run continues after the last finished block.

<run_dir>/blocks/run.json                     fingerprint of what determines the run
<run_dir>/blocks/pass0-block0003.safetensors  learned tensors of one block; name and report in the header

Both hold their own checksum. A folder `blocks` without brecq's `run.json` is somebody else's and is never touched.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from brecq import ranks
from brecq.checkpoint.directory import versions
from brecq.errors import CheckpointError, ConfigError
from brecq.storage.arrays import read_sealed, write_arrays
from brecq.storage.files import TEMPORARY, explain, write
from brecq.storage.lock import locked
from brecq.storage.sealed import Damaged, seal, unseal

FORMAT, VERSION = "brecq run", 2
RUN = "run.json"
_BLOCK = re.compile(r"pass(\d+)-block(\d+)\.safetensors")
_START_AGAIN = "start again without --resume, which deletes its blocks, or choose another folder"


class BlockState(NamedTuple):
    """What was saved of one block."""

    name: str
    state: dict[str, Tensor]
    report: dict[str, Any]


def fingerprint(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], data_digest: str, blocks: Sequence[str]
) -> str:
    """One line that names a digest for each thing that determines a run, so that a difference can be named too.

    Args:
        config: plain JSON values; leave out what does not change the result.
        weights: state of the float network.
        data_digest: of the calibration data.
        blocks: names in order, members included where they matter.
    """
    tensors = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        tensors.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        tensors.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    parts = {
        "config": json.dumps(config, sort_keys=True),
        "weights": tensors.hexdigest(),
        "data": data_digest,
        "blocks": json.dumps(list(blocks)),
    }
    digests = [f"{name}:{_digest(text)}" for name, text in parts.items()]
    return " ".join([*digests, *(f"{package}:{version}" for package, version in versions().items())])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def agree(fingerprint: str) -> None:
    """Raise `ConfigError` unless all processes of the run have the same fingerprint."""
    theirs = ranks.current().first(lambda: fingerprint)
    if theirs != fingerprint:
        what = " and ".join(_different(theirs, fingerprint))
        raise ConfigError(f"the processes of the run were given different {what}; give all of them the same")


def has_run(run_dir: Path) -> bool:
    """Whether there is an unfinished run of brecq in the folder, damaged or not."""
    return (run_dir / "blocks" / RUN).is_file()


P = ParamSpec("P")
R = TypeVar("R")


def alone_in_run_dir(function: Callable[P, R]) -> Callable[P, R]:
    """Keep other runs out of the folder `run_dir`, a keyword argument, while `function` runs."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        run_dir = kwargs.get("run_dir")
        if run_dir is None:
            return function(*args, **kwargs)
        with locked(Path(str(run_dir)), CheckpointError) if ranks.current().rank == 0 else nullcontext():
            return function(*args, **kwargs)

    return wrapped


class RunState:
    """Finished blocks of a run in `<run_dir>/blocks/`. Of several processes the first reads and writes, for all.

    Args:
        run_dir: created where it does not exist; only its subfolder `blocks` is used.
        fingerprint: digest of the configuration, weights, data and blocks, see `fingerprint`.
        resume: continue the run that is there; otherwise it is cleared.

    Raises:
        CheckpointError: `resume`, and there is no run, or the run that is there has another fingerprint or format; the
            folder `blocks` is not brecq's; or it cannot be written.
    """

    def __init__(self, run_dir: Path | str, fingerprint: str, *, resume: bool = False) -> None:
        self.run_dir = Path(run_dir)
        self.folder = self.run_dir / "blocks"
        self.fingerprint = fingerprint
        self.first_pass = 0
        ranks.current().first(lambda: self._check(self._read_run()) if resume else self._start())

    def section(self, first_pass: int | None = None, **settings: Any) -> RunState:
        """The same run, whose passes count from `first_pass`: one of several networks that are quantized in it. What
        was saved with other `settings`, plain JSON values that matter to these passes alone, is not of it."""
        section = copy.copy(self)
        if first_pass is not None:
            section.first_pass = first_pass
        if settings:
            section.fingerprint += f" settings:{_digest(json.dumps(settings, sort_keys=True))}"
        return section

    def save_block(
        self, pass_index: int, block_index: int, name: str, state: Mapping[str, Tensor], report: Mapping[str, Any]
    ) -> None:
        """Save one finished block; a kill at any moment leaves either nothing of it or all of it.

        Args:
            state: tensors of any dtype and device; `load_block` returns them on the CPU.
            report: plain JSON values.

        Raises:
            CheckpointError: the file cannot be written.
        """
        header = {"name": name, "report": json.dumps(dict(report)), "fingerprint": self.fingerprint}
        file = self._file(pass_index, block_index)
        ranks.current().first(lambda: write_arrays(file, state, header, CheckpointError, sealed=True))

    def finished(self, pass_index: int) -> list[int]:
        """Indexes 0, 1, 2, ... of the finished blocks of a pass, up to the first that is missing or damaged."""
        together = ranks.current()
        found: list[int] = []
        while together.first(lambda: self._read(pass_index, len(found)) is not None):
            found.append(len(found))
        return found

    def load_block(self, pass_index: int, block_index: int) -> BlockState:
        """Name, tensors (on the CPU) and report of a finished block.

        Raises:
            CheckpointError: the block is not finished, or its file was changed.
        """
        found = ranks.current().first(lambda: self._read(pass_index, block_index))
        if found is None:
            raise CheckpointError(
                f"{self._file(pass_index, block_index)} is missing or damaged; resume from a block before it"
            )
        return found

    def clear(self) -> None:
        """Forget all blocks, as after the run is finished; files of others in their folder stay."""
        if not ranks.is_first():
            return
        names = self._names()
        if not self._is_ours():
            return
        ours = [name for name in names if _BLOCK.fullmatch(name.removeprefix(TEMPORARY))]
        for name in [*ours, TEMPORARY + RUN, RUN]:  # as long as anything of it is left, the folder is known as ours
            (self.folder / name).unlink(missing_ok=True)
        with suppress(OSError):  # something of somebody else's is in it
            self.folder.rmdir()

    def _read(self, pass_index: int, block_index: int) -> BlockState | None:
        try:
            state, header = read_sealed(self._file(pass_index, block_index))
        except (OSError, ValueError):
            return None
        if header.get("fingerprint") != self.fingerprint:
            return None
        return BlockState(header["name"], state, json.loads(header["report"]))

    def _file(self, pass_index: int, block_index: int) -> Path:
        return self.folder / f"pass{self.first_pass + pass_index}-block{block_index:04d}.safetensors"

    def _names(self) -> set[str]:
        return {file.name for file in self.folder.iterdir()} if self.folder.is_dir() else set()

    def _is_ours(self) -> bool:
        """Whether a run of brecq made the folder, even if its `run.json` was damaged since."""
        try:
            return FORMAT.encode() in (self.folder / RUN).read_bytes()
        except OSError:
            return False

    def _start(self) -> None:
        names = self._names() - {TEMPORARY + RUN}  # which a kill leaves
        if names and not self._is_ours():
            raise CheckpointError(
                f"{self.folder} holds {min(names)}, but no run of brecq, and is left alone; choose another folder"
            )
        try:
            self.clear()
        except OSError as error:
            raise CheckpointError(f"cannot use {self.run_dir} as run folder: {explain(error, self.folder)}") from error
        text = seal({"format": FORMAT, "version": VERSION, "fingerprint": self.fingerprint})
        write(self.folder / RUN, text.encode(), CheckpointError, parents=True)

    def _read_run(self) -> dict[str, Any]:
        if not has_run(self.run_dir):
            raise CheckpointError(f"there is nothing to resume in {self.run_dir}; start without --resume")
        try:
            return unseal((self.folder / RUN).read_bytes())
        except (OSError, Damaged) as error:
            raise CheckpointError(f"{self.folder / RUN} was changed or damaged: {error}; {_START_AGAIN}") from error

    def _check(self, known: Mapping[str, Any]) -> None:
        if known.get("format") != FORMAT or known.get("version") != VERSION:
            raise CheckpointError(
                f"{self.folder} has format version {known.get('version')!r}, this brecq reads {VERSION}; "
                f"{_START_AGAIN}"
            )
        if known.get("fingerprint") != self.fingerprint:
            changed = _different(str(known.get("fingerprint")), self.fingerprint)
            raise CheckpointError(
                f"{self.folder} holds a run with a different {' and '.join(changed)}; "
                f"give the same as before, {_START_AGAIN}"
            )


def _different(then: str, now: str) -> list[str]:
    """What differs between two fingerprints."""
    before, after = _parts(then), _parts(now)
    return [
        f"{name} ({before[name]} then, {after[name]} now)" if name in versions() and name in before else name
        for name in after
        if before.get(name) != after[name]
    ] or ["fingerprint"]


def _parts(fingerprint: str) -> dict[str, str]:
    """`name:digest` pairs; a fingerprint of another form is one unnamed part."""
    pairs = [part.partition(":") for part in fingerprint.split()]
    return {name: digest for name, separator, digest in pairs if separator}
