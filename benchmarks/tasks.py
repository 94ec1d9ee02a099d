"""Detection, segmentation and restoration: each task's own metric, and the decisions that quantization changes.

    python benchmarks/tasks.py
    python benchmarks/tasks.py --networks nanodet_m --settings W4A4 --steps 80 --batch-size 16
    python benchmarks/tasks.py --networks nanodet_m --validation --set correction=1   # to choose by, see below
    python benchmarks/tasks.py --networks nanodet_m --steps 300 --device cuda --jobs 6 --seeds 0 1 2

NanoDet-m is judged by COCO's average precision on 128 pictures of val2017, calibrated on pictures of train2017.
DeepLabV3 (MobileNetV2) is judged by the pixels and the mIoU that it has in common with the float network, inside the
pictures, on the same data: there are no masks. The denoiser, a small DnCNN for Gaussian noise of 25 of 255 levels, is
trained here, and judged by its PSNR and SSIM. RetinaNet and Faster R-CNN (ResNet-50, pyramid) have random weights:
the captured parts put back into them are compared with the float network, box by box, and the quantized ones by the
SQNR of what the worst of them returns. With `--validation`, NanoDet-m and DeepLabV3 are calibrated on half of their
pictures and judged by the other half, which no table reports. Finished cells are kept in
benchmarks/results/tasks.jsonl and not measured again.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import time
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from cells import (
    VALIDATION,
    Cell,
    Values,
    add_jobs,
    bits,
    change,
    describe_steps,
    detail_of,
    parser,
    run_and_print,
    with_steps,
)
from common import DATA, require, use_threads
from safetensors.torch import load_file
from torch import Tensor, nn

import brecq
from brecq import QuantConfig, Recipe, metrics
from brecq.capture.export import capture, example_batch
from brecq.data import Dataset, Form, Preprocessing, load_data
from brecq.metrics import Metric
from brecq.metrics.segmentation import IGNORED
from brecq.sources.torchvision_models import detector_parts
from brecq.submodules import parts

NANODET, DEEPLAB, DENOISER = "nanodet_m", "deeplabv3_mnv2", "denoiser"
IN_PARTS = ("retinanet_resnet50_fpn", "fasterrcnn_resnet50_fpn")
CALIBRATION = {NANODET: 126, DEEPLAB: 16, DENOISER: 128, **dict.fromkeys(IN_PARTS, 8)}
SAMPLES = {NANODET: 128, DEEPLAB: 24, DENOISER: 100, **dict.fromkeys(IN_PARTS, 4)}
BATCH = {NANODET: 8, DEEPLAB: 8, DENOISER: 32, **dict.fromkeys(IN_PARTS, 4)}
MEASURES = {
    "AP %": ("AP (IoU 0.5 to 0.95) in percent", 1.0, 2),
    "AP50 %": ("AP50 in percent", 1.0, 2),
    "mIoU %": ("mIoU with the float network's classes, in percent", 1.0, 2),
    "PSNR dB": ("PSNR in dB", 1.0, 2),
    "SSIM": ("SSIM", 1.0, 4),
    "flips": ("decisions that changed (boxes, pixels, 8-bit values), in percent", 1.0, 2),
    "sqnr": ("SQNR of the worst output in dB", 1.0, 1),
    "blocks": ("blocks", 1.0, 0),
    "cpu_seconds": ("processor seconds to quantize", 1.0, 0),
}

NOISE = 25 / 255


class Denoiser(nn.Module):
    """DnCNN (Zhang et al. 2017) of six layers: it estimates the noise in pictures [N, 3, H, W], and subtracts it."""

    def __init__(self, width: int = 32, layers: int = 6) -> None:
        super().__init__()
        inner = [each for _ in range(layers - 2) for each in (nn.Conv2d(width, width, 3, 1, 1), nn.ReLU())]
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1), nn.ReLU(), *inner, nn.Conv2d(width, 3, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x - self.body(x)


def main() -> None:
    options = arguments()
    use_threads(options.threads)
    cells = list_cells(options)
    run_and_print(options, cells, partial(measure, device=options.device), MEASURES, apart=options.jobs > 1)


def arguments() -> argparse.Namespace:
    found = parser(__doc__, "tasks.jsonl")
    found.add_argument("--networks", nargs="+", choices=tuple(SAMPLES), default=tuple(SAMPLES))
    found.add_argument("--settings", nargs="+", default=["W8A8", "W4A8", "W4A4"], metavar="WxAy")
    found.add_argument("--methods", nargs="+", choices=("nearest", "fast"), default=["nearest", "fast"])
    found.add_argument("--batch-size", type=int, metavar="N", help="in place of 8 (denoiser: 32, in parts: 4)")
    found.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="change the recipe")
    found.add_argument("--validation", action="store_true", help="measure on pictures to choose by")
    found.set_defaults(steps=80)
    add_jobs(found)
    return found.parse_args()


def list_cells(options: argparse.Namespace) -> list[Cell]:
    recipe = change(with_steps(Recipe.preset("fast"), options.steps), options.set)
    detail = detail_of(options)
    cells = []
    for network in options.networks:
        sizes = CALIBRATION[network], SAMPLES[network]
        if options.validation:
            sizes = (CALIBRATION[network] // 2,) * 2
        batch = options.batch_size or BATCH[network]
        cells.append(Cell(network, "float", "", *sizes, detail=detail))
        for setting in options.settings:
            weights, activations = bits(setting)
            nearest = QuantConfig(weights, activations, method="rtn", seed=options.seeds[0])
            if "nearest" in options.methods:
                cells.append(Cell(network, "rounding to nearest", setting, *sizes, nearest, detail))
            mine = recipe.replace(batch_size=batch)
            told = (f"{describe_steps(mine)}", f"batch {batch}", f"{sizes[0]} pictures", *options.set, detail)
            row = f"fast ({', '.join(filter(None, told))})"
            for seed in options.seeds if "fast" in options.methods else ():
                config = QuantConfig(weights, activations, recipe=mine, seed=seed)
                cells.append(Cell(network, row, setting, *sizes, config, detail))
    return cells


def measure(cell: Cell, device: str = "cpu") -> Values:
    if cell.network in IN_PARTS:
        return measure_in_parts(cell)
    model, data, calibration = network(cell.network), test_data(cell.network), calibration_data(cell.network)
    if VALIDATION in cell.detail:
        data = load_pictures(cell.network, "train2017").subset(slice(cell.samples, None))
        calibration = calibration.subset(slice(0, cell.calibration))
    if cell.config is None:
        return quality(cell.network, model, data, device)
    busy = time.process_time()
    result = brecq.quantize(model, calibration, cell.config, device=device)
    cost = {"cpu_seconds": time.process_time() - busy, "seconds": result.report.seconds}
    return {**cost, "weight_bytes": result.weight_bytes(), **quality(cell.network, result.model, data, device)}


def measure_in_parts(cell: Cell) -> dict[str, float]:
    """A detector of torchvision: boxes of its captured parts beside its own, or the SQNR of what its parts return."""
    model, names = network(cell.network), list(detector_parts(network(cell.network)))
    pictures = list(detector_pictures("train2017", cell.calibration))
    if cell.config is None:
        programs = {}
        for part in parts.record(model, names, [pictures]):
            flat = parts.Flat(part.name, model.get_submodule(part.name), part.interface)
            programs[part.name] = (capture(flat, example_batch(part.inputs), any_size=True), part.interface)
        data = [list(detector_pictures("val2017", cell.samples))]
        every = metrics.Detection(sure=0.0)
        found = brecq.evaluate(parts.put_back(model, programs), data, metric=every, reference=model)
        assert found.flips is not None
        return {"flips": found.flips}
    busy = time.process_time()
    batches = [pictures[start : start + 4] for start in range(0, len(pictures), 4)]
    report = brecq.quantize(model, batches, cell.config, submodules=names).report
    worst = min(each.sqnr for each in report.outputs)
    cost = {"cpu_seconds": time.process_time() - busy, "seconds": report.seconds}
    return {**cost, "sqnr": worst, "blocks": float(len({block.name for block in report.blocks}) or math.nan)}


def detector_pictures(folder: str, count: int) -> Tensor:
    """Pictures [N, 3, 160, 160] of values in [0, 1], as torchvision's detectors take them."""
    preprocessing = Preprocessing((0.0,), (1.0,), (160, 160), 160)
    return load_data(require(DATA / "coco" / folder / "images"), preprocessing, count, 0).inputs[0]


