"""`export`: a result as a file that a runtime executes. One module per format, imported only when it is asked for."""

from __future__ import annotations

import importlib
import inspect
import os
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brecq.errors import ConfigError, ExportError

if TYPE_CHECKING:
    from brecq.result import QuantResult


@dataclass(frozen=True)
class Format:
    """An export format.

    Attributes:
        module: has a function `write(result, path, *, ...) -> Exported`; its keyword-only parameters are the options.
        suffix: of its file, empty for a folder. extra: the optional dependency that it needs.
        runner: the module that loads such a file into its runtime, `load(path, threads) -> runtime.Runner`; empty
            without one. exact: True if the runtime computes what the integer simulator computes, code for code.
        differs: otherwise, why it may not. files: suffixes of files that lie beside the one that is named.
        arithmetic: how it computes, by its name in `brecq.deploy.simulate.runtimes`; empty if it says what the
            quantized program computes, in float. wide: it takes 16-bit activations.
    """

    name: str
    module: str
    suffix: str
    extra: str
    summary: str
    runner: str = ""
    exact: bool = False
    differs: str = ""
    files: tuple[str, ...] = ()
    arithmetic: str = "OnnxRuntime"
    wide: bool = False


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        path: as asked for. files: all files that belong together. size: their bytes.
        notes: what a user should know: tensors quantized in addition, layers that stay in float, warnings.
    """

    path: Path
    files: tuple[Path, ...]
    size: int
    notes: tuple[str, ...] = field(default=())


def some(names: Sequence[str]) -> str:
    """The first names of a list and how many more there are, for messages."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


FORMATS = {
    each.name: each
    for each in (
        Format(
            "onnx", "brecq.deploy.onnx.write", ".onnx", "onnx", "ONNX Runtime: integer kernels, packed weights",
            runner="brecq.deploy.onnx.session", exact=True,
        ),
        Format(
            "openvino", "brecq.deploy.openvino.write", ".xml", "openvino", "OpenVINO: int8 kernels, packed weights",
            runner="brecq.deploy.openvino.runtime", files=(".bin",),
            differs="OpenVINO rescales sums in an order of its own, so that some codes differ by one",
        ),
        Format(
            "tflite", "brecq.deploy.litert.write", ".tflite", "litert",
            "LiteRT: integer kernels, 4- and 8-bit weights",
            runner="brecq.deploy.litert.runtime", exact=True, arithmetic="LiteRT", wide=True,
        ),
        Format(
            "tensorrt", "brecq.deploy.tensorrt.write", ".onnx", "onnx", "TensorRT: ONNX with Q/DQ pairs, int8",
            runner="brecq.deploy.tensorrt.runtime",
            differs="between its pairs everything is float",
        ),
        Format(
            "qualcomm", "brecq.deploy.qualcomm.write", ".onnx", "onnx", "Qualcomm: float ONNX, encodings beside it",
            runner="brecq.deploy.qualcomm.runtime", files=(".encodings",), wide=True,
            differs="the encodings are applied in float between layers",
        ),
        Format(
            "cmsis-nn", "brecq.deploy.cmsis.write", "", "",
            "Arm Cortex-M: C that calls CMSIS-NN, 4- and 8-bit weights",
            runner="brecq.deploy.cmsis.runtime", exact=True, arithmetic="FixedPoint",
        ),
        Format(
            "web", "brecq.deploy.web.write", "", "onnx", "browsers: ONNX files and a page, float and quantized",
            runner="brecq.deploy.web.runtime", exact=True,
        ),
        Format(
            "qonnx", "brecq.deploy.qonnx", ".onnx", "onnx", "QONNX for FINN and hls4ml: any bit-width",
            runner="brecq.deploy.qonnx_runtime", arithmetic="", wide=True,
            differs="it says what was measured, in float, and not what hardware will compute",
        ),
        Format(
            "pt2", "brecq.deploy.pt2", ".pt2", "", "torch.export program: packed weights, int8 with torch.compile",
            runner="brecq.deploy.pt2_runtime", wide=True,
            differs="oneDNN's kernels multiply by reciprocals and add in float, as PyTorch does",
        ),
        Format(
            "executorch", "brecq.deploy.executorch", ".pte", "executorch", "ExecuTorch: XNNPACK in int8, linear 4-bit",
            runner="brecq.deploy.executorch_runtime",
            differs="XNNPACK rounds rescaled sums in its own way, and quantizes the outputs of linear layers",
        ),
        Format(
            "compressed-tensors", "brecq.deploy.compressed_tensors", "", "compressed-tensors",
            "transformers and vLLM: packed linear weights, activations in float",
        ),
    )
}  # fmt: skip
"""Registered formats by name."""


