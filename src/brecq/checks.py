"""What is looked at before any long work: the model, the configuration, the device, one run of the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from brecq.data.dataset import Dataset, describe_sample
from brecq.data.signature import Signature
from brecq.devices import device_of
from brecq.errors import BrecqError, CaptureError, ConfigError, DataError, SourceError
from brecq.forward import Inputs, call, evaluating, tensors
from brecq.logits import named_outputs
from brecq.text import shown


def check_device(device: str | torch.device) -> torch.device:
    """The device, if networks can be quantized on it: the CPU, or a CUDA device that is there. `auto` is the current
    CUDA device where there is one, otherwise the CPU.

    Raises:
        ConfigError: there is no such device, or it is of another kind.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError, ValueError):
        raise ConfigError(f"the device is {shown(device)}; give auto, cpu, cuda or cuda:N") from None
    if found.type not in ("cpu", "cuda"):
        raise ConfigError(f"the device is {str(device)!r}, but brecq computes on cpu and cuda; give one of these")
    count = torch.cuda.device_count()
    if found.type == "cuda" and (found.index or 0) >= count:
        raise ConfigError(f"the device is {str(device)!r}, but PyTorch sees {count} CUDA devices; use cpu")
    return found


def check_request(model: Any, config: Any, kind: type, device: str | torch.device = "cpu") -> torch.device:
    """The device; raises `ConfigError` unless it is there, the model a module, and the configuration of its class."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"the model is a {type(model).__name__}; give a torch.nn.Module")
    if not isinstance(config, kind):
        raise ConfigError(f"config is {shown(config)}; give a brecq.{kind.__name__}")
    return check_device(device)


def check_weights(model: nn.Module) -> None:
    """Every parameter has values, and finite ones; buffers may hold infinity (attention masks do) but no NaN.

    Raises:
        SourceError: names the first that does not.
    """
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if value.is_meta:
            raise SourceError(f"{name!r} has no values (it is on the device meta); load the model's weights first")
        if value.layout != torch.strided or not value.is_floating_point():
            continue
        finite = value.isfinite() if isinstance(value, nn.Parameter) else ~value.isnan()
        if not finite.all():
            bad = int((~finite).sum())
            raise SourceError(
                f"{name!r} holds NaN or infinite values ({bad} of {value.numel()}); check the checkpoint it came from"
            )


@torch.no_grad()
def check_runs(model: nn.Module, data: Dataset) -> None:
    """Run the float network on a few samples: the first two, and those with the extreme values of each input.

    Raises:
        DataError: it does not run on them, such as for token ids that an embedding does not have, or returns NaN.
        CaptureError: it returns no tensor.
    """
    index = torch.tensor(_telling(data))
    part = data.subset(index)
    where = ", ".join(describe_sample(data, i) for i in dict.fromkeys(index.tolist()))
    with evaluating(model), running(where, lambda: advice(model, part)):
        output = call(model, part.arguments([value.to(device_of(model)) for value in part.inputs]))
    leaves = tree_leaves(output)
    found = list(named_outputs(output).values())
    if not found:
        what = type(output).__name__ if len(leaves) != 1 else shown(leaves[0])
        raise CaptureError(f"the network returns {what}; its forward has to return a tensor, or several")
    for tensor in found:
        if tensor.is_floating_point() and tensor.isnan().any():
            rows = tensor.isnan().flatten(1).any(1) if tensor.ndim > 1 else tensor.isnan()
            bad = int(index[int(rows.nonzero()[0])]) if len(rows) == len(index) else int(index[0])
            raise DataError(
                f"the float network's output holds NaN for {describe_sample(data, bad)}; check its weights and how "
                "the data is prepared"
            )


def check_inputs(model: nn.Module, given: Inputs) -> Inputs:
    """Example inputs in the order of `forward`, which the float network runs on.

    Raises:
        DataError, CaptureError: as `check_runs`, which `quantize` asks, too; `forward` does not take them.
    """
    inputs = Signature(model).order(given)
    check_runs(model, Dataset(tensors(inputs), keys=tuple(inputs) if isinstance(inputs, Mapping) else ()))
    return inputs


FITTING = "check that the inputs (shape, type, range of token ids) are those of this network"


def advice(model: nn.Module, data: Dataset) -> str:
    """What to do about inputs that the network does not run on."""
    if wrapper := Signature(model).of_dictionary(data.inputs):
        return wrapper
    pixels = [value for value in data.inputs if value.dtype == torch.uint8 and value.ndim > 2]
    if not pixels:
        shapes = ", ".join(str(list(value.shape)) for value in data.inputs)
        read = f"they were read as {shapes}, samples first: stack single samples (torch.stack)"
        return f"{FITTING} ({'; '.join(filter(None, [data.origin, read]))})"
    return (
        f"the data holds uint8 pixels of shape {list(pixels[0].shape[1:])}, and the network does not convert them "
        "itself: normalize them to float32 [N, 3, H, W] first (brecq.data.Preprocessing does), or give a "
        "preprocessing (--mean, --std, --size)"
    )


@contextmanager
def running(where: str, what_to_do: Callable[[], str] = lambda: FITTING) -> Iterator[None]:
    """What a network raises inside becomes a `DataError` that names the samples and ends in an advice."""
    try:
        yield
    except (BrecqError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever the network's own code raises
        reason = next((line for line in str(error).splitlines() if line.strip()), "")
        gray = "to have 1 channels, but got 3 channels" in reason
        told = "if it takes gray pictures, say so: --color GRAY, or Preprocessing(..., color='GRAY')"
        raise DataError(
            f"the network does not run on {where}: {type(error).__name__}: {reason.strip()}; "
            f"{told if gray else what_to_do()}"
        ) from error


def _telling(data: Dataset) -> list[int]:
    """Indices of the samples to try, an even number: some networks take the samples of a batch in pairs."""
    found = set(range(min(2, len(data))))
    for tensor in data.inputs:
        if tensor.numel() and tensor.dtype != torch.bool and not tensor.is_complex():
            flat = tensor.flatten(1) if tensor.ndim > 1 else tensor[:, None]
            found |= {int(flat.amax(1).argmax()), int(flat.amin(1).argmin())}
    chosen = sorted(found)
    return chosen if len(chosen) % 2 == 0 else [*chosen, chosen[-1]]
