"""Exported files: size against the ideal, equality with the simulator, integer kernels, accuracy, and speed.

    python benchmarks/deploy.py --matrix                 # six networks, every target, W8A8 rounded to nearest
    python benchmarks/deploy.py --networks resnet20 --settings W4A8 W2A8 --targets "ONNX Runtime" LiteRT
    python benchmarks/deploy.py --table

Every network is quantized once per setting (weights and activations of inner layers; first and last layer at 8 bits)
and table of a target, kept in benchmarks/out/deploy, and exported. ResNet-20 is reconstructed at every setting, the
ImageNet networks at W4A8 (recipe `instant`); the rest is rounded to nearest, which is accurate at W8A8 only. Finished
cells are kept in benchmarks/results/deploy.jsonl and not measured again; of a network that a format refuses, the
reason is kept. Networks of `common.UNTRAINED` have random
weights: of them only sizes, kernels, equality and speed mean anything. Times are processor time, the least of 30
calls, float and quantized in turn.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cells import Cell, Results, Values, bits, parser, run, with_steps
from common import (
    CIFAR,
    DETECTOR,
    IMAGENET,
    MOBILENET,
    REPOSITORY,
    UNET,
    UNTRAINED,
    VIT,
    calibration_data,
    network,
    quality,
    test_data,
    use_threads,
)  # fmt: skip

import brecq
from brecq import QuantConfig, Recipe
from brecq.deploy.sizes import ideal_bytes
from brecq.errors import ExportError

NETWORKS = (CIFAR[0], *IMAGENET, MOBILENET, UNET, DETECTOR, VIT)
MATRIX = ("efficientnet_lite0", CIFAR[0], MOBILENET, UNET, DETECTOR, VIT)
SETTINGS = ("W8A8", "W4A8", "W3A8", "W2A8", "W4A4")
FOLDER = REPOSITORY / "benchmarks" / "out" / "deploy"
LEARNED = {CIFAR[0]: Recipe.preset("fast").replace(steps=50), "W4A8": Recipe.preset("instant")}
"""Recipes by network or setting. All else is rounded to nearest: sizes, kernels, equality and speed do not depend on
how well a network was rounded, accuracy and agreement of what has collapsed mean nothing."""

CODES = 4
"""Samples whose every code is compared with the simulator's."""


@dataclass(frozen=True)
class Target:
    """A format and its options; `table` is the target that the network is learned for, `None` for completion after.

    `inner` is false where the runtime shows no tensors inside a file to compare, `timed` where it says nothing of the
    time on the device, `many` where it is too slow for all samples.
    """

    format: str
    suffix: str
    options: dict[str, Any]
    inner: bool = True
    timed: bool = True
    many: bool = True
    table: str | None = None


TARGETS = {
    "ONNX Runtime": Target("onnx", ".onnx", {}, table="onnxruntime"),
    "OpenVINO": Target("openvino", ".xml", {}, inner=False, table="openvino"),
    "LiteRT": Target("tflite", ".tflite", {}, table="litert"),
    "TensorRT": Target("tensorrt", ".onnx", {}, timed=False, table="tensorrt"),
    "Qualcomm": Target("qualcomm", ".onnx", {}, timed=False, table="qualcomm"),
    "CMSIS-NN": Target("cmsis-nn", "", {}, inner=False, timed=False, table="cmsis-nn"),
    "web": Target("web", "", {}, inner=False, timed=False, table="onnxruntime"),
    "PyTorch": Target("pt2", ".pt2", {}, inner=False),
    "QONNX": Target("qonnx", ".onnx", {}, inner=False, timed=False, many=False),
    "ONNX Runtime, completed": Target("onnx", ".onnx", {}),
    "ONNX Runtime, cast": Target("onnx", ".onnx", {"pack": "cast"}),
}
"""The matrix has all but the last two. ExecuTorch's files are tested where its packages are (`tests/deploy`)."""