def quality(name: str, model: nn.Module, data: Dataset, device: str) -> Values:
    """The task's metric by its names, the decisions changed (percent), and the SQNR of the worst output (dB)."""
    found = brecq.evaluate(model, data, metric=metric(name), reference=network(name), batch_size=4, device=device)
    values = {**found.metrics, "flips": found.flips, "sqnr": found.sqnr}
    return {key: value for key, value in values.items() if value is not None and math.isfinite(value)}


def metric(name: str) -> Metric:
    if name == NANODET:
        return metrics.Detection(decode=_module("nanodet_m").decode)
    return metrics.Segmentation() if name == DEEPLAB else metrics.Restoration()


@lru_cache(maxsize=1)
def network(name: str) -> nn.Module:
    """The float network with its trained weights."""
    if name == DENOISER:
        return trained_denoiser()
    if name in IN_PARTS:
        return random_detector(name)
    build, weights = {
        NANODET: (lambda: _module("nanodet_m").NanoDetM(), "coco_nanodet_m.safetensors"),
        DEEPLAB: (lambda: _module("deeplabv3_mnv2").DeepLabV3MNV2(), "voc_deeplabv3_mnv2.safetensors"),
    }[name]
    model: nn.Module = build()
    model.load_state_dict(load_file(require(DATA / "weights" / weights)))
    return model.eval()


