"""The result of quantizing several submodules of a network in one run, and the folder that it is saved to.

manifest.json        versions, configuration, the submodules in the order they are called in, how each is called
report.json          one report of the whole run
timing.json          how long it took
parts/0-backbone/    a folder like that of any result (docs/format.md) for each submodule
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from brecq import ranks
from brecq import result as single
from brecq.checkpoint.directory import MANIFEST, REPORT, TIMING, versions
from brecq.checkpoint.resume import RunState
from brecq.config import QuantConfig
from brecq.errors import CheckpointError, ConfigError
from brecq.report import Report
from brecq.result import QuantResult, apart, together
from brecq.storage.files import refuse_strangers, sha256
from brecq.storage.files import write as write_file
from brecq.storage.sealed import Damaged, parse, render, seal, unseal
from brecq.submodules.parts import Interface, put_back

FORMAT, FORMAT_VERSION = "brecq parts", 1
PARTS = "parts"


class CompositeResult(QuantResult):
    """Several quantized submodules of one network.

    Attributes:
        parts: the result of each submodule, in the order they are called in; each can be exported and verified alone.
        interfaces: how each is called. report: of the whole run. around: the float network; `None` after loading.
    """

    def __init__(
        self,
        parts: Mapping[str, QuantResult],
        interfaces: Mapping[str, Interface],
        report: Report,
        config: QuantConfig,
        around: nn.Module | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self.parts, self.interfaces = dict(parts), dict(interfaces)
        self.report, self.config, self.around = report, config, around
        self.metadata = {} if metadata is None else metadata
        self.run_state: RunState | None = None
        self.wrapped, self.ranges = None, None

    def __repr__(self) -> str:
        return f"CompositeResult({', '.join(self.parts)})"

    @property
    def converted(self) -> nn.Module:  # type: ignore[override]
        """There is none of the whole network.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"{', '.join(self.parts)} were quantized, each a program of its own; take one of them: result.parts[...], "
            "or its folder in parts/"
        )

    @property
    def example_inputs(self) -> Any:  # type: ignore[override]
        """Of the parts alone.

        Raises:
            ConfigError: always.
        """
        return self.converted

    @property
    def model(self) -> nn.Module:
        """A copy of the network with the quantized submodules; it takes what the network takes.

        Raises:
            ConfigError: the result was loaded: the float network is needed around it, see `put_into`.
        """
        if self.around is None:
            raise ConfigError(
                f"only {', '.join(self.parts)} are saved, the network around them is not; give the float network: "
                "result.put_into(model)"
            )
        if not hasattr(self, "_whole"):
            self._whole = self.put_into(self.around)
        return self._whole

    def put_into(self, model: nn.Module) -> nn.Module:
        """A copy of the float network, in eval mode, with the quantized submodules.

        Raises:
            ConfigError: it has no submodules of these names.
        """
        return put_back(model, {name: (part.converted, self.interfaces[name]) for name, part in self.parts.items()})

    def weight_bytes(self) -> int:
        return sum(part.weight_bytes() for part in self.parts.values())

    def float_bytes(self) -> int:
        return sum(part.float_bytes() for part in self.parts.values())

    def digest(self) -> str:
        """SHA-256 over the digests of the parts."""
        return hashlib.sha256(" ".join(part.digest() for part in self.parts.values()).encode()).hexdigest()

    def save(self, path: Path | str) -> Path:
        """Write the folder `path`: each submodule as a result of its own, then report, times and manifest. Of several
        processes the first writes.

        Raises:
            CheckpointError: as `QuantResult.save`.
        """
        path = Path(path)
        if not ranks.is_first():
            return path
        refuse_strangers(path, (REPORT, TIMING, MANIFEST), CheckpointError)
        listed = []
        for number, (name, part) in enumerate(self.parts.items()):
            folder = f"{PARTS}/{number}-{re.sub(r'[^A-Za-z0-9_.-]', '_', name)[:100]}"
            part.save(path / folder)
            listed.append({
                "name": name, "folder": folder, "sha256": sha256(path / folder / MANIFEST),
                "interface": asdict(self.interfaces[name]),
            })  # fmt: skip
        report, timing = apart(self.report.to_dict())
        write_file(path / REPORT, render({"format": "brecq report", **report}).encode(), CheckpointError)
        write_file(path / TIMING, seal({"format": "brecq timing", **timing}).encode(), CheckpointError)
        manifest = {
            "format": FORMAT, "format_version": FORMAT_VERSION, "versions": versions(),
            "config": self.config.to_dict(), "seed": self.config.seed, "data_digest": self.report.data_digest,
            "metadata": self.metadata,
            "parts": listed, "files": {REPORT: {"sha256": sha256(path / REPORT)}},
        }  # fmt: skip
        try:
            text = seal(manifest)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{MANIFEST} cannot hold a value: {error}") from error
        write_file(path / MANIFEST, text.encode(), CheckpointError)
        if self.run_state is not None:
            self.run_state.clear()
        return path


def load(path: Path | str) -> QuantResult:
    """Read a saved result; its network computes bit for bit what the saved one computed.

    Of several submodules it is a `CompositeResult`: the float network has to be given around them (`put_into`).

    Args:
        path: its folder, or `hf:USER/NAME` (`hf:USER/NAME@REVISION`): a repository that `brecq push` filled. The files
            are checked as those of a folder, and no code of the repository is run.

    Raises:
        CheckpointError: the folder or a file is missing, changed, or of another format version.
    """
    folder = Path(path)
    try:
        composite = (folder / PARTS).is_dir() and parse((folder / MANIFEST).read_bytes()).get("format") == FORMAT
    except (OSError, Damaged):
        composite = False
    return _load(folder) if composite else single.load(path)


def _load(path: Path) -> CompositeResult:
    try:
        manifest = unseal((path / MANIFEST).read_bytes())
        if manifest.get("format_version") != FORMAT_VERSION:
            raise CheckpointError(
                f"{path / MANIFEST} has format version {manifest.get('format_version')!r}, this brecq reads "
                f"{FORMAT_VERSION}; install the brecq that wrote it, or quantize again"
            )
        timing = unseal((path / TIMING).read_bytes())
        _check_digest(path / REPORT, manifest["files"][REPORT]["sha256"])
        report = Report.from_dict(together(parse((path / REPORT).read_bytes()), timing))
        parts, interfaces = {}, {}
        for entry in manifest["parts"]:
            folder = path / PARTS / Path(str(entry["folder"])).name
            _check_digest(folder / MANIFEST, entry["sha256"])
            parts[entry["name"]] = single.load(folder)
            interfaces[entry["name"]] = Interface(**entry["interface"])
        config = QuantConfig.from_dict(manifest["config"])
        return CompositeResult(parts, interfaces, report, config, metadata=manifest["metadata"])
    except OSError as error:
        raise CheckpointError(f"{error.filename or path} is missing; copy the whole folder") from error
    except Damaged as error:
        raise CheckpointError(f"a file of {path} was changed or damaged: {error}; copy the folder again") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} does not hold a result of brecq: {error!r}; write it again") from error


def _check_digest(file: Path, expected: str) -> None:
    if not file.is_file():
        raise CheckpointError(f"{file} is missing; copy the whole folder, or write the result again")
    if sha256(file) != expected:
        raise CheckpointError(f"{file} was changed or damaged; copy the folder again, or write the result again")
