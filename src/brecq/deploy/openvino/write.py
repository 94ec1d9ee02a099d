"""The format `openvino`: an IR, `model.xml` and `model.bin`."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import openvino

from brecq.checkpoint.tensors import PackedWeight, collect_tensors
from brecq.deploy.complete import added_note, complete, float_note
from brecq.deploy.formats import Exported, some
from brecq.deploy.onnx.neutral import neutral
from brecq.deploy.openvino.translate import translate
from brecq.errors import ExportError
from brecq.storage.files import TEMPORARY, explain, replacing
from brecq.version import __version__

if TYPE_CHECKING:
    from brecq.result import QuantResult


def write(result: QuantResult, path: Path) -> Exported:
    """Write a result as an OpenVINO IR: `path`, which ends in `.xml`, and the weights beside it in `.bin`.

    Compile it with the property `INFERENCE_PRECISION_HINT="f32"`: on recent CPUs OpenVINO computes what is left in
    float in bfloat16 otherwise.

    Raises:
        ExportError: as `brecq.export`; also for asymmetric 8-bit weights, which no int8 kernel takes, and for a path
            that does not end in `.xml`.
    """
    if path.suffix != ".xml":
        raise ExportError(
            f"the path is {str(path)!r}; an OpenVINO IR ends in .xml (its weights go beside it, into .bin)"
        )
    widths = _widths(result)
    completed = complete(result)
    model = translate(neutral(completed))
    model.set_rt_info(__version__, ["brecq", "version"])
    model.set_rt_info(result.digest(), ["brecq", "digest"])
    model.set_rt_info(json.dumps(result.metadata.get("preprocessing")), ["brecq", "preprocessing"])
    weights = path.with_suffix(".bin")
    try:
        # OpenVINO names the weights itself, and insists on the suffix.
        with TemporaryDirectory(prefix=TEMPORARY, dir=path.parent) as folder:
            staged = Path(folder) / "model.xml"
            openvino.save_model(model, staged, compress_to_fp16=False)
            with replacing(weights, ExportError) as new_weights, replacing(path, ExportError) as new_path:
                staged.with_suffix(".bin").replace(new_weights)
                staged.replace(new_path)
    except OSError as error:
        raise ExportError(explain(error, path)) from error
    except RuntimeError as error:  # OpenVINO's, of a full disk among others
        raise ExportError(f"OpenVINO cannot write {path}: {str(error).strip().splitlines()[-1]}") from error
    notes = ["compile with INFERENCE_PRECISION_HINT=f32, or float operators may run in bfloat16"]
    notes += [*added_note(completed, "openvino"), *float_note(completed)]
    if widths & {5, 7}:
        notes.append("OpenVINO has no 5- and 7-bit types: such weights take 6 and 8 bits in the file")
    return Exported(path, (path, weights), sum(file.stat().st_size for file in (path, weights)), tuple(notes))


def _widths(result: QuantResult) -> set[int]:
    """Bit-widths of the weights; refuses what has no int8 kernel."""
    tensors = collect_tensors(result.converted)  # type: ignore[arg-type]
    packed = {name: value for name, value in tensors.items() if isinstance(value, PackedWeight)}
    wide = [name for name, value in packed.items() if value.bits == 8 and value.zero_point.any()]
    if wide:
        raise ExportError(
            f"{some(wide)} are asymmetric at 8 bits, where an int8 kernel needs zero point 0; quantize with "
            "--weight-scheme auto or symmetric"
        )
    return {value.bits for value in packed.values()}
