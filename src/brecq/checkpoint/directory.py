"""The folder of a result: program, packed weights, report, and a manifest that vouches for them.

    program.json          the converted program: operators, their arguments, names of their tensors
    weights.safetensors   integer weights at their true bit-width, scales, zero points, the remaining tensors
    report.json           what was quantized, and how well each block was reconstructed
    timing.json           how long it took, and what an earlier run had done already
    manifest.json         versions, configuration, layout of the tensors, SHA-256 of the other files; written last

All of it is plain data. The same run writes the same bytes, `timing.json` aside. docs/format.md describes every field.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.fx import GraphModule, Node

from brecq.checkpoint import program
from brecq.checkpoint.tensors import Stored, decode, encode
from brecq.errors import CheckpointError
from brecq.graph.ops import kind, module_path, op_name
from brecq.storage.arrays import write_arrays
from brecq.storage.files import refuse_strangers, sha256
from brecq.storage.files import write as write_file
from brecq.storage.sealed import Damaged, check_seal, parse, render, seal, unseal
from brecq.version import __version__

FORMAT = "brecq"
FORMAT_VERSION = 2
PROGRAM, WEIGHTS, REPORT = "program.json", "weights.safetensors", "report.json"
TIMING, MANIFEST = "timing.json", "manifest.json"
FILES = (PROGRAM, WEIGHTS, REPORT, TIMING, MANIFEST)


@dataclass(frozen=True)
class Checkpoint:
    """A result as read from its folder."""

    graph: GraphModule
    example_inputs: tuple[Tensor, ...]
    tensors: dict[str, Stored]
    manifest: dict[str, Any]
    report: dict[str, Any]
    timing: dict[str, Any]


def versions() -> dict[str, str]:
    """Versions of what determines the result."""
    return {"brecq": __version__, **{package: metadata.version(package) for package in ("torch", "torchao")}}


def write(
    path: Path | str,
    graph: GraphModule,
    example_inputs: Sequence[Tensor],
    tensors: Mapping[str, Stored],
    manifest: Mapping[str, Any],
    report: Mapping[str, Any],
    timing: Mapping[str, Any],
) -> Path:
    """Write a result into the folder `path`, creating it, or replacing the result that is there.

    Each file appears when it is complete, and the manifest, which holds the digests of the others, is the last one: a
    mixture of old and new, or half a result, never reads as complete. Other files in the folder are left alone.

    Args:
        graph: the converted program. tensors: from `collect_tensors`.
        manifest: fields of the caller's (`config`, `seed`, `data_digest`, `metadata`, ...), plain JSON values; the
            fields `format`, `format_version`, `versions`, `tensors`, `activations`, `files` and `sha256` are added.
        report, timing: plain JSON values. In all three, numbers that are not finite become null.

    Raises:
        CheckpointError: `path` is a file, cannot be written, or holds a file of such a name that is not brecq's; or a
            value does not fit into JSON.
    """
    path = Path(path)
    added = {"format", "format_version", "versions", "tensors", "activations", "files", "sha256"}
    if clash := sorted(added & manifest.keys()):
        raise CheckpointError(f"the manifest's field {clash[0]!r} is reserved; rename yours")
    refuse_strangers(path, FILES, CheckpointError)
    arrays, table = encode(tensors)
    texts = {
        PROGRAM: json.dumps(program.describe(graph, example_inputs), separators=(",", ":")).encode(),
        REPORT: _text(REPORT, render, {"format": "brecq report", **report}),
        TIMING: _text(TIMING, seal, {"format": "brecq timing", **timing}),
    }
    listed = {
        "format": FORMAT, "format_version": FORMAT_VERSION, "versions": versions(), **manifest,
        "activations": activations(graph), "tensors": table,
    }  # fmt: skip
    _text(MANIFEST, seal, listed)  # before anything is written
    write_arrays(path / WEIGHTS, arrays, {"format": FORMAT, "format_version": str(FORMAT_VERSION)}, CheckpointError)
    for name, text in texts.items():
        write_file(path / name, text, CheckpointError)
    listed["files"] = {name: {"sha256": sha256(path / name)} for name in (PROGRAM, WEIGHTS, REPORT)}
    write_file(path / MANIFEST, _text(MANIFEST, seal, listed), CheckpointError)
    return path


def read(path: Path | str) -> Checkpoint:
    """Read and check a folder that `write` wrote. Nothing in it can run code.

    Raises:
        CheckpointError: the folder or a file is missing, was changed, or was written by an incompatible version;
            the message names the file and the fix.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    for name in (PROGRAM, WEIGHTS, REPORT, TIMING):
        if not os.path.isfile(path / name):
            raise CheckpointError(f"{path / name} is missing; copy the whole folder, or write the result again")
    for name in (PROGRAM, WEIGHTS, REPORT):
        expected, found = manifest["files"][name]["sha256"], sha256(path / name)
        if found != expected:
            raise CheckpointError(
                f"{path / name} was changed or damaged: its SHA-256 is {found}, {MANIFEST} says {expected}; "
                "copy the folder again, or write the result again"
            )
    try:
        timing = unseal((path / TIMING).read_bytes())
    except Damaged as error:
        raise CheckpointError(f"{path / TIMING} was changed or damaged: {error}; copy the folder again") from error
    try:
        tensors = decode(load_file(path / WEIGHTS), manifest["tensors"])
        graph, examples = program.rebuild(_parsed(path / PROGRAM), tensors)
    except SafetensorError as error:
        raise CheckpointError(f"{path / WEIGHTS} is damaged: {error}; copy the folder again") from error
    except CheckpointError as error:
        written, running = manifest["versions"], versions()
        differ = [f"{name} {written.get(name)}, this is {running[name]}" for name in running
                  if written.get(name) != running[name]]  # fmt: skip
        hint = f"; it was written with {' and '.join(differ)}: install that, or quantize again" if differ else ""
        raise CheckpointError(f"{path} cannot be read: {error}{hint}") from error
    return Checkpoint(graph, examples, tensors, manifest, _parsed(path / REPORT), timing)


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    if not os.path.isdir(path):
        raise CheckpointError(f"{path} is not a folder; give the folder that a result was saved to")
    if not os.path.isfile(file):
        raise CheckpointError(
            f"{file} is missing: {path} holds no result, or writing it was interrupted; give the folder of a finished "
            "result, or finish the run with --resume"
        )
    content = file.read_bytes()
    manifest = _parsed(file)
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{file} does not describe a brecq result; give the folder that a result was saved to")
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        by = manifest.get("versions")
        by = by.get("brecq") if isinstance(by, dict) else None
        raise CheckpointError(
            f"{file} has format version {version!r}, this brecq reads {FORMAT_VERSION}; install brecq "
            f"{by or 'of the version that wrote it'}, or quantize again"
        )
    _check_fields(file, manifest)
    try:
        check_seal(content, manifest)
    except Damaged as error:
        raise CheckpointError(f"{file} was changed or damaged: {error}; copy the folder again") from error
    return manifest


