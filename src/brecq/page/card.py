"""A model card for the Hugging Face hub: what was quantized, how well, how to run it and how to make it again."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brecq.checkpoint.directory import versions
from brecq.page import words
from brecq.page.facts import gather
from brecq.page.record import Record
from brecq.page.render import render
from brecq.result import QuantResult

CARD = "README.md"
MARK = "library_name: brecq"

RUNNERS = {
    ".onnx": 'ONNX Runtime: `onnxruntime.InferenceSession("{name}")`, integer kernels',
    ".xml": 'OpenVINO: `openvino.Core().compile_model("{name}", "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})`',
    ".pt2": 'PyTorch: `import brecq.storage.operators; torch.export.load("{name}").module()`',
    ".pte": "ExecuTorch, with the XNNPACK backend",
    ".tflite": 'LiteRT: `ai_edge_litert.interpreter.Interpreter("{name}")`',
}
"""How each exported file is run, by its ending."""

TASKS = {
    "detection": "object-detection", "segmentation": "image-segmentation", "restoration": "image-to-image",
    "embeddings": "feature-extraction", "language": "text-generation",
}  # fmt: skip
"""What the hub calls tasks; of classifiers only those of pictures have a name there that is known to be right."""

FOR_TARGET = {
    ("tensorrt", ".onnx"): "TensorRT: `trtexec --onnx={name}`",
    ("qualcomm", ".onnx"): "Qualcomm's converters, with the encodings that lie beside it",
}
"""The same for what was quantized for a target whose files end as another's do."""


def card(
    result: QuantResult, record: Record, repository: str, files: Sequence[str] = (), *,
    license: str | None = None, base: str | None = None, task: str | None = None,
) -> str:  # fmt: skip
    """The card as Markdown with its metadata in front.

    Args:
        record: what the run measured. repository: `USER/NAME`, where it will be. files: names of exported files.
        license: an identifier of the hub such as `apache-2.0`. base: the repository of the float network, by default
            that of a `hf:` source. task: of the hub, e.g. `image-classification`; by default known from the task of
            the run, or from metrics and inputs.
    """
    facts = gather(result)
    metrics = list(dict.fromkeys(name for row in record.rows for name in row.metrics))
    quantized = sum(layer.bits <= 8 for layer in facts.layers)
    preprocessing = result.metadata.get("preprocessing")
    base = base or _base(result)
    front = {
        "library_name": "brecq",
        "license": license,
        "base_model": base,
        "base_model_relation": "quantized" if base else None,
        "pipeline_tag": task or _task(result, metrics),
        "tags": ["brecq", "quantized", *words.tags(facts)],
    }
    shown = {key: json.dumps(value) if isinstance(value, list) else value for key, value in front.items() if value}
    return render(
        "card.md.j2",
        plain=True,
        front="".join(f"{key}: {value}\n" for key, value in shown.items()),
        title=html.escape(words.title(facts), quote=False),
        summary=words.summary(facts),
        versions=versions(),
        metrics=metrics,
        rows=[row for row in record.rows if row.metrics],
        samples=record.samples,
        float_bytes=facts.float_bytes,
        weight_bytes=facts.weight_bytes,
        layers=f"{facts.share:.1f} % of the parameters have quantized weights: {quantized} of {len(facts.layers)} "
        "operators that hold any.",
        floats=facts.floats,
        repository=repository,
        call="inputs" if len(result.example_inputs) == 1 else "*inputs",
        inputs=", ".join(_shape(value) for value in result.example_inputs),
        preprocessing=_lines(preprocessing) if preprocessing else "",
        exported=[(file, how.format(name=file)) for file in files if (how := _runner(file, result.config.target))],
        command=record.command,
        calibration=result.report.samples,
        digest=result.report.data_digest,
        seed=result.config.seed,
        numbers=result.digest(),
        license=license,
    )


def _task(result: QuantResult, metrics: Sequence[str]) -> str | None:
    classifier = any("top-1" in name for name in metrics) and any(value.ndim == 4 for value in result.example_inputs)
    return TASKS.get(result.metadata.get("task") or "") or ("image-classification" if classifier else None)


def _lines(values: dict[str, Any]) -> str:
    """JSON with a line for each entry."""
    return "{\n" + ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in values.items()) + "\n}"


def _runner(file: str, target: str | None) -> str | None:
    ending = Path(file).suffix
    return FOR_TARGET.get((target or "", ending), RUNNERS.get(ending))


def _base(result: QuantResult) -> str | None:
    """The hub's repository of the network that was quantized, if it came from there."""
    spec: str = (result.metadata.get("source") or {}).get("spec") or ""
    name = spec.removeprefix("hf:")
    return name if spec.startswith("hf:") and name.count("/") == 1 and not Path(name).exists() else None


def _shape(value: Any) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} [{', '.join(['N', *map(str, value.shape[1:])])}]"