MEASURES = {
    "megabytes": ("file, MB", 2),
    "over": ("over the ideal size, %", 1),
    "float_megabytes": ("float file, MB", 2),
    "legal": ("multiply-accumulates on integer kernels by the table, %", 1),
    "kernels": ("layers on integer kernels, %", 1),
    "codes": ("codes that differ from the simulator's", 0),
    "border": ("values of these, most off the border between two codes, thousandths of a step", 3),
    "followed": ("outputs equal to the simulator's from the file's codes, %", 2),
    "simulator": ("outputs equal to the simulator's, %", 2),
    "largest": ("largest difference from the simulator, output steps", 2),
    "mean": ("mean difference from the simulator, output steps", 3),
    "same": ("predictions that are the simulator's, %", 2),
    "agreement": ("top-1 agreement with the fake-quantized network, %", 2),
    "quantized": ("mean difference from the fake-quantized network, output steps", 3),
    "completion": ("the same of the completed program in PyTorch, %", 2),
    "top1_float": ("top-1 of the float network, %", 2),
    "top1": ("top-1 of the fake-quantized network, %", 2),
    "top1_file": ("top-1 of the file, %", 2),
    "float_ms_1": ("float, batch 1, processor ms", 2),
    "ms_1": ("quantized, batch 1, processor ms", 2),
    "speed_1": ("times less processor time at batch 1", 2),
}


def main() -> None:
    options = arguments()
    use_threads(options.threads)
    results = Results(options.results)
    cells = list_cells(options)
    if not options.table:
        run(cells, results, measure)
    print(tables(cells, results))


def arguments() -> argparse.Namespace:
    found = parser(__doc__, "deploy.jsonl")
    found.add_argument("--networks", nargs="+", choices=NETWORKS)
    found.add_argument("--settings", nargs="+", metavar="WxAy", help=f"of {' '.join(SETTINGS)} ...")
    found.add_argument("--targets", nargs="+", choices=list(TARGETS))
    found.add_argument(
        "--matrix", action="store_true", help="six networks, every target, W8A8, 16 calibration inputs, --rounded"
    )
    found.add_argument("--rounded", action="store_true", help="round to nearest at every setting")
    found.add_argument("--placement", choices=("output", "input"), default="output")
    found.add_argument("--calibration", type=int, default=256, metavar="N", help="calibration inputs")
    found.add_argument(
        "--samples", type=int, default=100, metavar="N", help="ImageNet test inputs; ten times as many of CIFAR"
    )
    options = found.parse_args()
    names, targets, settings = NETWORKS, list(TARGETS)[:1], SETTINGS
    if options.matrix:
        names, targets, settings = MATRIX, list(TARGETS)[:-2], ("W8A8",)
        options.rounded, options.calibration = True, 16
    options.networks, options.targets = options.networks or names, options.targets or targets
    options.settings = options.settings or settings
    return options


def list_cells(options: argparse.Namespace) -> list[Cell]:
    cells = []
    for name in options.networks:
        for setting in options.settings:
            for target in options.targets:
                config = configure(name, setting, options, TARGETS[target].table)
                count = options.calibration if config.method == "reconstruct" else min(options.calibration, 64)
                samples = options.samples * (10 if name in CIFAR else 1) if is_accurate(name, config) else CODES
                cell = Cell(name, target, setting, count, samples, config, detail=target)
                cells.append(cell)
    return cells


def configure(name: str, setting: str, options: argparse.Namespace, table: str | None) -> QuantConfig:
    weights, activations = bits(setting)
    config = QuantConfig(weights, activations, placement=options.placement, seed=options.seeds[0], target=table)
    recipe = None if options.rounded else LEARNED.get(name, LEARNED.get(setting))
    if recipe is None or name in (*UNTRAINED, DETECTOR):
        return replace(config, method="rtn")
    return replace(config, recipe=recipe if options.steps is None else with_steps(recipe, options.steps))


def is_accurate(name: str, config: QuantConfig) -> bool:
    """True if the quantized network has an accuracy to speak of."""
    return name not in (*UNTRAINED, DETECTOR) and (
        config.method == "reconstruct" or config.weights == config.activations == 8
    )


