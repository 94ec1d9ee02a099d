"""The networks and data that the benchmarks measure on, and the measurement itself."""

from __future__ import annotations

import importlib.util
import os
import time
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from cells import Cell
from safetensors.torch import load_file
from torch import Tensor, nn

import brecq
from brecq.data import Dataset, Preprocessing, load_data
from brecq.sources import Source, load_source

REPOSITORY = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("BRECQ_DATA", REPOSITORY.parent / "shared" / "data"))
"""README.md says what has to be there."""

CIFAR = ("resnet20", "resnet32")
CIFAR_CALIBRATION, CIFAR_TEST = 1024, 4000
IMAGENET = ("efficientnet_lite0", "squeezenet1_1")
VIT, MOBILENET, UNET, DETECTOR = "vit", "mobilenetv3_small", "unet", "nanodet_m"
UNTRAINED = (VIT, MOBILENET, UNET)
"""Networks with random weights: of them only sizes, kernels, equality and speed mean anything."""
IMAGENET_CALIBRATION, IMAGENET_TEST = 1000, 800
CALIBRATION = {"resnet20": 1024, "resnet32": 1024, "efficientnet_lite0": 512, "squeezenet1_1": 512}
"""Calibration samples of the comparisons of recipes."""


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut without parameters: strided, padded with zero channels.

    Option A of He et al. 2016, "Deep residual learning".
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.padding = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.padding:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(y + x)


