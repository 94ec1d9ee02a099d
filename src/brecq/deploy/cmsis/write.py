"""The format `cmsis-nn`: a folder with a network as C, its header, and a program for the host that runs it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from brecq.deploy.cmsis.arena import Alive, lives, place, size
from brecq.deploy.cmsis.emit import Source, emit, identifier
from brecq.deploy.cmsis.helpers import HELPERS
from brecq.deploy.cmsis.integers import Integers, fold_pads, integers
from brecq.deploy.cmsis.templates import HEADER, MAIN, NETWORK
from brecq.deploy.complete import added_note, complete, require_activations
from brecq.deploy.formats import Exported
from brecq.deploy.lite.lower import lower
from brecq.deploy.lite.lowering import Runtime
from brecq.deploy.lite.program import Tensor
from brecq.deploy.outputs import order_note
from brecq.deploy.samples import fixed
from brecq.errors import ConfigError, ExportError
from brecq.storage.files import refuse_strangers
from brecq.storage.files import write as write_file
from brecq.version import __version__

if TYPE_CHECKING:
    from brecq.result import QuantResult

CMSIS_NN = Runtime("CMSIS-NN", grouped_int4=False, odd_int4=False, tables=True)
VERSION = "7.0"


def write(result: QuantResult, path: Path, *, name: str = "network") -> Exported:
    """Write a result as C: `NAME.h`, `NAME.c` and `main.c` in the folder `path`.

    Args:
        name: of the network in C: its files, functions and constants begin with it.

    Raises:
        ConfigError: `name` is no C identifier. ExportError: as `brecq.export`; also for what does not compute on
            integers alone, for operators that neither CMSIS-NN nor the file's own functions have a form of, and where
            the samples of a batch are mixed.
    """
    if identifier(name) != f"t_{name}" or not name or name[0].isdigit():
        raise ConfigError(f"name is {name!r}; choose a C identifier: letters, digits and underscores")
    require_activations(result, "CMSIS-NN computes on integer activations", "ONNX")
    names = [f"{name}.h", f"{name}.c", "main.c"]
    if path.exists() and not path.is_dir():
        raise ExportError(f"{path} is a file, and C goes into a folder; choose another path")
    refuse_strangers(path, names, ExportError)
    completed = complete(result, linear_outputs=True)
    fixed(completed, None, "a C function", only_one=True)
    found = integers(lower(completed, 1, CMSIS_NN), targeted=result.config.target == "cmsis-nn")
    fold_pads(found)
    texts, source, arena = generate(found, name, facts(result))
    for file, text in zip(names, texts, strict=True):
        write_file(path / file, text.encode(), ExportError, parents=True)
    files = tuple(path / file for file in names)
    notes = (
        f"RAM: an arena of {arena} bytes, {source.scratch} of them for CMSIS-NN to work in",
        f"flash: {source.flash} bytes of weights, biases, multipliers and tables, and code",
        f"for CMSIS-NN {VERSION}, without CMSIS_NN_USE_SINGLE_ROUNDING; pictures go in as [N, H, W, C]",
        *order_note(completed),
        *added_note(completed, "cmsis-nn"),
    )
    return Exported(path, files, sum(file.stat().st_size for file in files), notes)


def facts(result: QuantResult) -> str:
    """What the files say of where they come from; their first words mark them as brecq's."""
    found = {"format": f"brecq C {__version__}", "digest": result.digest()}
    return json.dumps(found | {"preprocessing": result.metadata.get("preprocessing")})


