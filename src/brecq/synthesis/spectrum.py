"""Spectra that fall as 1/f, as those of photographs do.

Field 1987, "Relations between the statistics of natural images and the response properties of cortical cells".
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def to_spectrum(x: Tensor) -> Tensor:
    """Fourier coefficients of x [N, C, ...] in units of 1/f, the real and the imaginary part last."""
    spectrum = torch.fft.rfftn(x, dim=_sides(x), norm="ortho")
    return torch.view_as_real(spectrum / spectrum_scale(x.shape[2:]).to(x.device))


def from_spectrum(values: Tensor, sides: tuple[int, ...]) -> Tensor:
    """The inverse of `to_spectrum`: [N, C, *sides]."""
    spectrum = torch.view_as_complex(values) * spectrum_scale(sides).to(values.device)
    return torch.fft.irfftn(spectrum, s=sides, dim=_sides(spectrum), norm="ortho")


def pink(noise: Tensor) -> Tensor:
    """White noise [N, C, ...] of variance 1 turned into noise with a spectrum of 1/f and the same variance."""
    white = torch.fft.rfftn(noise, dim=_sides(noise), norm="ortho")
    return from_spectrum(torch.view_as_real(white), tuple(noise.shape[2:]))


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


def _sides(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.dim()))
