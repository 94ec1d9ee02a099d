"""`export`: a result as a file that a runtime executes. One module per format, imported only when it is asked for."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brecq.errors import ConfigError, ExportError

if TYPE_CHECKING:
    from brecq.result import QuantResult


@dataclass(frozen=True)
class Format:
    """An export format. `module` has a function `write(result, path, **options) -> Exported`.

    `suffix` is that of its file, empty for a folder; `extra` is the optional dependency that it needs.
    """

    name: str
    module: str
    suffix: str
    extra: str
    summary: str


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


FORMATS = {
    each.name: each
    for each in (
        Format("onnx", "brecq.deploy.onnx.write", ".onnx", "onnx", "ONNX Runtime, integer kernels, packed weights"),
        Format("openvino", "brecq.deploy.openvino.write", ".xml", "openvino", "OpenVINO, int8 kernels, packed weights"),
        Format("qonnx", "brecq.deploy.qonnx", ".onnx", "onnx", "QONNX for FINN and hls4ml, any bit-width"),
        Format("pt2", "brecq.deploy.pt2", ".pt2", "", "torch.export program with packed weights; int8 through torch.compile"),
        Format(
            "compressed-tensors",
            "brecq.deploy.compressed_tensors",
            "",
            "compressed-tensors",
            "transformers and vLLM, weight-only linear layers",
        ),
    )
}
"""Registered formats by name."""


def export(result: QuantResult, path: Path | str, format: str = "onnx", **options: Any) -> Exported:
    """Write a result as a file for a runtime.

    The file is written under a temporary name and renamed: a file that is there is complete.

    Args:
        path: the file, or folder, to write; what is there is replaced.
        format: one of `brecq.deploy.formats.FORMATS`.
        options: of the format; see its module's `write`.

    Raises:
        ConfigError: an unknown format or option, or a value that the option does not take.
        ExportError: the format cannot express the network (the message names the layers and what would help), a
            package is missing, or the file cannot be written.
    """
    if format not in FORMATS:
        raise ConfigError(f"the format is {format!r}; choose one of {', '.join(FORMATS)}")
    write = _writer(FORMATS[format])
    known = options_of(FORMATS[format], write)
    unknown = sorted(set(options) - known.keys())
    if unknown:
        takes = f"it takes {', '.join(known)}" if known else "it takes none"
        raise ConfigError(f"the format {format} has no option {unknown[0]!r}; {takes}")
    path = Path(path)
    if not path.parent.is_dir():
        raise ExportError(f"the folder {str(path.parent)!r} does not exist; create it, or choose another path")
    exported: Exported = write(result, path, **options)
    return exported


def options_of(format: Format, write: Callable[..., Exported] | None = None) -> dict[str, inspect.Parameter]:
    """The options that a format takes: the keyword-only parameters of its `write`."""
    parameters = inspect.signature(write or _writer(format)).parameters
    return {name: value for name, value in parameters.items() if value.kind is value.KEYWORD_ONLY}


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
