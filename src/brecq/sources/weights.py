"""Read weights from a file and put them into a model, or say exactly what does not fit."""

from __future__ import annotations

import argparse
import os
import pickle
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from brecq.errors import SourceError

CONTAINERS: tuple[str, ...] = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "module",
    "params",
    "weights",
)
CONTAINERS += ("state_dict_ema", "model_ema", "ema")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
_SHOWN = 3


def read_weights(path: Path, *, trust_pickle: bool = False) -> dict[str, Tensor]:
    """The tensors in a `.safetensors`, `.pt` or `.pth` file, by name.

    Training checkpoints are unwrapped (`{"state_dict": ...}`, `{"model": ...}` and the like). Pickle files are read
    by PyTorch's restricted unpickler, which executes no code, unless `trust_pickle` is set; then a pickled module
    will do, too.

    Raises:
        SourceError: no such file, another format, arbitrary objects in it, or no tensors.
    """
    if not os.path.isfile(path):
        raise SourceError(f"there is no weights file {path}; check the path")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise SourceError(f"{path} is not a readable safetensors file: {error}") from error
    if path.suffix not in (".pt", ".pth", ".bin", ".ckpt", ".tar"):
        raise SourceError(f"weights file {path} ends in {path.suffix!r}; give a .safetensors, .pt or .pth file")
    return _unwrap(_unpickle(path, trust_pickle), path)


def _unpickle(path: Path, trust_pickle: bool) -> Any:
    try:
        # timm's and torchvision's training checkpoints carry their arguments, a plain container
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except pickle.UnpicklingError as error:
        if trust_pickle:
            raise SourceError(f"{path} cannot be unpickled: {error}") from error
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"refers to {found[1]}" if found else "is not a plain pickle of tensors"
        raise SourceError(
            f"{path} {what}, and unpickling it could run any code; save the model's state_dict() alone, "
            "better as .safetensors, or pass trust_pickle if you trust its origin"
        ) from error
    # a truncated file, another format, or a pickled class that is not importable here: unpicklers raise anything
    except Exception as error:
        raise SourceError(f"{path} is not a readable PyTorch file: {type(error).__name__}: {error}") from error


def _unwrap(loaded: Any, path: Path) -> dict[str, Tensor]:
    found = loaded
    for _ in range(3):
        if isinstance(found, nn.Module):
            found = found.state_dict()
        if not isinstance(found, Mapping):
            break
        inner = next((found[key] for key in CONTAINERS if isinstance(found.get(key), (Mapping, nn.Module))), None)
        if inner is None:
            break
        found = inner
    if not isinstance(found, Mapping):
        raise SourceError(
            f"{path} holds a {type(found).__name__}; give a dictionary of tensors, a model's state_dict()"
        )
    tensors = {str(key): value for key, value in found.items() if isinstance(value, Tensor)}
    if not tensors:
        keys = ", ".join(map(str, list(found)[:6])) or "nothing"
        raise SourceError(f"{path} holds no tensors but {keys}; give a model's state_dict()")
    return tensors


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], origin: Path) -> None:
    """Copy `weights` into `model`; prefixes that wrappers add (`module.`, ...) are dropped where they are in the way.

    Raises:
        SourceError: naming a few missing and unexpected names and unequal shapes, and the fix.
    """
    expected = model.state_dict()
    weights = _strip_prefixes(weights, expected)
    missing, unexpected, shapes, kinds = _compare(expected, weights)
    if not (missing or unexpected or shapes or kinds):
        model.load_state_dict(dict(weights), strict=False)
        return
    problems = [
        f"{len(names)} {what} ({', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''})"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", shapes),
            ("of another type", kinds),
        )
        if names
    ]
    if kinds and not (missing or unexpected or shapes):
        fix = "give the float weights: integer codes mean nothing without their scales"
    elif shapes and not missing and not unexpected:
        fix = "build the model as it was trained: write a function that does and give it as file.py:function"
    elif not set(expected) & set(weights):
        fix = "none of the names agree, so these are the weights of another model or library: check both"
    else:
        fix = "check that the file belongs to this model; if the names merely differ, rename the file's"
    raise SourceError(f"{origin} does not fit {type(model).__name__}: {'; '.join(problems)}. Fix: {fix}")


def fit_classes(
    model: nn.Module, weights: Mapping[str, Tensor], build: Callable[[int], nn.Module], classes: int | None = None
) -> nn.Module:
    """`model`, or `build(num_classes)` where the only difference to `weights` is the number of classes.

    A fine-tuned network differs from the published one in its classifiers' first dimension alone: by one factor, as a
    detector's layers have a channel for each class and anchor, or coordinate.

    Args:
        classes: of `model`; by default as many as its classifiers have channels.
    """
    expected = model.state_dict()
    weights = _strip_prefixes(weights, expected)
    missing, unexpected, *_ = _compare(expected, weights)
    pairs = [
        (tuple(expected[name].shape), tuple(tensor.shape))
        for name, tensor in weights.items()
        if name in expected and expected[name].shape != tensor.shape
    ]
    same_otherwise = all(ours and len(ours) == len(theirs) and ours[1:] == theirs[1:] for ours, theirs in pairs)
    if missing or unexpected or not pairs or not same_otherwise:
        return model
    counts = {Fraction(theirs[0] * (classes or ours[0]), ours[0]) for ours, theirs in pairs}
    if len(counts) != 1 or (count := counts.pop()).denominator != 1:
        return model
    return build(int(count))


def _strip_prefixes(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    for _ in range(len(PREFIXES)):
        for prefix in PREFIXES:
            if all(name.startswith(prefix) for name in weights) and not any(name in expected for name in weights):
                weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return weights


def _compare(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> tuple[list[str], ...]:
    """Names that are missing, that are unexpected, and descriptions of unequal shapes and of unlike types."""
    # files from before 2018 and from other frameworks lack this counter; evaluation does not use it
    missing = [name for name in expected if name not in weights and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in weights if name not in expected]
    shapes = [
        f"{name}: file {list(tensor.shape)}, model {list(expected[name].shape)}"
        for name, tensor in weights.items()
        if name in expected and expected[name].shape != tensor.shape
    ]
    kinds = [
        f"{name}: file {tensor.dtype}, model {expected[name].dtype}"
        for name, tensor in weights.items()
        if name in expected
        and tensor.is_floating_point() != expected[name].is_floating_point()
        and not name.endswith("num_batches_tracked")
    ]
    return missing, unexpected, shapes, kinds
