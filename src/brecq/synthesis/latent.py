"""What is optimized: the values of a batch, their Fourier coefficients, or a generator and its latent vectors."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brecq.errors import ConfigError
from brecq.synthesis.config import DistillConfig
from brecq.synthesis.inputs import InputSpec

LATENT_SIZE = 256
_START = 4  # the generator's first picture has a quarter of the sides


def make_latent(spec: InputSpec, count: int, config: DistillConfig, generator: torch.Generator) -> Pixels | Generator:
    """What `config.latent` asks for, drawn on the CPU. Without spatial dimensions a spectrum is the values."""
    if config.latent == "generator":
        return Generator(spec, count, config, generator)
    kind = Spectrum if config.latent == "spectrum" and len(spec.shape) > 1 else Pixels
    return kind(spec, count, config, generator)


class Pixels(nn.Module):
    """The batch itself, from Gaussian noise. Cai et al., "ZeroQ" (CVPR 2020)."""

    def __init__(self, spec: InputSpec, count: int, config: DistillConfig, generator: torch.Generator) -> None:
        super().__init__()
        self._spec, self._lr = spec, config.lr
        part = 2 if config.coarse else 1
        self._sides = tuple(max(1, side // part) for side in spec.shape[1:])
        noise = torch.randn(count, spec.shape[0], *self._sides, generator=generator)
        self.values = nn.Parameter(self._encode(spec.clip(spec.restore(self._color(noise)))))

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups for the optimizer."""
        return [{"params": [self.values], "lr": self._lr}]

    def forward(self) -> Tensor:
        return self._spec.restore(self._decode(self.values))

    @torch.no_grad()
    def refine(self) -> None:
        """From half to full resolution."""
        coarse, self._sides = self(), self._spec.shape[1:]
        if self._sides:
            mode = {3: "linear", 4: "bilinear", 5: "trilinear"}[coarse.dim()]
            coarse = F.interpolate(coarse, self._sides, mode=mode, align_corners=False)
        self.values = nn.Parameter(self._encode(coarse))

    @torch.no_grad()
    def project(self) -> None:
        """Back into the valid range, after a step."""
        if self._spec.is_picture:
            self.values.copy_(self._encode(self._spec.clip(self())))

    def _color(self, noise: Tensor) -> Tensor:
        return noise

    def _encode(self, inputs: Tensor) -> Tensor:
        return self._transform(self._spec.standardize(inputs))

    def _transform(self, standardized: Tensor) -> Tensor:
        return standardized

    def _decode(self, values: Tensor) -> Tensor:
        return values


class Spectrum(Pixels):
    """The Fourier coefficients of the batch, each in units of 1/f, from noise of that spectrum.

    Photographs have amplitudes that fall as 1/f (Field 1987, "Relations between the statistics of natural images and
    the response properties of cortical cells"). In these units a gradient step moves coarse structure as easily as
    fine, where it fills pixels with high-frequency noise that no photograph has. Olah et al. 2017, "Feature
    visualization", section "Preconditioning and parameterization".
    """

    def _color(self, noise: Tensor) -> Tensor:
        return self._decode(torch.view_as_real(torch.fft.rfftn(noise, dim=self._dims(noise), norm="ortho")))

    def _transform(self, standardized: Tensor) -> Tensor:
        spectrum = torch.fft.rfftn(standardized, dim=self._dims(standardized), norm="ortho")
        return torch.view_as_real(spectrum / spectrum_scale(self._sides).to(standardized.device))

    def _decode(self, values: Tensor) -> Tensor:
        spectrum = torch.view_as_complex(values) * spectrum_scale(self._sides).to(values.device)
        return torch.fft.irfftn(spectrum, s=self._sides, dim=self._dims(spectrum), norm="ortho")

    @staticmethod
    def _dims(x: Tensor) -> tuple[int, ...]:
        return tuple(range(2, x.dim()))


@lru_cache
def spectrum_scale(sides: tuple[int, ...]) -> Tensor:
    """1/f for every coefficient of `torch.fft.rfftn`, such that white noise times it has variance 1 again.

    f is in cycles a pixel; the constant has the frequency of the longest wave.
    """
    lowest = 1 / max(sides)

    def falloff(last: Tensor) -> Tensor:
        axes = [*(torch.fft.fftfreq(side) for side in sides[:-1]), last]
        grid = torch.meshgrid(*axes, indexing="ij")
        return 1 / torch.stack(grid).square().sum(0).sqrt().clamp_min(lowest)

    power = falloff(torch.fft.fftfreq(sides[-1])).square().mean()
    return falloff(torch.fft.rfftfreq(sides[-1])) / power.sqrt()


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
