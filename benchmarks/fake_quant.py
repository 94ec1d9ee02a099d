"""What fake-quantizing an activation costs beside the convolutions on it, forward and backward, in milliseconds.

    python benchmarks/fake_quant.py [--threads 2] [--repeat 7] [--memory keep] [--dtype float32]

For each activation: one pass over its memory (x.mul_ in place, and x * 1 into fresh memory), the convolutions beside
it, LSQ and LSQ + QDrop written in eager PyTorch, and brecq's kernel with QDrop. All of them run in turn, several
times, and the smallest time of each counts: read the ratios, which other load on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from brecq.quant.kernels import backend, lsq_qdrop

LOW, HIGH, DROP = 0, 15, 0.5


@dataclass(frozen=True)
class Case:
    """An activation of a real network, and the convolution it comes from and those it may feed."""

    name: str
    shape: tuple[int, int, int, int]
    produced_by: tuple[int, int] | None = None  # in-channels and kernel size of the dense convolution before it
    depthwise: bool = False


CASES = [
    Case("1x1 convolution 24 to 96", (32, 96, 112, 112), (24, 1), depthwise=True),
    Case("EfficientNet-lite0 blocks.1.0, expanded", (32, 96, 112, 112), (16, 1), depthwise=True),
    Case("MobileNetV2 stem", (32, 32, 112, 112), (3, 3), depthwise=True),
    Case("MobileNetV2 features.3, expanded", (32, 144, 56, 56), (24, 1), depthwise=True),
    Case("MobileNetV2 features.8, expanded", (32, 384, 14, 14), (64, 1), depthwise=True),
    Case("ResNet-18 layer1", (32, 64, 56, 56), (64, 3)),
    Case("ResNet-18 layer4", (32, 512, 7, 7), (512, 3)),
    Case("ResNet-20/CIFAR layer1", (32, 16, 32, 32), (16, 3)),
    Case("ResNet-20/CIFAR layer3", (32, 64, 8, 8), (64, 3)),
]


class Round(torch.autograd.Function):
    """Straight-through rounding."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return grad


def eager_lsq(x: Tensor, scale: Tensor, zero_point: Tensor, grad_scale: float) -> Tensor:
    scale = scale * grad_scale + (scale - scale * grad_scale).detach()
    codes = torch.clamp(Round.apply(x / scale) + zero_point, LOW, HIGH)
    return (codes - zero_point) * scale


def eager_lsq_qdrop(x: Tensor, scale: Tensor, zero_point: Tensor, grad_scale: float) -> Tensor:
    quantized = eager_lsq(x, scale, zero_point, grad_scale)
    return torch.where(torch.rand_like(x) < DROP, x, quantized)


def activation(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randn(shape).relu().to(dtype, memory_format=torch.channels_last)


def forward_backward(function: Callable[[Tensor], Tensor], x: Tensor, learned: list[Tensor]) -> Callable[[], None]:
    x = x.detach().requires_grad_()
    upstream = torch.randn_like(function(x))

    def run() -> None:
        x.grad = None
        for parameter in learned:
            parameter.grad = None
        function(x).backward(upstream)

    return run


def contestants(case: Case, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    batch, channels, height, width = case.shape
    x = activation(case.shape, dtype)
    scale, zero_point = torch.tensor(0.2, requires_grad=True), torch.tensor(0.0)
    grad_scale = (x.numel() * (HIGH - LOW)) ** -0.5
    seeds = iter(range(1 << 30))
    runs: dict[str, Callable[[], object]] = {"pass": lambda: x.mul_(1.0), "new": lambda: x * 1.0}

    def convolution(inputs: int, kernel: int, groups: int) -> Callable[[], None]:
        conv = nn.Conv2d(inputs, channels, kernel, padding=kernel // 2, groups=groups, bias=False)
        conv = conv.to(dtype).to(memory_format=torch.channels_last)
        source = activation((batch, inputs, height, width), dtype)
        return forward_backward(conv, source, list(conv.parameters()))

    if case.produced_by is not None:
        runs["conv"] = convolution(*case.produced_by, groups=1)
    if case.depthwise:
        runs["depthwise"] = convolution(channels, 3, groups=channels)
    runs["eager LSQ"] = forward_backward(lambda x: eager_lsq(x, scale, zero_point, grad_scale), x, [scale])
    runs["+QDrop"] = forward_backward(lambda x: eager_lsq_qdrop(x, scale, zero_point, grad_scale), x, [scale])
    runs["brecq"] = forward_backward(
        lambda x: lsq_qdrop(x, scale, zero_point, LOW, HIGH, DROP, next(seeds), grad_scale), x, [scale]
    )
    return runs


def measure(runs: dict[str, Callable[[], object]], repeat: int) -> dict[str, float]:
    """Smallest time of each in milliseconds, all of them taking turns."""
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(repeat):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            best[name] = min(best[name], (time.perf_counter() - start) * 1e3)
    return best


def set_memory(policy: str) -> None:
    """Linux maps and clears pages for every large tensor again, which can take longer than computing on it.

    `huge` has torch ask for huge pages (before its first allocation), `keep` has glibc keep freed memory.
    """
    if policy == "huge":
        os.environ["THP_MEM_ALLOC_ENABLE"] = "1"
    elif policy == "keep":
        libc = ctypes.CDLL("libc.so.6")
        trim_threshold, mmap_max = -1, -4
        if not (libc.mallopt(mmap_max, 0) and libc.mallopt(trim_threshold, 2**31 - 1)):
            raise SystemExit("mallopt refused: leave out --memory keep")


def processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of fake quantization, forward and backward")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument(
        "--memory", choices=["system", "huge", "keep"], default="system",
        help="of large tensors: as the system does it, in huge pages (Linux), or kept when freed (glibc)",
    )  # fmt: skip
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    set_memory(arguments.memory)
    torch.manual_seed(0)
    dtype = getattr(torch, arguments.dtype)

    print(f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {arguments.dtype}, "
          f"channels_last, memory: {arguments.memory}")  # fmt: skip
    start = time.perf_counter()
    forward_backward(
        lambda x: lsq_qdrop(x, torch.tensor(0.2, requires_grad=True), torch.tensor(0.0), LOW, HIGH, DROP, 0, 1.0),
        activation((2, 64, 32, 32), dtype), [],
    )()  # fmt: skip
    print(f"kernels: {backend()}; first use took {time.perf_counter() - start:.1f} s "
          "(about 10 s on a machine that never compiled them)\n")  # fmt: skip

    columns = ["pass", "new", "conv", "depthwise", "eager LSQ", "+QDrop", "brecq"]
    headings = "".join(f"{column:>11}" for column in columns)
    print(f"{'activation':<52}{headings}{'brecq/conv':>12}{'brecq/dw':>10}{'eager/brecq':>13}")
    for case in CASES:
        times = measure(contestants(case, dtype), arguments.repeat)
        label = f"{case.name} {'x'.join(map(str, case.shape))}"
        cells = "".join(f"{times[column]:>11.2f}" if column in times else f"{'':>11}" for column in columns)
        shares = [
            f"{times['brecq'] / times[column]:.2f}" if column in times else "" for column in ("conv", "depthwise")
        ]
        gain = f"{times['+QDrop'] / times['brecq']:.1f}x"
        print(f"{label:<52}{cells}{shares[0]:>12}{shares[1]:>10}{gain:>13}", flush=True)


if __name__ == "__main__":
    main()