def _parsed(file: Path) -> dict[str, Any]:
    try:
        return parse(file.read_bytes())
    except Damaged as error:
        raise CheckpointError(f"{file} was changed or damaged: {error}; copy the folder again") from error


_DIGEST = re.compile(r"[0-9a-f]{64}")
Check = Callable[[Any], bool]


def _texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


def _files(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(name), dict) and _DIGEST.fullmatch(str(value[name].get("sha256")))
        for name in (PROGRAM, WEIGHTS, REPORT)
    )


_FIELDS: dict[str, tuple[Check, str]] = {
    "versions": (_texts, "an object of version numbers"),
    "tensors": (lambda value: isinstance(value, dict), "an object that describes tensors by name"),
    "activations": (lambda value: isinstance(value, list), "a list of grids"),
    "files": (_files, f"an object with the sha256 of {PROGRAM}, {WEIGHTS} and {REPORT}"),
    "config": (lambda value: isinstance(value, dict), "an object of settings"),
    "seed": (lambda value: type(value) is int, "an integer"),
    "data_digest": (lambda value: isinstance(value, str), "a string"),
    "metadata": (lambda value: isinstance(value, dict), "an object"),
    "submodule": (lambda value: value is None or isinstance(value, str), "a string or null"),
    "ranges": (lambda value: value is None or isinstance(value, list), "a list or null"),
}
_OPTIONAL = {"config", "seed", "data_digest", "metadata", "submodule", "ranges"}  # of the caller's


def _check_fields(file: Path, manifest: Mapping[str, Any]) -> None:
    for name, (fits, meaning) in _FIELDS.items():
        if name not in manifest and name not in _OPTIONAL:
            raise CheckpointError(f"{file} lacks {name!r}; copy the folder again, or write the result again")
        if name in manifest and not fits(manifest[name]):
            raise CheckpointError(
                f"{file}: {name} is {str(manifest[name])[:80]!r}, not {meaning}; copy the folder again"
            )


def activations(graph: GraphModule) -> list[dict[str, Any]]:
    """Grid of each activation that a converted program quantizes, in the order of execution (docs/format.md)."""
    found = []
    for node in graph.graph.nodes:
        if str(node.target) == "quantized_decomposed.quantize_per_tensor.default":
            source, scale, zero_point, low, high, _ = node.args
            found.append({
                "node": source.name, **_maker(source), "read_by": sorted(_readers(node)),
                "scale": scale, "zero_point": zero_point, "low": low, "high": high,
            })  # fmt: skip
    return found


def _maker(node: Node) -> dict[str, Any]:
    """Whose output a tensor is: an input of the network, or the operator of a module."""
    if node.op == "placeholder":
        return {"role": "input", "module": None, "operator": None}
    return {"role": "output", "module": _place(node), "operator": op_name(node)}


def _readers(node: Node) -> set[str]:
    """Modules whose operators read a quantized tensor, as it is or through operators without a module of their own."""
    found: set[str] = set()
    for user in node.users:
        if "dequantize" in str(user.target):
            found |= _readers(user)
        elif user.op == "call_function" and "quantize" not in str(user.target):
            found.add(_place(user))
    return found


def _place(node: Node) -> str:
    """The layer of an operator, as its weight names it, or the module that called it."""
    source: Any = node.args[1] if kind(node) else None
    while isinstance(source, Node) and source.op != "get_attr":
        source = next((argument for argument in source.args if isinstance(argument, Node)), None)
    return module_path(node) if source is None else str(source.target).rpartition(".")[0]


def _text(name: str, write: Callable[[Mapping[str, Any]], str], values: Mapping[str, Any]) -> bytes:
    try:
        return write(values).encode()
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{name} cannot hold a value: {error}") from error
