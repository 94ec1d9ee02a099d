"""Batch norms: which modules are, what they remember of the training data, and what reaches them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from brecq.errors import ConfigError


class BatchMoments(torch.autograd.Function):
    """Mean and biased variance per channel of [N, C, ...], in one pass back.

    d(mean)/dx = 1/m and d(var)/dx = 2 (x - mean)/m for m values a channel, so that the gradient is a·x + b with
    one a and b per channel; autograd's own formula makes several passes over the activation.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.device.type == "cpu":  # the kernel of batch norm: up to twenty times as fast as var_mean here
            mean, variance = torch.batch_norm_update_stats(x, None, None, 0.0)
        else:
            variance, mean = torch.var_mean(x, [dim for dim in range(x.dim()) if dim != 1], correction=0)
        ctx.save_for_backward(x, mean)
        return mean, variance

    @staticmethod
    def backward(ctx: Any, mean_grad: Tensor, variance_grad: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        shape = (1, -1, *[1] * (x.dim() - 2))
        count = x.numel() // x.shape[1]
        scale = variance_grad * (2 / count)
        offset = mean_grad / count - scale * mean
        return torch.addcmul(offset.view(shape), x, scale.view(shape))


def batch_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [C] and biased variance [C] of activations [N, C, ...] over all other dimensions."""
    mean, variance = BatchMoments.apply(x)
    return mean, variance


def is_batch_norm(module: nn.Module) -> bool:
    """Whether `module` normalizes channels by stored statistics of the training data.

    PyTorch's batch norms with running statistics and their subclasses (synchronized, timm's with an activation),
    and frozen ones, which libraries write anew: known by their buffers `running_mean` and `running_var`.
    """
    if isinstance(module, _InstanceNorm):  # its running variance is that within samples
        return False
    if not isinstance(module, _BatchNorm) and "running_mean" not in module._buffers:
        return False
    mean, variance = (getattr(module, name, None) for name in ("running_mean", "running_var"))
    return isinstance(mean, Tensor) and isinstance(variance, Tensor) and not is_lazy(mean)


def find_batch_norms(model: nn.Module) -> dict[str, nn.Module]:
    """Every batch norm of `model` by name.

    Raises:
        ConfigError: none has statistics other than the initial ones: the network is not trained, or its weights
            were not loaded.
    """
    found = {name: module for name, module in model.named_modules() if is_batch_norm(module)}
    if found and all(_is_initial(module) for module in found.values()):
        raise ConfigError(
            f"all {len(found)} batch norms of the network have mean 0 and variance 1, as before training: there is "
            "nothing to distill; load trained weights"
        )
    return found


def _is_initial(module: nn.Module) -> bool:
    mean, variance = stored_moments(module)
    return bool((mean == 0).all() and (variance == 1).all())


def stored_moments(module: nn.Module) -> tuple[Tensor, Tensor]:
    """Running mean and variance, each [C]."""
    mean, variance = module.running_mean, module.running_var
    assert isinstance(mean, Tensor)
    assert isinstance(variance, Tensor)
    return mean.detach(), variance.detach()


@contextmanager
def watch_inputs(modules: dict[str, nn.Module]) -> Iterator[list[tuple[str, Tensor]]]:
    """Inside, each forward pass appends (name, input) of every module that runs; clear the list between passes."""
    seen: list[tuple[str, Tensor]] = []
    handles = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: seen.append((name, inputs[0])))
        for name, module in modules.items()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