def measure(cell: Cell) -> dict[str, Any]:
    """Everything of one cell; of a network that the format refuses, why."""
    assert cell.config is not None
    target = TARGETS[cell.detail]
    result = quantized(cell)
    name = f"{cell.network}-{cell.column}-{target.table}-{target.format}{''.join(target.options.values())}"
    path = FOLDER / f"{name}{target.suffix}"
    values: dict[str, Any] = {}
    if target.table is not None:
        legality = brecq.check(network(cell.network).model, result.example_inputs, cell.config, rehearse=False)
        values |= {"legal": 100 - legality.float_macs}
    try:
        exported = brecq.export(result, path, target.format, **target.options)
    except ExportError as error:
        return {**values, "refused": str(error)}
    values |= {"megabytes": exported.size / 1e6, "over": 100 * (exported.size / ideal_bytes(result) - 1)}
    values |= equality(cell, result, path, target)
    if target.many and is_accurate(cell.network, cell.config):
        data = test_data(cell.network, cell.samples)
        found = brecq.verify(result, path, data, format=target.format)
        assert found.quantized.agreement is not None
        assert found.completion.agreement is not None
        values |= {"simulator": found.simulator.identical, "same": found.simulator.agreement}
        values |= {"agreement": found.quantized.agreement, "completion": found.completion.agreement}
        values |= accuracy(cell, result, path, target)
    if target.timed:
        speed = brecq.benchmark(result, path, format=target.format, batches=(1,), runs=30)
        values |= {"float_megabytes": speed.float_size / 1e6, "ms_1": speed.quantized[0].cpu}
        if speed.floating:
            values |= {"float_ms_1": speed.floating[0].cpu, "speed_1": speed.floating[0].cpu / speed.quantized[0].cpu}
    return values


def equality(cell: Cell, result: brecq.QuantResult, path: Path, target: Target) -> Values:
    """The file in its runtime beside the simulator, on a few samples, code by code where the runtime shows them."""
    data = test_data(cell.network, cell.samples).subset(slice(0, CODES))
    found = brecq.verify(result, path, data, format=target.format, bisect=target.inner)
    values: Values = {"simulator": found.simulator.identical, "quantized": found.quantized.mean}
    values |= {"largest": found.simulator.largest, "mean": found.simulator.mean}
    values |= {"failures": float(len(found.failures)), "exact": float(found.exact)}
    if target.inner:
        values |= {"codes": float(sum(tensor.differing for tensor in found.tensors))}
        values |= {"compared": float(sum(tensor.count for tensor in found.tensors))}
        values |= {"border": 1e3 * max(tensor.border for tensor in found.tensors)}
        assert found.followed is not None
        values |= {"followed": found.followed.identical}
    if found.kernels is not None:
        layers = found.kernels.integer + found.kernels.floating
        values |= {"kernels": 100 * found.kernels.integer / layers}
    return values


def accuracy(cell: Cell, result: brecq.QuantResult, path: Path, target: Target) -> Values:
    """Top-1 in percent of the float network, the fake-quantized one, and the file in its runtime."""
    import torch

    from brecq.deploy.runtime import open_file

    runner, _ = open_file(path, target.format)
    data = test_data(cell.network, cell.samples)
    assert data.labels is not None
    hits = 0
    for inputs, labels in data.batches(16):
        assert labels is not None
        hits += int((torch.from_numpy(runner(*(x.numpy() for x in inputs))[0]).argmax(1) == labels).sum())
    model = network(cell.network).model
    return {
        "top1_float": quality(cell.network, model, cell.samples)["top1"],
        "top1": quality(cell.network, result.model, cell.samples)["top1"],
        "top1_file": 100 * hits / len(data),
    }


def quantized(cell: Cell) -> brecq.QuantResult:
    """The quantized network of a cell, from its folder if it was quantized before."""
    key = {name: value for name, value in cell.key().items() if name not in ("detail", "samples")}
    mark = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    folder = FOLDER / f"{cell.network}-{cell.column}-{mark}"
    if not (folder / "manifest.json").exists():
        assert cell.config is not None
        data = calibration_data(cell.network, cell.calibration)
        brecq.quantize(network(cell.network).model, data, cell.config).save(folder)
    return brecq.load(folder)


def tables(cells: list[Cell], results: Results) -> str:
    """For every network and target a Markdown table: measures down, settings across."""
    lines: list[str] = []
    for name, target in dict.fromkeys((cell.network, cell.detail) for cell in cells):
        mine = [cell for cell in cells if (cell.network, cell.detail) == (name, target)]
        records = {cell.column: record for cell in mine if (record := results.find(cell)) is not None}
        if not records:
            continue
        lines += [f"**{name}**, {target}", "", f"| | {' | '.join(records)} |", f"|---|{'---:|' * len(records)}"]
        for key, (title, digits) in MEASURES.items():
            texts = [f"{r['values'][key]:.{digits}f}" if key in r["values"] else "" for r in records.values()]
            if any(texts):
                lines.append(f"| {title} | {' | '.join(texts)} |")
        lines.append("")
    found = [record for cell in cells if (record := results.find(cell)) is not None]
    lines += ["Measured on:", *dict.fromkeys(f"- {record['environment']}" for record in found), ""]
    lines += ["```", *dict.fromkeys(record["command"] for record in found), "```"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
