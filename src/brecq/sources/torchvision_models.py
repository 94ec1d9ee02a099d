"""Models of torchvision."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from brecq.data.preprocessing import Preprocessing
from brecq.data.windows import transform_of
from brecq.errors import SourceError
from brecq.sources.source import Source, require, unknown_name
from brecq.sources.weights import fit_classes, load_weights, read_weights

DETECTION_SIZE = 640
"""Side of a detector's example pictures: those of data stay at their own sizes."""


def load_torchvision(
    name: str, spec: str, weights: Path | None, trust_pickle: bool, pretrained: bool = True
) -> Source:
    require("torchvision", "vision", spec)
    import torchvision.models as zoo

    known = [model for model in zoo.list_models() if not model.startswith("quantized_")]
    if name not in known:
        if name.startswith("quantized_"):
            raise SourceError(f"{spec} is quantized already; take torchvision:{name.removeprefix('quantized_')}")
        raise unknown_name(spec, name, known, "torchvision.models.list_models()")
    published: Any = zoo.get_model_weights(name)
    preprocessing = torchvision_preprocessing(published.DEFAULT.transforms(), spec)

    # these two were published with inputs renormalized inside, as their preprocessing presumes
    extra: dict[str, Any] = {}
    if name in ("inception_v3", "googlenet"):
        extra = {"transform_input": True, "init_weights": False}
    if any(part in published.__module__ for part in (".detection", ".segmentation")):
        extra["weights_backbone"] = None

    if weights is None and not pretrained:
        model = zoo.get_model(name, weights=None, **extra)
    elif weights is None:
        try:
            model = zoo.get_model(name, weights=published.DEFAULT)
        # urllib's errors and a digest that does not match
        except (OSError, RuntimeError) as error:
            raise SourceError(
                f"{spec}: its pretrained weights cannot be had ({error}); give the weights as a file"
            ) from error
    else:
        assert weights is not None
        state = read_weights(weights, trust_pickle=trust_pickle)
        # files differ in whether they hold the auxiliary heads that only training uses
        if any(key.startswith("aux_classifier.") for key in state):
            extra["aux_loss"] = True
        if name in ("inception_v3", "googlenet"):
            extra["aux_logits"] = any(key.startswith(("AuxLogits.", "aux1.")) for key in state)
        model = zoo.get_model(name, weights=None, **extra)
        model = fit_classes(
            model, state, lambda classes: zoo.get_model(name, weights=None, num_classes=classes, **extra),
            len(published.DEFAULT.meta["categories"]),
        )  # fmt: skip
        load_weights(model, state, weights)
        if name in _WITHOUT_EPS:
            _settle_eps(model, state, weights, published.COCO_V1.url)
    source = Source(name, model.eval(), preprocessing, (preprocessing.example(),), spec)
    return as_detector(source) if ".detection" in published.__module__ else source


_WITHOUT_EPS = {
    "fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn", "retinanet_resnet50_fpn",
}  # fmt: skip
"""Detectors that torchvision gives batch norms with eps 0 where it loads their weights `COCO_V1`, and only then."""


def _settle_eps(model: nn.Module, state: Mapping[str, Tensor], file: Path, url: str) -> None:
    """Give the batch norms eps 0 where the file is the one at `url`; say so where it may descend from that.

    Weights do not tell their eps. What frozen batch norms save lacks the counters that others have: such a file was
    fine-tuned from `COCO_V1`, with eps 0, or trained from a backbone alone, with 1e-5.
    """
    digest = Path(url).stem.rpartition("-")[2]
    if file.stem == Path(url).stem or hashlib.sha256(file.read_bytes()).hexdigest().startswith(digest):
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 0.0
    elif not any(key.endswith("num_batches_tracked") for key in state):
        warnings.warn(
            f"the batch norms of {file.name} were frozen, and what eps they had it does not say: they get 1e-5, as "
            "torchvision gives them; if it was fine-tuned from COCO_V1 they had 0: then build it in a function that "
            "sets that, and give it as file.py:function",
            stacklevel=2,
        )


_PARTS = (
    "backbone", "head", "rpn.head", "roi_heads.box_head", "roi_heads.box_predictor", "roi_heads.mask_head",
    "roi_heads.mask_predictor", "roi_heads.keypoint_head", "roi_heads.keypoint_predictor",
)  # fmt: skip
"""Where torchvision's detectors have convolutions and linear layers; anchors, decoding, NMS and the pooling of regions
lie between them."""


def detector_parts(model: nn.Module) -> tuple[str, ...]:
    """The submodules that are quantized of a detector: backbone with its pyramid, and heads."""
    modules = dict(model.named_modules())
    return tuple(name for name in _PARTS if name in modules)


def as_detector(source: Source) -> Source:
    """The source of one of torchvision's detectors: quantized in parts, and given pictures at their own sizes."""
    preprocessing = source.preprocessing or _AS_THEY_ARE
    inputs = source.example_inputs or (preprocessing.example(),)
    return dataclasses.replace(
        source, preprocessing=preprocessing, example_inputs=inputs, submodules=detector_parts(source.model),
        task="detection",
    )  # fmt: skip


def is_detector(model: nn.Module) -> bool:
    """Whether a network is of one of torchvision's classes of detectors, which take lists of pictures."""
    transform = transform_of(model)
    return transform is not None and transform is getattr(model, "transform", None)


_AS_THEY_ARE = Preprocessing((0.0,), (1.0,), (DETECTION_SIZE, DETECTION_SIZE), None, fit="own")
"""Detectors normalize and resize inside, each picture by itself."""


def torchvision_preprocessing(transform: Any, spec: str) -> Preprocessing:
    """From the transforms that come with torchvision's weights."""
    kind = type(transform).__name__
    if kind == "ImageClassification":
        crop, resize = int(transform.crop_size[0]), int(transform.resize_size[0])
        return Preprocessing(
            tuple(transform.mean), tuple(transform.std), (crop, crop), resize, transform.interpolation.value
        )
    if kind == "SemanticSegmentation":
        # torchvision leaves the long side uncropped; one batch needs one size
        side = int(transform.resize_size[0])
        return Preprocessing(
            tuple(transform.mean), tuple(transform.std), (side, side), side, transform.interpolation.value
        )
    if kind == "ObjectDetection":
        return _AS_THEY_ARE
    raise SourceError(
        f"{spec} takes {'videos' if kind == 'VideoClassification' else 'several pictures'}; "
        "write a function that returns the model with an attribute example_inputs, and give it as file.py:name"
    )
