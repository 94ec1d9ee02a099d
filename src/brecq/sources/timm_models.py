"""Models of timm (PyTorch Image Models)."""

from __future__ import annotations

import math
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from brecq.data.preprocessing import Preprocessing
from brecq.errors import ConfigError, SourceError
from brecq.sources.source import Source, require, unknown_name
from brecq.sources.weights import fit_classes, load_weights, read_weights
from brecq.storage.hub import asked


def load_timm(name: str, spec: str, weights: Path | None, trust_pickle: bool, pretrained: bool = True) -> Source:
    timm: Any = require("timm", "vision", spec)
    from_hub = name.startswith(("hf-hub:", "hf_hub:", "local-dir:"))
    if not from_hub and not timm.is_model(name):
        raise unknown_name(spec, name, timm.list_models(), "timm.list_models()")
    trained = pretrained and weights is None
    try:
        with asked() if trained or from_hub else nullcontext("") as away:
            model = timm.create_model(name, pretrained=trained)
    # the hub's clients raise many classes: no network, no such tag, no weights published
    except Exception as error:
        reason = f"({away or f'{type(error).__name__}: {error}'})"
        if weights is not None:
            raise SourceError(f"{spec}: it cannot be built {reason}; check the name") from error
        raise SourceError(
            f"{spec}: its pretrained weights cannot be had {reason}; give the weights as a file"
        ) from error
    if weights is not None:
        state = read_weights(weights, trust_pickle=trust_pickle)
        model = fit_classes(model, state, lambda classes: timm.create_model(name, num_classes=classes))
        load_weights(model, state, weights)
    config = timm.data.resolve_data_config({}, model=model)
    preprocessing = timm_preprocessing(config)
    example = torch.randn(2, *config["input_size"], generator=torch.Generator().manual_seed(0))
    return Source(name, model.eval(), preprocessing, (example,), spec)


def timm_preprocessing(config: dict[str, Any]) -> Preprocessing | None:
    """From timm's data config: `crop_pct` becomes the size to resize to (`timm.data.transforms_imagenet_eval`)."""
    channels, height, width = config["input_size"]
    if channels != 3:
        return None
    size = (height, width)
    scaled = (math.floor(height / config["crop_pct"]), math.floor(width / config["crop_pct"]))
    resize: int | tuple[int, int] | None = min(scaled)
    if config["crop_mode"] == "squash":
        resize = None if scaled == size else scaled
    elif config["crop_mode"] == "border":
        warnings.warn(
            "this model was evaluated on whole pictures with borders; brecq scales and crops them instead",
            stacklevel=2,
        )
    try:
        return Preprocessing(tuple(config["mean"]), tuple(config["std"]), size, resize, config["interpolation"])
    except ConfigError as error:
        warnings.warn(f"the model's preprocessing is not one that brecq knows, give your own: {error}", stacklevel=2)
        return None
