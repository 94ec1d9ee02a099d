"""How far inputs are from the training data, as the network's batch norms remember it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from brecq.forward import even_slices
from brecq.synthesis.norms import batch_moments, stored_moments, watch_inputs


@dataclass(frozen=True)
class Moments:
    """What a batch norm remembers: mean [C], standard deviation [C] and its reciprocal as the layer applies it."""

    mean: Tensor
    std: Tensor
    scale: Tensor

    @classmethod
    def of(cls, module: nn.Module) -> Moments:
        mean, variance = (value.float() for value in stored_moments(module))
        eps = getattr(module, "eps", 1e-5)
        return cls(mean, variance.clamp_min(0).sqrt(), (variance + eps).rsqrt())

    def errors(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Mean square over channels of (μ̂ − μ)/σ and of (σ̂ − σ)/σ."""
        std = (variance + 1e-10).sqrt()  # the square root has no derivative at 0
        return ((mean - self.mean) * self.scale).square().mean(), ((std - self.std) * self.scale).square().mean()


def matching_loss(seen: list[tuple[str, Tensor]], stored: dict[str, Moments]) -> Tensor:
    """Mean over batch norms of ‖(μ̂ − μ)/σ‖² + ‖(σ̂ − σ)/σ‖², the norms divided by the number of channels.

    The statistics of Cai et al., "ZeroQ" (CVPR 2020), equation 2, here in units of each channel's deviation, so that
    layers and channels of any scale count alike.
    """
    terms = [sum(stored[name].errors(*batch_moments(x))) for name, x in seen]
    return torch.stack([term for term in terms if isinstance(term, Tensor)]).mean()


@dataclass(frozen=True)
class LayerMatch:
    """How well a batch norm's statistics are met, by noise (`before`) and by the distilled inputs (`after`).

    The numbers are the root mean square over channels of (μ̂ − μ)/σ and (σ̂ − σ)/σ, over all inputs together.
    """

    layer: str
    mean_before: float
    std_before: float
    mean_after: float
    std_after: float


@torch.no_grad()
def measure_match(model: nn.Module, norms: dict[str, nn.Module], inputs: Tensor, batch_size: int) -> list[list[float]]:
    """For each of `norms`, in order: root mean square over channels of (μ̂ − μ)/σ and (σ̂ − σ)/σ, of all inputs.

    Args:
        inputs: float32 [N, C, ...], on any device. Batch norms that several forward calls use count once, with all.
    """
    sums = {name: (torch.zeros(()), torch.zeros(()), 0) for name in norms}
    device = stored_moments(next(iter(norms.values())))[0].device
    with watch_inputs(norms) as seen:
        for rows in even_slices(len(inputs), batch_size):
            seen.clear()
            model(inputs[rows].to(device))
            for name, x in seen:
                mean, variance = (value.double().cpu() for value in batch_moments(x))
                count = x.numel() // x.shape[1]
                first, second, total = sums[name]
                sums[name] = first + count * mean, second + count * (variance + mean.square()), total + count
    found = []
    for name, module in norms.items():
        first, second, total = sums[name]
        mean = first / total
        variance = (second / total - mean.square()).clamp_min(0)
        errors = Moments.of(module).errors(mean.float().to(device), variance.float().to(device))
        found.append([float(error.sqrt()) for error in errors])
    return found
