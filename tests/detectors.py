"""Small detectors of torchvision's classes. Loaded by the fixture `detectors`, which skips without torchvision."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.ops import MultiScaleRoIAlign


class Pyramid(nn.Module):
    """A backbone with two levels of features."""

    out_channels = 8

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.down1 = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.down2 = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
        self.lateral1, self.lateral2 = nn.Conv2d(8, 8, 1), nn.Conv2d(16, 8, 1)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        fine = self.down1(self.stem(x))
        coarse = self.lateral2(self.down2(fine))
        fine = self.lateral1(fine) + F.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
        return OrderedDict([("0", fine), ("1", coarse)])


def _anchors() -> AnchorGenerator:
    return AnchorGenerator(((8,), (16,)), ((1.0,),) * 2)


def retinanet() -> nn.Module:
    torch.manual_seed(0)
    backbone: Any = Pyramid()
    head = detection.retinanet.RetinaNetHead(8, 1, 3)
    for layer in (head.classification_head.cls_logits, head.regression_head.bbox_reg):
        nn.init.normal_(layer.weight, std=0.3)
    return detection.RetinaNet(
        backbone, 3, min_size=64, max_size=96, anchor_generator=_anchors(), head=head, score_thresh=0.0
    ).eval()


def faster_rcnn() -> nn.Module:
    torch.manual_seed(0)
    backbone: Any = Pyramid()
    return detection.FasterRCNN(
        backbone, min_size=64, max_size=96, rpn_anchor_generator=_anchors(), box_score_thresh=0.0,
        box_roi_pool=MultiScaleRoIAlign(["0", "1"], 3, 2), box_head=detection.faster_rcnn.TwoMLPHead(72, 16),
        box_predictor=detection.faster_rcnn.FastRCNNPredictor(16, 3), rpn_pre_nms_top_n_test=50,
        rpn_post_nms_top_n_test=20,
    ).eval()  # fmt: skip


def ssd() -> nn.Module:
    torch.manual_seed(0)
    backbone: Any = Pyramid()
    boxes = DefaultBoxGenerator([[2], [2]], scales=[0.2, 0.4, 0.6])
    head = detection.ssd.SSDHead([8, 8], boxes.num_anchors_per_location(), 3)
    return detection.ssd.SSD(backbone, boxes, (64, 64), 3, head=head, score_thresh=0.0, detections_per_img=20).eval()


def mask_and_keypoint_rcnn() -> nn.Module:
    """Both heads in one, as no detector of torchvision has them by name."""
    model: Any = faster_rcnn()
    heads, pool = model.roi_heads, MultiScaleRoIAlign(["0", "1"], 4, 2)
    heads.mask_roi_pool = heads.keypoint_roi_pool = pool
    heads.mask_head = detection.mask_rcnn.MaskRCNNHeads(8, (8, 8), 1)
    heads.mask_predictor = detection.mask_rcnn.MaskRCNNPredictor(8, 8, 3)
    heads.keypoint_head = detection.keypoint_rcnn.KeypointRCNNHeads(8, (8, 8))
    heads.keypoint_predictor = detection.keypoint_rcnn.KeypointRCNNPredictor(8, 2)
    return model.eval()  # type: ignore[no-any-return]


def pictures(count: int = 4) -> list[list[Tensor]]:
    """Batches of two pictures of unequal sizes."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(60, 70), (70, 64)] * count
    every = [torch.rand(3, *size, generator=generator) for size in sizes[:count]]
    return [every[i : i + 2] for i in range(0, count, 2)]
