"""Image classifiers, networks for semantic segmentation, and detectors of Hugging Face transformers."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from brecq.data.preprocessing import Preprocessing
from brecq.errors import ConfigError, SourceError, first_line
from brecq.sources.source import Source, require
from brecq.sources.weights import fit_classes, load_weights, read_weights
from brecq.storage.hub import asked
from brecq.tasks import TaskName

_INTERPOLATION = {0: "nearest", 2: "bilinear", 3: "bicubic"}


class ImageClassifier(nn.Module):
    """A transformers image classifier, or one of every pixel, with plain tensors at both ends.

    Attributes:
        wrapped: what its tensors' names have in front of those of the transformers model.
    """

    wrapped = "model."

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Logits [N, classes], of pixels [N, classes, h, w], of pixel values [N, channels, H, W]."""
        logits: Tensor = self.model(pixel_values=pixel_values).logits
        return logits


class ObjectDetector(ImageClassifier):
    """A transformers detector whose queries are boxes (DETR and its kin, YOLOS), decoded, with plain tensors at both
    ends. Scores are those that its image processor gives: of a softmax where there is a class for "no object"."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        names: Mapping[int, str] = model.config.id2label
        self.count = len(names)
        self.classes = [number for number, name in sorted(names.items()) if name != "N/A"]

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Boxes [N, queries, 4] (x1, y1, x2, y2 in pixels of the input) and scores [N, queries, classes], numbers of
        categories that stand for nothing left out, of pixel values [N, channels, H, W]."""
        found = self.model(pixel_values=pixel_values)
        height, width = pixel_values.shape[-2:]
        x, y, w, h = (found.pred_boxes * found.pred_boxes.new_tensor([width, height, width, height])).unbind(-1)
        boxes = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1)
        empty = found.logits.shape[-1] > self.count
        scores = found.logits.softmax(-1) if empty else found.logits.sigmoid()
        return boxes, scores[..., self.classes] if len(self.classes) < self.count else scores[..., : self.count]


def load_huggingface(
    name: str, spec: str, weights: Path | None, trust_pickle: bool, pretrained: bool = True
) -> Source:
    transformers: Any = require("transformers", "hf", spec)
    away, task = "", None
    try:
        with nullcontext("") if os.path.isdir(name) else asked() as away:
            config = transformers.AutoConfig.from_pretrained(name)
            auto, wrap, task = _class_of(transformers, config)
            model = (
                auto.from_config(config) if weights is not None or not pretrained else _pretrained(auto, name, spec)
            )
            preprocessing = _read_preprocessing(transformers, name, square=task == "detection")
    except (OSError, ValueError) as error:
        # what transformers says is several lines long and ends in advice about its own options
        reason = away or first_line(error).rstrip(".")
        raise SourceError(
            f"{spec}: {reason}; give an image classifier, a network for semantic segmentation or a detector of the "
            "hub, or a folder that save_pretrained wrote; others come from a function of your own (file.py:callable)"
        ) from error
    if weights is not None:
        state = read_weights(weights, trust_pickle=trust_pickle)

        def build(classes: int) -> nn.Module:
            config.num_labels = classes
            built: nn.Module = auto.from_config(config)
            return built

        model = fit_classes(model, state, build)
        load_weights(model, state, weights)
    return Source(name.rstrip("/").rpartition("/")[2], wrap(model).eval(), preprocessing,
                  _example(config, preprocessing), spec, task=task)  # fmt: skip


def _class_of(transformers: Any, config: Any) -> tuple[Any, type[ImageClassifier], TaskName | None]:
    """What builds the network that a configuration was saved for, its wrapper, and its task if it is no classifier."""
    known, saved = transformers.models.auto.modeling_auto, set(config.architectures or ())
    if saved & set(known.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES.values()):
        return transformers.AutoModelForSemanticSegmentation, ImageClassifier, "segmentation"
    if saved & set(known.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES.values()):
        return transformers.AutoModelForObjectDetection, ObjectDetector, "detection"
    return transformers.AutoModelForImageClassification, ImageClassifier, None


def _pretrained(auto: Any, name: str, spec: str) -> nn.Module:
    model: nn.Module
    model, info = auto.from_pretrained(name, output_loading_info=True)
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise SourceError(
            f"{spec} has no trained weights for {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}; "
            "give a model that was trained for image classification, semantic segmentation or detection"
        )
    return model


