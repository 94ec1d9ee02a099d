"""What is optimized: the values of a batch, their Fourier coefficients, or a generator and its latent vectors."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brecq.errors import ConfigError
from brecq.synthesis.config import DistillConfig
from brecq.synthesis.inputs import InputSpec
from brecq.synthesis.spectrum import from_spectrum, to_spectrum
from brecq.synthesis.start import start_inputs

REFERENCE = 224 * 224
"""Pixels of the pictures that learning rates are given for."""

LATENT_SIZE = 256
_START = 4  # the generator's first picture has a quarter of the sides


def make_latent(spec: InputSpec, count: int, config: DistillConfig, generator: torch.Generator) -> Pixels | Generator:
    """What `config.latent` asks for, drawn on the CPU. Without spatial dimensions a spectrum is the values."""
    if config.latent == "generator":
        return Generator(spec, count, config, generator)
    kind = Spectrum if config.latent == "spectrum" and len(spec.shape) > 1 else Pixels
    return kind(spec, count, config, generator)


def step_factor(spec: InputSpec) -> float:
    """By how much the learning rate of pixels and coefficients is larger than for pictures of 224×224.

    A statistic of fewer values needs larger changes of each. The exponent was chosen on two networks: pictures of
    32×32 are still far from the statistics after 200 steps at the rate that is right for 224×224, three times that
    rate leaves the larger ones full of high frequencies.
    """
    return float(min(4.0, (REFERENCE / math.prod(spec.shape[1:])) ** 0.25))


class Pixels(nn.Module):
    """The batch itself. Cai et al., "ZeroQ" (CVPR 2020), who start from noise."""

    def __init__(self, spec: InputSpec, count: int, config: DistillConfig, generator: torch.Generator) -> None:
        super().__init__()
        self._spec, self._lr = spec, config.lr * step_factor(spec)
        self._fine = self._coarse = start_inputs(spec, count, config, generator)
        if config.coarse and len(spec.shape) > 1:
            self._coarse = F.interpolate(self._fine, tuple(max(1, side // 2) for side in spec.shape[1:]), mode="area")
        self._sides = tuple(self._coarse.shape[2:])
        self.values = nn.Parameter(self._encode(self._coarse))

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups for the optimizer."""
        return [{"params": [self.values], "lr": self._lr}]

    def forward(self) -> Tensor:
        return self._spec.restore(self._decode(self.values))

    @torch.no_grad()
    def refine(self) -> None:
        """From half to full resolution: what was learned is added to the start, whose fine detail is kept."""
        learned = self() - self._coarse.to(self.values.device)
        self._sides = self._spec.shape[1:]
        if self._sides:
            mode = {3: "linear", 4: "bilinear", 5: "trilinear"}[learned.dim()]
            learned = F.interpolate(learned, self._sides, mode=mode, align_corners=False)
        self.values = nn.Parameter(self._encode(self._spec.clip(self._fine.to(learned.device) + learned)))

    @torch.no_grad()
    def project(self) -> None:
        """Back into the valid range, after a step."""
        if self._spec.is_picture:
            self.values.copy_(self._encode(self._spec.clip(self())))

    def _encode(self, inputs: Tensor) -> Tensor:
        return self._transform(self._spec.standardize(inputs))

    def _transform(self, standardized: Tensor) -> Tensor:
        return standardized

    def _decode(self, values: Tensor) -> Tensor:
        return values


class Spectrum(Pixels):
    """The Fourier coefficients of the batch, each in units of 1/f, the amplitude that photographs have.

    In these units a gradient step moves coarse structure as easily as fine, where it fills pixels with high-frequency
    noise that no photograph has. Olah et al. 2017, "Feature visualization", section "Preconditioning and
    parameterization".
    """

    def _transform(self, standardized: Tensor) -> Tensor:
        return to_spectrum(standardized)

    def _decode(self, values: Tensor) -> Tensor:
        return from_spectrum(values, self._sides)


class Generator(nn.Module):
    """Three convolutions that enlarge a linear function of a latent vector per input, trained for one batch alone.

    Jeon et al., "Genie: Show Me the Data for Quantization" (CVPR 2023), section 3.1; narrower by default. Its batch
    norms use the statistics of the batch, also for the result; the last one standardizes the pictures.
    """

    def __init__(self, spec: InputSpec, count: int, config: DistillConfig, generator: torch.Generator) -> None:
        super().__init__()
        if not spec.is_picture:
            raise ConfigError(
                f"latent is 'generator', but inputs of shape {spec.shape} are no pictures with a preprocessing; "
                "use latent='pixels'"
            )
        self._spec, self._config = spec, config
        self._coarse = config.coarse > 0
        height, width = spec.shape[1:]
        self._sizes = [(-(-height // part), -(-width // part)) for part in (_START, _START // 2, 1)]
        channels = config.generator_width
        self.latents = nn.Parameter(torch.randn(count, LATENT_SIZE, generator=generator))
        self.start = nn.Linear(LATENT_SIZE, channels * self._sizes[0][0] * self._sizes[0][1])
        self.start_norm = nn.BatchNorm2d(channels)
        self.conv1, self.norm1 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.conv2, self.norm2 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.conv3, self.norm3 = nn.Conv2d(channels, 3, 3, padding=1), nn.BatchNorm2d(3, affine=False)
        for layer in (self.start, self.conv1, self.conv2, self.conv3):
            nn.init.kaiming_normal_(layer.weight, a=0.2, generator=generator)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups for the optimizer: latent vectors, and weights."""
        weights = [value for name, value in self.named_parameters() if name != "latents"]
        return [
            {"params": [self.latents], "lr": self._config.lr},
            {"params": weights, "lr": self._config.generator_lr},
        ]

    def forward(self) -> Tensor:
        x = self.start(self.latents).view(len(self.latents), -1, *self._sizes[0])
        x = self.start_norm(x.contiguous(memory_format=torch.channels_last))
        x = F.leaky_relu(self.norm1(self.conv1(F.interpolate(x, self._sizes[1]))), 0.2)
        x = F.leaky_relu(self.norm2(self.conv2(F.interpolate(x, self._sizes[2]))), 0.2)
        x = self._spec.clip(self._spec.restore(self.norm3(self.conv3(x))))
        return F.avg_pool2d(x, 2) if self._coarse else x

    def refine(self) -> None:
        """From half to full resolution."""
        self._coarse = False

    def project(self) -> None:
        """Nothing to do: pictures are in the valid range by construction."""