def random_detector(name: str) -> nn.Module:
    """Small pictures, and every box is returned, however unsure: untrained networks are sure of nothing."""
    from torchvision.models import detection

    torch.manual_seed(0)
    sure = {"box_score_thresh": 0.0} if name.startswith("faster") else {"score_thresh": 0.0}
    model = getattr(detection, name)(weights=None, weights_backbone=None, min_size=128, max_size=192, **sure)
    found: nn.Module = model.eval()
    return found


def preprocessing(name: str) -> Preprocessing:
    """How the float network was trained to see pictures."""
    if name == NANODET:
        mean, std = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)
        return Preprocessing(
            tuple(value / 255 for value in mean),
            tuple(value / 255 for value in std),
            (320, 320),
            None,
            color="BGR",
            fit="letterbox",
        )
    if name == DEEPLAB:
        return Preprocessing((0.5,), (0.5,), (513, 513), None, fit="corner", fill=(0.5,))
    return Preprocessing((0.0,), (1.0,), (96, 96), 128)


@lru_cache(maxsize=1)
def calibration_data(name: str) -> Dataset:
    """Inputs that are quantized on."""
    if name == DENOISER:
        return Dataset((noisy(clean("imagenet_calib", CALIBRATION[name], 1), 1),))
    found = load_data(require(DATA / "coco" / "train2017" / "images"), preprocessing(name), CALIBRATION[name], 0)
    return Dataset(found.inputs)


@lru_cache(maxsize=1)
def test_data(name: str) -> Dataset:
    """Inputs and what is right: boxes; the float network's classes inside the picture; pictures without noise."""
    if name == DENOISER:
        targets = clean("imagenet_val/images", SAMPLES[name], 0)
        return Dataset((noisy(targets, 2),), targets=targets)
    found = load_pictures(name, "val2017")
    return found.subset(slice(0, SAMPLES[name]))


@lru_cache(maxsize=1)
def load_pictures(name: str, folder: str) -> Dataset:
    """All pictures of a folder, and what is right."""
    found = load_data(require(DATA / "coco" / folder), preprocessing(name), None, 0, form=Form("detection"))
    if name == NANODET:
        return found
    with torch.no_grad():
        classes = torch.cat([network(name)(part).argmax(1) for part in found.inputs[0].split(4)])
    assert found.targets is not None
    for mask, target in zip(classes, found.targets, strict=True):
        (height, width), (scale_x, scale_y, *_) = target["size"], target["placed"]
        mask[round(height * scale_y) :] = IGNORED
        mask[:, round(width * scale_x) :] = IGNORED
    return Dataset(found.inputs, targets=classes)


def clean(folder: str, count: int, seed: int) -> Tensor:
    return load_data(require(DATA / folder), preprocessing(DENOISER), count, seed).inputs[0]


def noisy(pictures: Tensor, seed: int) -> Tensor:
    return pictures + NOISE * torch.randn(pictures.shape, generator=torch.Generator().manual_seed(seed))


def trained_denoiser(steps: int = 800, batch: int = 16, side: int = 40) -> nn.Module:
    """Trained on crops of calibration images, two minutes of a processor."""
    torch.manual_seed(0)
    model, pictures = Denoiser(), clean("imagenet_calib", 400, 0)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        chosen = pictures[torch.randint(len(pictures), (batch,))]
        top, left = (int(torch.randint(96 - side + 1, ())) for _ in range(2))
        target = chosen[..., top : top + side, left : left + side]
        loss = F.mse_loss(model(target + NOISE * torch.randn_like(target)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@lru_cache
def _module(name: str) -> Any:
    """The Python file of a network, which lies with its weights."""
    spec = importlib.util.spec_from_file_location(name, require(DATA / "models" / f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