def _read_preprocessing(transformers: Any, name: str, square: bool) -> Preprocessing | None:
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = first_line(error)
        warnings.warn(
            f"{name} comes without an image processor, give your own preprocessing: {reason}",
            stacklevel=2,
        )
        return None
    try:
        preprocessing = hf_preprocessing(processor.to_dict())
        check_agreement(processor, preprocessing, square)
    except (ConfigError, KeyError) as error:
        warnings.warn(f"{name}'s image processor is not one that brecq knows, give your own: {error}", stacklevel=2)
        return None
    return preprocessing


def hf_preprocessing(config: Mapping[str, Any]) -> Preprocessing:
    """From the settings of a transformers image processor.

    Raises:
        ConfigError, KeyError: the processor does something that `Preprocessing` cannot express.
    """
    size = dict(config.get("size") or {})
    crop = dict(config.get("crop_size") or {}) if config.get("do_center_crop") else {}
    resize: int | tuple[int, int] | None
    if "shortest_edge" in size and config.get("crop_pct") is not None:
        # ConvNeXT and its kin: crop below 384, warp the whole picture from there on (their processor's `resize`)
        side = int(size["shortest_edge"])
        final, resize = (side, side), int(side / config["crop_pct"]) if side < 384 else None
    elif "shortest_edge" in size:
        resize = int(size["shortest_edge"])
        final = (int(crop["height"]), int(crop["width"])) if crop else (resize, resize)
    else:
        scaled = (int(size["height"]), int(size["width"]))
        final = (int(crop["height"]), int(crop["width"])) if crop else scaled
        resize = None if final == scaled else scaled

    # normalized = (p·factor - offset - mean) / std with p in 0..255, in terms of p/255
    # (what a processor leaves out it does not do)
    factor = 255 * float(config["rescale_factor"]) if config.get("do_rescale") else 255.0
    mean, std = config.get("image_mean"), config.get("image_std")
    if not config.get("do_normalize") or mean is None or std is None:
        mean, std = (0.0,) * 3, (1.0,) * 3
    offset = 1.0 if config.get("rescale_offset") else 0.0
    # EfficientNet's processor divides by the deviation once more
    power = 2 if config.get("include_top") else 1
    return Preprocessing(
        tuple((m + offset) / factor for m in mean),
        tuple(s**power / factor for s in std),
        final,
        resize,
        _INTERPOLATION[int(config.get("resample", 2))],  # type: ignore[arg-type]
        "BGR" if config.get("do_flip_channel_order") else "RGB",
    )


def check_agreement(processor: Any, preprocessing: Preprocessing, square: bool = False) -> None:
    """Raise `ConfigError` unless both make the same of a test picture, up to resampling and rounding.

    Some processors do more than their settings say (LeViT's resizes by 256/224 before it crops). Those of detectors
    give pictures of any shape, ours fit all into one: they are compared on a `square` one.
    """
    y, x = np.mgrid[0:400, 0:400] if square else np.mgrid[0:300, 0:400]
    waves = [np.sin(x / 17 + phase) * np.cos(y / 23 - phase) for phase in (0.0, 1.0, 2.0)]
    picture = Image.fromarray((127.5 + 120 * np.stack(waves, -1)).astype(np.uint8))
    theirs = processor(picture, return_tensors="pt")["pixel_values"][0]
    ours = preprocessing(picture)
    if theirs.shape != ours.shape:
        raise ConfigError(f"it makes {list(theirs.shape)} of a picture, its settings say {list(ours.shape)}")
    error = float((theirs - ours).abs().mean() / ours.std())
    if not error < 0.02:
        raise ConfigError(f"what it makes of a picture differs by {error:.0%} from what its settings say")


def _example(config: Any, preprocessing: Preprocessing | None) -> tuple[Tensor, ...]:
    if preprocessing is not None:
        return (preprocessing.example(),)
    side = getattr(config, "image_size", None)
    if side is None:
        return ()
    height, width = (side, side) if isinstance(side, int) else side
    shape = (2, getattr(config, "num_channels", 3), height, width)
    return (torch.randn(shape, generator=torch.Generator().manual_seed(0)),)
