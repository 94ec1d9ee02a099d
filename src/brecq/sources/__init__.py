"""Where float models come from: model libraries, Python files, exported programs."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

from brecq.errors import SourceError
from brecq.sources.file import load_file_source
from brecq.sources.huggingface import load_huggingface
from brecq.sources.onnx_files import load_onnx
from brecq.sources.program import load_program
from brecq.sources.source import Source
from brecq.sources.timm_models import load_timm
from brecq.sources.torchvision_models import load_torchvision

__all__ = ["Source", "load_source"]

_LIBRARIES = {"timm": load_timm, "torchvision": load_torchvision, "hf": load_huggingface}
_FORMS = "timm:NAME, torchvision:NAME, hf:NAME, file.py:function, or a .pt2 or .onnx file"


def load_source(
    spec: str, weights: Path | str | None = None, *, trust_pickle: bool = False, pretrained: bool = True
) -> Source:
    """Load a float model.

    Args:
        spec: `timm:NAME`, `torchvision:NAME`, `hf:NAME_OR_FOLDER` (a classifier of pictures or pixels, a detector),
            `file.py:function` (called without arguments), the path of a `.pt2` program that `torch.export.save` wrote,
            or of an ONNX file; names of tensors behind it, `model.onnx:boxes,scores`, are its outputs in place of its
            own.
        weights: a `.safetensors`, `.pt` or `.pth` file to load; libraries then build the model untrained, otherwise
            they fetch its pretrained weights. A classifier for another number of classes is built to fit.
        pretrained: `False` leaves a library's model untrained where no `weights` are given, and downloads nothing.
        trust_pickle: allow files that execute code when unpickled. Python files are always executed.

    A module in another floating-point type than float32 is turned into it, with a warning: inputs are float32.

    Raises:
        SourceError: no such model, a missing package, weights that do not fit or are not safe to read.
    """
    weights = None if weights is None else Path(weights)
    if spec.endswith(".pt2"):
        return load_program(Path(spec), spec, weights, trust_pickle)
    file, _, outputs = spec.partition(".onnx:")
    if spec.endswith(".onnx") or outputs:
        return load_onnx(Path(spec if not outputs else f"{file}.onnx"), _names(spec, outputs), spec, weights)
    path, _, attribute = spec.rpartition(":")
    if path.endswith(".py"):
        if not attribute.isidentifier():
            raise SourceError(f"{spec}: {attribute!r} is not a name; give file.py:function")
        return _in_float32(load_file_source(Path(path), attribute, spec, weights, trust_pickle))
    library, _, name = spec.partition(":")
    if library in _LIBRARIES and name:
        return _in_float32(_LIBRARIES[library](name, spec, weights, trust_pickle, pretrained))
    if spec.endswith(".py"):
        raise SourceError(f"{spec}: name the function in it that builds the model: {spec}:function")
    raise SourceError(f"cannot read the model {spec!r}; give {_FORMS}")


def _in_float32(source: Source) -> Source:
    tensors = [*source.model.parameters(), *source.model.buffers()]
    foreign = {str(t.dtype).removeprefix("torch.") for t in tensors if t.is_floating_point()} - {"float32"}
    if foreign:
        inputs = tuple(each.float() if each.is_floating_point() else each for each in source.example_inputs)
        source = dataclasses.replace(source, model=source.model.float(), example_inputs=inputs)
        warnings.warn(f"{source.spec} holds {' and '.join(sorted(foreign))} tensors: taken in float32", stacklevel=3)
    return source


def _names(spec: str, outputs: str) -> list[str]:
    names = outputs.split(",") if outputs else []
    if not all(names):
        raise SourceError(f"{spec}: name tensors behind the file, such as model.onnx:boxes,scores")
    return names
