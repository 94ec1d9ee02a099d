"""State of an unfinished run, block by block, so that a killed run continues after the last finished block.

<run_dir>/blocks/run.json                     fingerprint of what determines the run
<run_dir>/blocks/pass0-block0003.safetensors  learned tensors of one block; name and report in the header
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from brecq.checkpoint.directory import sync
from brecq.errors import CheckpointError

VERSION = 1
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
    return " ".join(f"{name}:{hashlib.sha256(text.encode()).hexdigest()[:16]}" for name, text in parts.items())


class RunState:
    """Finished blocks of a run in `<run_dir>/blocks/`.

    Args:
        run_dir: created where it does not exist; only its subfolder `blocks` is used.
        fingerprint: digest of the configuration, weights, data and blocks, see `fingerprint`.
        resume: continue the run that is there, if any; otherwise it is cleared.
        overwrite: without `resume`, `False` makes finished blocks of an earlier run an error.

    Raises:
        CheckpointError: `resume`, and the run that is there has another fingerprint or format; not `resume` and not
            `overwrite`, and there are finished blocks; or the folder cannot be written.
    """

    def __init__(self, run_dir: Path | str, fingerprint: str, *, resume: bool = False, overwrite: bool = True) -> None:
        self.run_dir = Path(run_dir)
        self.folder = self.run_dir / "blocks"
        self.fingerprint = fingerprint
        known = self._read_run()
        has_blocks = any(_BLOCK.fullmatch(file.name) for file in self._files())
        if resume and known is not None:
            self._check(known)
        elif resume and has_blocks:
            raise CheckpointError(f"{self.folder / 'run.json'} is missing or damaged; {_START_AGAIN}")
        elif has_blocks and not overwrite:
            raise CheckpointError(
                f"{self.folder} holds blocks of an unfinished run; continue it with --resume, or delete the folder"
            )
        else:
            self._start()

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
        tensors = {
            key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in state.items()
        }
        header = {"name": name, "report": json.dumps(dict(report)), "fingerprint": self.fingerprint}
        file = self._file(pass_index, block_index)
        temporary = file.with_name(f".tmp.{file.name}")
        try:
            save_file(tensors, temporary, metadata=header)
            sync(temporary)
            os.replace(temporary, file)
            sync(self.folder)
        except OSError as error:
            raise CheckpointError(f"cannot save block {name!r} to {file}: {error}; free some space, resume") from error

    def finished(self, pass_index: int) -> list[int]:
        """Indexes 0, 1, 2, ... of the finished blocks of a pass, up to the first that is missing or unreadable."""
        found: list[int] = []
        while self._header(pass_index, len(found)) is not None:
            found.append(len(found))
        return found

    def load_block(self, pass_index: int, block_index: int) -> BlockState:
        """Name, tensors (on the CPU) and report of a finished block.

        Raises:
            CheckpointError: the block is not finished.
        """
        header = self._header(pass_index, block_index)
        if header is None:
            raise CheckpointError(
                f"{self._file(pass_index, block_index)} is missing or damaged; resume from a block before it"
            )
        with safe_open(self._file(pass_index, block_index), framework="pt") as stored:
            state = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 (not a mapping)
        return BlockState(header["name"], state, json.loads(header["report"]))

    def clear(self) -> None:
        """Forget all blocks, as after the run is finished."""
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def _header(self, pass_index: int, block_index: int) -> dict[str, str] | None:
        try:
            with safe_open(self._file(pass_index, block_index), framework="pt") as stored:
                header: dict[str, str] = stored.metadata() or {}
        except (OSError, SafetensorError):
            return None
        return header if header.get("fingerprint") == self.fingerprint else None

    def _file(self, pass_index: int, block_index: int) -> Path:
        return self.folder / f"pass{pass_index}-block{block_index:04d}.safetensors"

    def _files(self) -> list[Path]:
        return list(self.folder.iterdir()) if self.folder.is_dir() else []

    def _start(self) -> None:
        try:
            self.clear()
            self.folder.mkdir(parents=True)
            temporary = self.folder / ".tmp.run.json"
            temporary.write_text(json.dumps({"version": VERSION, "fingerprint": self.fingerprint}), encoding="utf-8")
            sync(temporary)
            os.replace(temporary, self.folder / "run.json")
            sync(self.folder)
        except OSError as error:
            raise CheckpointError(f"cannot use {self.run_dir} as run folder: {error}; choose another") from error

    def _read_run(self) -> dict[str, Any] | None:
        """What `run.json` says; `None` without one, also where a kill came before it was complete."""
        try:
            run = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return run if isinstance(run, dict) else None

    def _check(self, known: Mapping[str, Any]) -> None:
        if known.get("version") != VERSION:
            raise CheckpointError(
                f"{self.folder} has format version {known.get('version')!r}, this brecq reads {VERSION}; "
                f"{_START_AGAIN}"
            )
        if known.get("fingerprint") != self.fingerprint:
            before, now = (_parts(text) for text in (str(known.get("fingerprint")), self.fingerprint))
            changed = [name for name in now if before.get(name) != now[name]]
            raise CheckpointError(
                f"{self.folder} holds a run with a different {' and '.join(changed) or 'fingerprint'}; "
                f"give the same as before, {_START_AGAIN}"
            )


def _parts(fingerprint: str) -> dict[str, str]:
    """`name:digest` pairs; a fingerprint of another form is one unnamed part."""
    pairs = [part.partition(":") for part in fingerprint.split()]
    return {name: digest for name, separator, digest in pairs if separator}