def generate(found: Integers, name: str, origin: str) -> tuple[list[str], Source, int]:
    """Header, network and main program, the C that they are made of, and bytes of the arena."""
    owners = _owners(found)
    pointers = {tensor: f"input_{number}" for number, tensor in enumerate(found.inputs)}
    pointers |= {tensor: f"output_{number}" for number, tensor in enumerate(found.outputs)}
    places, arena = _plan(found, owners, pointers)
    source = Source({})
    for operator in found.operators:
        for tensor in (*operator.inputs, *operator.outputs):
            if tensor is not None and tensor.data is None:
                owner = owners.get(tensor, tensor)
                source.pointers[tensor] = pointers.get(owner) or f"(arena + {places[identifier(owner.name)]})"
    for operator in found.operators:
        for tensor in operator.inputs if operator.kind == "CONCATENATION" else operator.inputs[:1]:
            if tensor is not None and tensor.data is not None and tensor.dtype == "int8":
                source.pointers[tensor] = source.array(tensor.name, "int8_t", tensor.data)
        emit(source, operator)
    scratch = -(-source.scratch // 16) * 16
    upper = name.upper()
    values = {
        "name": name, "upper": upper, "origin": origin, "arena": arena + scratch, "start": arena, "scratch": scratch,
        "parameters": ", ".join(
            [f"const int8_t *input_{number}" for number in range(len(found.inputs))]
            + [f"int8_t *output_{number}" for number in range(len(found.outputs))]
        ),
        "constants": "\n".join(source.constants),
        "helpers": "".join(HELPERS[helper] for helper in HELPERS if helper in source.used),
        "body": "\n".join(source.lines),
        "defines": "\n".join(
            _describe(upper, kind, number, tensor)
            for kind, group in (("INPUT", found.inputs), ("OUTPUT", found.outputs))
            for number, tensor in enumerate(group)
        ),
    }  # fmt: skip
    values["buffers"] = "\n".join(
        f"static int8_t {kind}_{number}[{upper}_{kind.upper()}_{number}_SIZE];"
        for kind, group in (("input", found.inputs), ("output", found.outputs))
        for number, _ in enumerate(group)
    )
    values["arguments"] = ", ".join(
        [f"input_{number}" for number, _ in enumerate(found.inputs)]
        + [f"output_{number}" for number, _ in enumerate(found.outputs)]
    )
    values["reads"] = "\n".join(
        f"        if (!read_codes(input_{number}, {upper}_INPUT_{number}_SIZE, {upper}_INPUT_{number}_SCALE, "
        f"{upper}_INPUT_{number}_ZERO_POINT)) return {'0' if number == 0 else '1'};"
        for number, _ in enumerate(found.inputs)
    )
    values["writes"] = "\n".join(
        f"        write_numbers(output_{number}, {upper}_OUTPUT_{number}_SIZE, {upper}_OUTPUT_{number}_SCALE, "
        f"{upper}_OUTPUT_{number}_ZERO_POINT);"
        for number, _ in enumerate(found.outputs)
    )
    texts = [template.format_map(values) for template in (HEADER, NETWORK, MAIN)]
    source.scratch = scratch
    return texts, source, arena + scratch


def _describe(upper: str, kind: str, number: int, tensor: Tensor) -> str:
    prefix, count = f"#define {upper}_{kind}_{number}", 1
    for length in tensor.shape:
        count *= length
    shape = "x".join(map(str, tensor.shape))
    return (
        f"/* {kind.lower()} {number}: {shape}; number = (code - zero point) * scale */\n"
        f"{prefix}_SIZE {count}\n{prefix}_SCALE {tensor.scale!r}f\n{prefix}_ZERO_POINT ({tensor.zero_point})"
    )


def _owners(found: Integers) -> dict[Tensor, Tensor]:
    """For what a reshaping makes, the tensor whose memory it is."""
    owners: dict[Tensor, Tensor] = {}
    for operator in found.operators:
        source, output = operator.inputs[0], operator.outputs[0]
        if operator.kind == "RESHAPE" and source is not None and output not in found.outputs:
            owners[output] = owners.get(source, source)
    return owners


def _plan(found: Integers, owners: dict[Tensor, Tensor], outside: dict[Tensor, str]) -> tuple[dict[str, int], int]:
    """Places in the arena by the identifier of a tensor, and the arena's size, for tensors of the network's own."""
    tensors: dict[str, Tensor] = {}

    def names(group: Sequence[Tensor | None]) -> list[str]:
        inner = [owners.get(each, each) for each in group if each is not None and each.data is None]
        inner = [each for each in inner if each not in outside]
        tensors.update({identifier(each.name): each for each in inner})
        return [identifier(each.name) for each in inner]

    steps = [(names(each.inputs), names(each.outputs)) for each in found.operators]
    buffers = {label: Alive(_bytes(tensors[label]), first, last) for label, (first, last) in lives(steps).items()}
    places = place(buffers)
    return places, size(buffers, places)


def _bytes(tensor: Tensor) -> int:
    count = 1
    for length in tensor.shape:
        count *= length
    return count