def export(result: QuantResult, path: Path | str, format: str | None = None, **options: Any) -> Exported:
    """Write a result as a file for a runtime.

    The file is written under a temporary name and renamed: a file that is there is complete.

    Args:
        path: the file, or folder, to write; what is there is replaced. Of several quantized submodules the folder
            that gets one of each.
        format: one of `brecq.deploy.formats.FORMATS`; by default the first whose files end as `path` does, and of
            several submodules `onnx`.
        options: of the format; see its module's `write`.

    Raises:
        ConfigError: an unknown format or option, a value that the option does not take, or a path that ends as the
            files of another format do, or of none where none is named.
        ExportError: the format cannot express the network (the message names the layers and what would help), a
            package is missing, or the file cannot be written.
    """
    format = choose(path, format, parts=bool(result.parts)).name
    known = option_types(format)
    unknown = sorted(set(options) - known.keys())
    if unknown:
        takes = f"it takes {', '.join(known)}" if known else "it takes none"
        raise ConfigError(f"the format {format} has no option {unknown[0]!r}; {takes}")
    write = _writer(find(format))
    path = Path(path)
    if not os.path.isdir(path.parent):
        raise ExportError(f"the folder {str(path.parent)!r} does not exist; create it, or choose another path")
    for part in result.parts.values() or (result,):
        _check_wide(part, find(format))
    if result.parts:
        return _export_parts(result, path, find(format), write, options)
    exported: Exported = write(_on_cpu(result), path, **options)
    return exported


def _check_wide(result: QuantResult, format: Format) -> None:
    """Raise `ExportError` for 16-bit activations that a format does not take."""
    from brecq.deploy.complete import has_wide  # needs torch, which the names of formats do not

    if not format.wide and has_wide(result.converted):
        others = ", ".join(each.name for each in FORMATS.values() if each.wide)
        raise ExportError(
            f"the format {format.name} takes activations of at most 8 bits, and this result has some of 16; export it "
            f"to {others}, or quantize with --activation-bits 8"
        )


def _export_parts(
    result: QuantResult, folder: Path, format: Format, write: Callable[..., Exported], options: dict[str, Any]
) -> Exported:
    """One file, or folder, for each submodule, named after it."""
    if os.path.isfile(folder):
        raise ExportError(f"{str(folder)!r} is a file; {', '.join(result.parts)} become one file each: give a folder")
    folder.mkdir(exist_ok=True)
    files: list[Path] = []
    notes = [f"{', '.join(result.parts)} are one file each; what lies between them stays with the network's own code"]
    size = 0
    for name, part in result.parts.items():
        exported = write(_on_cpu(part), folder / f"{name}{format.suffix}", **options)
        files += exported.files
        notes += [f"{name}: {note}" for note in exported.notes]
        size += exported.size
    return Exported(folder, tuple(files), size, tuple(notes))


def choose(path: Path | str, name: str | None, *, parts: bool = False) -> Format:
    """The format to write a file in: the one of this name, or the one that the path's ending tells.

    Args:
        parts: the path is the folder of several files, and has no ending: `onnx` unless named.

    Raises:
        ConfigError: there is none, or the ending is that of another format.
    """
    if name is None:
        return find("onnx") if parts and not _ending_like(path) else of_file(path)
    chosen, others = find(name), _ending_like(path)
    if others and chosen not in others:
        better = f"the ending {chosen.suffix}" if chosen.suffix else "a folder, without an ending"
        raise ConfigError(
            f"{str(path)!r} ends as files of the format {others[0].name} do, and the format is {name}; give {better}, "
            f"or the format {others[0].name}"
        )
    return chosen


def of_file(path: Path | str) -> Format:
    """The first format whose files end as `path` does.

    Raises:
        ConfigError: there is none.
    """
    found = _ending_like(path)
    if not found:
        endings = ", ".join(f"{format.suffix} ({format.name})" for format in FORMATS.values() if format.suffix)
        raise ConfigError(
            f"no format writes files like {Path(path).name!r}; known endings are {endings}; name it with --format"
        )
    return found[0]


def _ending_like(path: Path | str) -> list[Format]:
    name = Path(path).name.lower()
    return [format for format in FORMATS.values() if format.suffix and name.endswith(format.suffix)]


def find(name: str) -> Format:
    """The format of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in FORMATS:
        raise ConfigError(f"the format is {name!r}; choose one of {', '.join(FORMATS)}")
    return FORMATS[name]


def option_types(name: str) -> dict[str, Any]:
    """The options that a format takes and their types: the keyword-only parameters of its `write`."""
    write = _writer(find(name))
    hints = typing.get_type_hints(write, localns={"QuantResult": Any})  # imported for the type checker only
    parameters = inspect.signature(write).parameters.values()
    return {each.name: hints[each.name] for each in parameters if each.kind is each.KEYWORD_ONLY}


def _writer(format: Format) -> Callable[..., Exported]:
    with needs(format.extra, f"the format {format.name}"):
        module = importlib.import_module(format.module)
    write: Callable[..., Exported] = module.write
    return write


class needs:
    """Context in which a missing package becomes an `ExportError` that names the extra which installs it."""

    def __init__(self, extra: str, purpose: str) -> None:
        self.extra, self.purpose = extra, purpose

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("brecq"):
            raise ExportError(
                f"{self.purpose} needs the package {error.name}; install it with: pip install 'brecq[{self.extra}]'"
            ) from error


def _on_cpu(result: QuantResult) -> QuantResult:
    from brecq.devices import on_cpu  # needs torch, which the names of formats do not

    return replace(result, converted=on_cpu(result.converted))
