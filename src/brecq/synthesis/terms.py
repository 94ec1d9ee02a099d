"""Terms beside the matching of statistics: what else is known of the training data."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from brecq.synthesis.norms import batch_moments


def input_loss(inputs: Tensor) -> Tensor:
    """Distance of channels of standardized inputs [N, C, ...] from mean 0 and deviation 1: (‖μ̂‖² + ‖σ̂ − 1‖²)/C."""
    mean, variance = batch_moments(inputs)
    return mean.square().mean() + ((variance + 1e-10).sqrt() - 1).square().mean()


def total_variation(inputs: Tensor) -> Tensor:
    """Mean absolute difference of neighbours in [N, C, ...], summed over the spatial dimensions."""
    terms = [inputs.diff(dim=dim).abs().mean() for dim in range(2, inputs.dim())]
    return sum(terms[1:], terms[0]) if terms else inputs.new_zeros(())


def entropy_loss(logits: Tensor) -> Tensor:
    """Confident inputs of balanced classes: mean entropy of the predictions less the entropy of their mean.

    Minus the mutual information between input and class, in nats, of logits [N, classes]: 0 where all inputs are
    predicted alike, −log(classes) at best.
    """
    probabilities, mean = logits.softmax(1), logits.softmax(1).mean(0)
    return _entropy(probabilities).mean() - _entropy(mean)


def class_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy of logits [N, classes] and the classes [N] that the inputs are to show."""
    return F.cross_entropy(logits, classes)


def _entropy(probabilities: Tensor) -> Tensor:
    return -(probabilities * probabilities.clamp_min(1e-12).log()).sum(-1)
