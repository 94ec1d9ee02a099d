"""The folder of a result: program, packed weights, report, and a manifest that vouches for them.

    model.pt2             the converted program (`torch.export`)
    weights.safetensors   integer weights at their true bit-width, scales, zero points, the remaining tensors
    report.json           what was quantized, and how well each block was reconstructed
    manifest.json         versions, configuration, layout of the tensors, SHA-256 of the other files; written last

docs/format.md describes every field.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.export import ExportedProgram

from brecq.checkpoint.tensors import Stored, decode, encode
from brecq.errors import CheckpointError
from brecq.storage.files import sha256, sync
from brecq.version import __version__

FORMAT = "brecq"
FORMAT_VERSION = 1
PROGRAM, WEIGHTS, REPORT, MANIFEST = "model.pt2", "weights.safetensors", "report.json", "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """A result as read from its folder."""

    program: ExportedProgram
    tensors: dict[str, Stored]
    manifest: dict[str, Any]
    report: dict[str, Any]


def versions() -> dict[str, str]:
    """Versions of what determines the result."""
    return {"brecq": __version__, **{package: metadata.version(package) for package in ("torch", "torchao")}}


def write(
    path: Path | str,
    program: ExportedProgram,
    tensors: Mapping[str, Stored],
    manifest: Mapping[str, Any],
    report: Mapping[str, Any],
) -> Path:
    """Write a result into the folder `path`, creating it, or replacing the result that is there.

    All files are written under temporary names first; then the old manifest goes, the files are renamed, and the new
    manifest is put in place last: at no time does a mixture of old and new, or half a result, read as complete.
    Other files in the folder are left alone.

    Args:
        tensors: from `collect_tensors`.
        manifest: fields of the caller's (`config`, `seed`, `data_digest`, `metadata`, ...), plain JSON values; the
            fields `format`, `format_version`, `versions`, `tensors`, `activations` and `files` are added here.
        report: plain JSON values. In both, numbers that are not finite become null.

    Raises:
        CheckpointError: `path` is a file, cannot be written, or a value does not fit into JSON.
    """
    path = Path(path)
    added = {"format", "format_version", "versions", "tensors", "activations", "files"}
    if clash := sorted(added & manifest.keys()):
        raise CheckpointError(f"the manifest's field {clash[0]!r} is reserved; rename yours")
    arrays, table = encode(tensors)
    temporary = {name: path / f".tmp.{name}" for name in (PROGRAM, WEIGHTS, REPORT, MANIFEST)}
    try:
        path.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.export.save(program, temporary[PROGRAM])
        save_file(arrays, temporary[WEIGHTS], metadata={"format": FORMAT, "format_version": str(FORMAT_VERSION)})
        _write_json(temporary[REPORT], report)
        complete = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "versions": versions(),
            **manifest,
            "activations": activations(program),
            "tensors": table,
            "files": {name: {"sha256": sha256(temporary[name])} for name in (PROGRAM, WEIGHTS, REPORT)},
        }
        _write_json(temporary[MANIFEST], complete)
        for file in temporary.values():
            sync(file)
        (path / MANIFEST).unlink(missing_ok=True)
        for name, file in temporary.items():  # the manifest is the last one
            os.replace(file, path / name)
        sync(path)
    except OSError as error:
        raise CheckpointError(f"cannot write the result to {path}: {error}; choose another folder") from error
    finally:
        if path.is_dir():
            for file in temporary.values():
                file.unlink(missing_ok=True)
    return path


def read(path: Path | str) -> Checkpoint:
    """Read and check a folder that `write` wrote.

    `model.pt2` is a PyTorch archive: read results only from sources you trust.

    Raises:
        CheckpointError: the folder or a file is missing, was changed, or was written by an incompatible version;
            the message names the file and the fix.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    for name in (PROGRAM, WEIGHTS, REPORT):
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{file} is missing; copy the whole folder, or write the result again")
        expected, found = manifest["files"][name]["sha256"], sha256(file)
        if found != expected:
            raise CheckpointError(
                f"{file} was changed or damaged: its SHA-256 is {found}, {MANIFEST} says {expected}; "
                "copy the folder again, or write the result again"
            )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.load(path / PROGRAM)
    except Exception as error:  # torch raises many unrelated types for a program of another version
        written, running = manifest["versions"].get("torch"), versions()["torch"]
        raise CheckpointError(
            f"{path / PROGRAM} cannot be loaded: {error}\nIt was written with torch {written}, this is {running}; "
            f"install torch {written}, or quantize again."
        ) from error
    try:
        arrays = load_file(path / WEIGHTS)
    except SafetensorError as error:
        raise CheckpointError(f"{path / WEIGHTS} is damaged: {error}; copy the folder again") from error
    tensors = decode(arrays, manifest["tensors"])
    return Checkpoint(program, tensors, manifest, json.loads((path / REPORT).read_text(encoding="utf-8")))


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a folder; give the folder that a result was saved to")
    if not file.is_file():
        raise CheckpointError(
            f"{file} is missing: {path} holds no result, or writing it was interrupted; give the folder of a finished "
            "result, or finish the run with --resume"
        )
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is not valid JSON: {error}; copy the folder again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{file} does not describe a brecq result; give the folder that a result was saved to")
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{file} has format version {version!r}, this brecq reads {FORMAT_VERSION}; install brecq "
            f"{manifest.get('versions', {}).get('brecq', 'of the version that wrote it')}, or quantize again"
        )
    missing = [key for key in ("versions", "tensors", "files") if not isinstance(manifest.get(key), dict)]
    missing += [name for name in (PROGRAM, WEIGHTS, REPORT) if not missing and name not in manifest["files"]]
    if missing:
        raise CheckpointError(f"{file} lacks {missing[0]!r}; copy the folder again, or write the result again")
    return manifest


def activations(program: ExportedProgram) -> list[dict[str, Any]]:
    """Grid of each activation that a converted program quantizes, in the order of execution.

    `input` is the node of the program whose value is quantized; value = (code - zero_point) * scale.
    """
    per_tensor = torch.ops.quantized_decomposed.quantize_per_tensor.default
    found = []
    for node in program.graph.nodes:
        if node.target is per_tensor:
            source, scale, zero_point, low, high, _ = node.args
            found.append({"input": source.name, "scale": scale, "zero_point": zero_point, "low": low, "high": high})
    return found


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    try:
        text = json.dumps(_finite(values), indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{file.name.removeprefix('.tmp.')} cannot hold a value: {error}") from error
    file.write_text(text + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    """JSON has no NaN or infinity (the SQNR of identical outputs, say): null stands for them."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
