"""Diagonal Fisher information of block outputs (Li et al. 2021, equation 10).

The weight of output element z of a sample is (∂ log p(y | x) / ∂z)², with y drawn from the model's own predictive
distribution (no labels needed) or given. One backward pass over the float network yields all blocks' gradients.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from brecq.errors import DataError
from brecq.graph.blocks import Network, Values
from brecq.quant.fake_quant import Mode, set_mode
from brecq.reconstruct.cache import ActivationCache
from brecq.reconstruct.streams import BATCH


def measure(
    network: Network,
    inputs: tuple[Tensor, ...],
    labels: Tensor | None,
    cache: ActivationCache,
    generator: torch.Generator,
) -> None:
    """Store in `cache`, under `fisher/<name>`, the weights of every block output: float32, the output's shape, mean 1
    over each sample.

    Args:
        inputs: each [N, ...] on the CPU. labels: int64 [N] to use instead of sampled ones.
        generator: CPU generator that labels are sampled with.

    Raises:
        DataError: the network's output is not a tensor of logits [N, C, ...].
    """
    set_mode(network.graph, Mode.FLOAT)
    samples = len(inputs[0])
    names = [name for block in network.blocks for name in block.outputs]
    for start in range(0, samples, BATCH):
        part = slice(start, start + BATCH)
        values: Values = {
            name: tensor[part].to(cache.device) for name, tensor in zip(network.inputs, inputs, strict=True)
        }
        values = {k: v.requires_grad_(v.is_floating_point()) for k, v in values.items()}
        with torch.enable_grad():
            for block in network.blocks:
                values.update(block(values))
            logits = network.output(values)
            loss = log_likelihood(logits, None if labels is None else labels[part], generator)
            gradients = torch.autograd.grad(loss, [values[name] for name in names], allow_unused=True)
        for name, gradient in zip(names, gradients, strict=True):
            weight = torch.ones_like(values[name]) if gradient is None else normalized(gradient.square())
            cache.put(f"fisher/{name}", start, weight, samples)


def normalized(weight: Tensor) -> Tensor:
    """Weights [N, ...] divided by their mean over each sample.

    The gradients of samples that the network is sure of are orders of magnitude smaller than those of the others.
    Left alone, a handful of samples would make up the whole loss.
    """
    mean = weight.flatten(1).mean(1).clamp(min=torch.finfo(weight.dtype).tiny)
    return weight / mean.view(-1, *[1] * (weight.dim() - 1))


def log_likelihood(logits: Tensor, labels: Tensor | None, generator: torch.Generator) -> Tensor:
    """Σ log p(y) over samples (and positions), differentiable, 0-dim; y given, or sampled from softmax(logits)."""
    if not isinstance(logits, Tensor) or logits.dim() < 2:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise DataError(
            f"Fisher weights need a network that returns logits [N, C, ...], not {found}; use loss='plain'"
        )
    flat = logits.movedim(1, -1).flatten(0, -2).float()
    if labels is None:
        probabilities = flat.detach().softmax(-1).cpu()
        target = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
    else:
        target = labels.reshape(-1)
    return -F.cross_entropy(flat, target.to(flat.device), reduction="sum")