class CifarResNet(nn.Module):
    """ResNet-(6n+2) for 32×32 pictures in 10 classes (He et al. 2016, section 4.2)."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, 1, depth)
        self.layer2 = _stage(16, 32, 2, depth)
        self.layer3 = _stage(32, 64, 2, depth)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


class UNet(nn.Module):
    """Three scales, joined by concatenation: transposed convolutions, skips, 21 classes a pixel."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        sizes = [3, width, 2 * width, 4 * width]
        self.down = nn.ModuleList(_double(i, o) for i, o in pairwise(sizes))
        self.grow = nn.ModuleList(nn.ConvTranspose2d(2 * o, o, 2, 2) for o in (2 * width, width))
        self.up = nn.ModuleList(_double(2 * o, o) for o in (2 * width, width))
        self.out = nn.Conv2d(width, 21, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down[0](x)
        second = self.down[1](F.max_pool2d(first, 2))
        x = self.down[2](F.max_pool2d(second, 2))
        x = self.up[0](torch.cat([second, self.grow[0](x)], 1))
        return self.out(self.up[1](torch.cat([first, self.grow[1](x)], 1)))


def _double(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for each in (inputs, outputs):
        layers += [nn.Conv2d(each, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def _stage(inputs: int, outputs: int, stride: int, depth: int) -> nn.Sequential:
    blocks = [BasicBlock(outputs, outputs, 1) for _ in range((depth - 2) // 6 - 1)]
    return nn.Sequential(BasicBlock(inputs, outputs, stride), *blocks)


@lru_cache(maxsize=1)
def network(name: str) -> Source:
    """One of `CIFAR`, `IMAGENET`, `DETECTOR` with its trained weights, or of `UNTRAINED`, and its preprocessing."""
    weights = DATA / "weights"
    if name in CIFAR:
        model = CifarResNet(int(name.removeprefix("resnet")))
        model.load_state_dict(load_file(require(weights / f"cifar10_{name}.safetensors")))
        preprocessing = Preprocessing.imagenet().replace(size=(32, 32), resize=None)
        return Source(name, model.eval(), preprocessing, (preprocessing.example(),), name)
    if name == "efficientnet_lite0":
        return load_source(f"{REPOSITORY / 'demo' / 'efficientnet_lite0.py'}:build")
    if name == DETECTOR:
        file = require(DATA / "models" / "nanodet_m.py")
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        model = module.NanoDetM()
        model.load_state_dict(load_file(require(weights / "coco_nanodet_m.safetensors")))
        mean, std = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)
        preprocessing = Preprocessing(
            tuple(m / 255 for m in mean), tuple(s / 255 for s in std), (320, 320), (320, 320), color="BGR"
        )
        return Source(name, model.eval(), preprocessing, (preprocessing.example(),), name)
    if name in (MOBILENET, UNET):
        import timm

        torch.manual_seed(0)
        net = UNet() if name == UNET else timm.create_model("mobilenetv3_small_100")
        preprocessing = Preprocessing.imagenet().replace(size=(96, 96)) if name == UNET else Preprocessing.imagenet()
        return Source(name, net.eval(), preprocessing, (preprocessing.example(),), name)
    if name == VIT:  # four blocks of width 192, for speed and size only
        import timm

        torch.manual_seed(0)
        vit = timm.create_model("vit_tiny_patch16_224", depth=4).eval()
        preprocessing = Preprocessing.imagenet()
        return Source(name, vit, preprocessing, (preprocessing.example(),), name)
    return load_source(f"torchvision:{name}", require(weights / f"imagenet_{name}.safetensors"))


@lru_cache(maxsize=1)
def calibration_data(name: str, count: int) -> Dataset:
    """`count` unlabeled inputs for the network `name`."""
    preprocessing = _preprocessing(name)
    if name in CIFAR:
        pixels = load_data(f"{require(DATA / 'cifar10.npz')}:x_train", preprocessing, None, 0)
        return Dataset((pixels.inputs[0][:count],))
    if name == DETECTOR:
        return load_data(require(DATA / "coco" / "train2017" / "images"), preprocessing, count, 0)
    return load_data(require(DATA / "imagenet_calib"), preprocessing.replace(resize=256), count, 0)


@lru_cache(maxsize=1)
def test_data(name: str, count: int) -> Dataset:
    """`count` labelled inputs for the network `name`."""
    preprocessing = _preprocessing(name)
    if name in CIFAR:
        return load_data(f"{require(DATA / 'cifar10.npz')}:x_test", preprocessing, None, 0).subset(slice(0, count))
    if name == DETECTOR:
        return load_data(require(DATA / "coco" / "val2017" / "images"), preprocessing, count, 0)
    # these pictures are 227 pixels square: only cropped, not scaled
    return load_data(require(DATA / "imagenet_val"), preprocessing.replace(resize=227), count, 0)


def reported(name: str) -> Dataset:
    """The labelled inputs that results are reported on, where others were chosen by: see `chosen_by`."""
    return test_data(name, CIFAR_TEST) if name in CIFAR else test_data(name, IMAGENET_TEST).subset(slice(400, None))


def chosen_by(name: str) -> Dataset:
    """Labelled inputs to choose recipes by: training images not calibrated on, the other half of the ImageNet ones."""
    if name not in CIFAR:
        return test_data(name, IMAGENET_TEST).subset(slice(0, 400))
    whole = load_data(f"{require(DATA / 'cifar10.npz')}:x_train", _preprocessing(name), None, 0)
    return whole.subset(slice(CIFAR_CALIBRATION, None))


def _preprocessing(name: str) -> Preprocessing:
    preprocessing = network(name).preprocessing
    assert preprocessing is not None
    return preprocessing


def require(path: Path) -> Path:
    """`path`, or the end of the program with what to do about it."""
    if not path.exists():
        raise SystemExit(f"there is no {path}; benchmarks/README.md says what this benchmark needs there")
    return path


def quantized(
    name: str, calibration: int, config: brecq.QuantConfig, device: str = "cpu"
) -> tuple[brecq.QuantResult, dict[str, float]]:
    """The network `name`, quantized with so many calibration inputs; what it took.

    `cpu_seconds` is processor time over all threads, which other load on the machine changes little.
    """
    data = calibration_data(name, calibration)
    model = network(name).model
    began, busy = time.perf_counter(), time.process_time()
    result = brecq.quantize(model, data, config, device=device)
    cost = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - busy}
    return result, {**cost, "weight_bytes": result.weight_bytes()}


def quality(name: str, model: nn.Module, samples: int) -> dict[str, float]:
    """Top-1 accuracy, agreement with the float network (both percent), and SQNR of the logits (dB)."""
    return quality_on(name, model, test_data(name, samples))


def quality_on(name: str, model: nn.Module, data: Dataset, device: str = "cpu") -> dict[str, float]:
    """The same on `data`."""
    found = brecq.evaluate(model, data, reference=network(name).model, batch_size=100, device=device)
    assert found.top1 is not None
    values = {"top1": found.top1, "agreement": found.agreement, "sqnr": found.sqnr}
    return {key: value for key, value in values.items() if value is not None and value != float("inf")}


def measure(cell: Cell) -> dict[str, float]:
    """Quantize (without `config`: leave in float) and evaluate."""
    if cell.config is None:
        return quality(cell.network, network(cell.network).model, cell.samples)
    result, cost = quantized(cell.network, cell.calibration, cell.config)
    return {**cost, **quality(cell.network, result.model, cell.samples)}


def use_threads(threads: int | None) -> None:
    """Compute on `threads` threads; `None` leaves it to PyTorch."""
    if threads is not None:
        torch.set_num_threads(threads)
