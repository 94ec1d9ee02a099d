"""Object detection: boxes with classes and scores, judged as COCO does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from brecq.data.objects import no_box, no_object, sticking_out
from brecq.errors import DataError
from brecq.metrics.base import Decode, Task, describe
from brecq.pairing import partners
from brecq.sources.source import require

Boxes = dict[str, Tensor]
"""Of one picture: `boxes` [M, 4] (x1, y1, x2, y2 in pixels), `scores` [M], `labels` [M]."""

_NAMES = {
    "map": "AP %", "map_50": "AP50 %", "map_75": "AP75 %",
    "map_small": "AP small %", "map_medium": "AP medium %", "map_large": "AP large %",
}  # fmt: skip


_OBJECT = ("area", "iscrowd", "labels")


class Detection(Task):
    """Average precision of COCO (pycocotools' numbers, by faster-coco-eval), in percent: AP over IoU 0.5 to 0.95,
    AP50, AP75, and by the size of the objects.

    Flips: of the boxes that either network gives a score of at least `sure`, those without a partner of the same class
    and IoU 0.5 in the other.

    Targets are a dictionary a picture: `boxes` [M, 4] (x1, y1, x2, y2), `labels` [M], whole numbers from 0, and if
    there are any `iscrowd` [M] (1 or 0) and `area` [M], finite and not negative (0: that of the box). With `placed`
    (scale x, scale y, left, top) in it, as brecq's data has it, its boxes are those of the picture before
    preprocessing, and what the network finds in its input is brought back there; `size` (height, width) clips it.
    Boxes without an area, or outside a picture of known size, are refused; they may stick out of it.

    Args:
        decode: from the network's output to a `Boxes` dictionary a picture, which are final; or to candidates: three
            tensors boxes [N, A, 4], scores [N, A], labels [N, A], two, boxes and scores [N, A, classes], or one
            [N, A, 6] (x1, y1, x2, y2, score, label), from which the best are taken by non-maximum suppression a class.
            `None` for networks that return one of these.
        score: the least, of that selection. overlap: the IoU above which the worse box goes. most: how many stay.
        labels: `index` if the network counts classes from 0, without gaps; `category` if it numbers them as the
            dataset does (torchvision's detectors: COCO's category ids). By default `index` where there is a `decode`,
            or a score for each class.
    """

    name = "detection"
    without = "hold no boxes"

    def __init__(
        self,
        decode: Decode | None = None,
        score: float = 0.05,
        overlap: float = 0.6,
        most: int = 100,
        labels: Literal["index", "category"] | None = None,
        sure: float = 0.3,
    ) -> None:
        super().__init__(decode)
        self.score, self.overlap, self.most, self.sure = score, overlap, most, sure
        self.labels = labels or (None if decode is None else "index")
        self._found: list[Boxes] = []
        self._targets: list[Boxes] = []
        self._beyond = self._sized = 0
        self._compared = self._expected = 0
        self._against_reference = False

    def boxes(self, outputs: Any) -> list[Boxes]:
        """What the network found, a dictionary a picture, in pixels of its input, best first.

        Raises:
            DataError: the outputs hold no boxes.
        """
        decoded = self.decoded(outputs)
        if isinstance(decoded, Tensor) and decoded.ndim == 3 and decoded.shape[-1] == 6:
            decoded = (decoded[..., :4], decoded[..., 4], decoded[..., 5].long())
        if isinstance(decoded, (tuple, list)) and decoded and all(isinstance(each, dict) for each in decoded):
            return [_checked(each) for each in decoded]
        if _by_class(decoded):
            pictures = zip(*decoded, strict=True)
            return [self._select(*_candidates(boxes, scores, self.score)) for boxes, scores in pictures]
        if isinstance(decoded, tuple) and len(decoded) == 3 and all(isinstance(each, Tensor) for each in decoded):
            boxes, scores, labels = decoded
            if boxes.ndim == 3 and boxes.shape[-1] == 4 and boxes.shape[:2] == scores.shape == labels.shape:
                return [self._select(*each) for each in zip(boxes, scores, labels, strict=True)]
        how = "decode(outputs) returned" if self.decode is not None else "the network returns"
        raise DataError(
            f"{how} {describe(decoded)}; detection needs a dictionary (boxes, scores, labels) a picture, or boxes "
            "[N, A, 4], scores [N, A] and labels [N, A]: give a function that makes them (decode=..., --decode)"
        )

    def _select(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Boxes:
        ops = require("torchvision.ops", "tasks", "detection")
        boxes, scores, labels = boxes.float().cpu(), scores.float().cpu(), labels.long().cpu()
        good = scores >= self.score
        boxes, scores, labels = boxes[good], scores[good], labels[good]
        kept = ops.batched_nms(boxes, scores, labels, self.overlap)[: self.most]
        return {"boxes": boxes[kept], "scores": scores[kept], "labels": labels[kept]}

    def update(self, outputs: Any, targets: Any, /) -> None:
        found, named = self.boxes(outputs), self.labels
        if named is None:
            named = "index" if _by_class(outputs) else "category"
        if len(found) != len(targets):
            raise DataError(f"there are boxes of {len(found)} pictures and targets of {len(targets)}")
        for boxes, target in zip(found, targets, strict=True):
            if not isinstance(target, dict) or not {"boxes", "labels"} <= target.keys():
                raise DataError(
                    f"a target is {describe(target)}; detection needs a dictionary with boxes [M, 4] and labels [M]: "
                    "give data with boxes (COCO's JSON, YOLO's labels)"
                )
            truth = self._truth(target, named)
            self._found.append(brought_back(boxes, target))
            self._targets.append(truth)

    def _truth(self, target: dict[str, Any], named: str) -> Boxes:
        """What is right of a picture, as the library takes it."""
        keys = [key for key in ("boxes", "iscrowd", "area") if key in target]
        truth: Boxes = {key: torch.as_tensor(target[key]).cpu() for key in keys}
        labels = target["categories"] if named == "category" and "categories" in target else target["labels"]
        truth["labels"] = torch.as_tensor(labels).cpu().long()
        boxes, whose = truth["boxes"].float(), f"of picture {len(self._targets)}"
        if boxes.numel() and (boxes.ndim != 2 or boxes.shape[1] != 4):
            raise DataError(f"the boxes {whose} have the shape {list(boxes.shape)}; give [M, 4]")
        truth["boxes"] = boxes = boxes.view(-1, 4)
        if uneven := [f"{len(value)} {key}" for key, value in truth.items() if len(value) != len(boxes)]:
            raise DataError(f"the target {whose} has {len(boxes)} boxes and {uneven[0]}; give one for each box")
        if wrong := no_object({key: torch.as_tensor(value).cpu() for key, value in target.items() if key in _OBJECT}):
            raise DataError(f"box {wrong[0]} {whose} {wrong[1]}")
        size = None if "size" not in target else (int(target["size"][0]), int(target["size"][1]))
        if (wrong := no_box(boxes, size)) is not None:
            row, why = wrong
            raise DataError(f"box {row} {whose}, {boxes[row].tolist()}, {why}; give x1, y1, x2, y2 in pixels")
        if size is not None:
            self._beyond += sticking_out(boxes, size)
            self._sized += len(boxes)
        return truth

    def compute(self) -> dict[str, float]:
        if not self._targets:
            return {}
        require("faster_coco_eval", "tasks", "detection")
        meter = require("torchmetrics.detection", "tasks", "detection").MeanAveragePrecision(
            backend="faster_coco_eval", max_detection_thresholds=[1, 10, max(self.most, 100)]
        )
        meter.warn_on_many_detections = False
        meter.update(self._found, self._targets)
        values = {name: float(value) for name, value in meter.compute().items() if name in _NAMES}
        return {_NAMES[name]: 100 * values[name] for name in _NAMES if values[name] >= 0}  # -1: no such objects

    def notes(self) -> list[str]:
        """Of a reference that is sure of nothing, and of boxes that stick out of their pictures, if those are more
        than one in ten: hardly any are right."""
        found = []
        if self._compared and not self._expected:
            what = "there is no AP against it, and flips" if self._against_reference else "flips"
            found.append(
                f"no box of the float network has a score of {self.sure:g} or more, from which on boxes are compared: "
                f"{what} say nothing of what it finds"
            )
        if 10 * self._beyond <= self._sized:
            return found
        return [
            *found,
            f"{self._beyond} of {self._sized} boxes of the targets stick out of their pictures; check that they are "
            "x, y, width, height (COCO), or cx, cy, w, h in shares of the sides (YOLO)",
        ]

    def counted(self, targets: Any) -> int:
        return sum(len(each["boxes"]) if isinstance(each, dict) and "boxes" in each else 1 for each in targets)

    def targets_of(self, outputs: Any) -> list[Boxes]:
        """Sure boxes; one without area is nothing that another network could find."""
        self._against_reference = True
        sure = []
        for found in self.boxes(outputs):
            boxes = found["boxes"]
            kept = (found["scores"] >= self.sure) & boxes.isfinite().all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)
            sure.append({key: found[key][kept] for key in ("boxes", "labels")})
        return sure

    def compare(self, outputs: Any, reference: Any, targets: Any = None) -> None:
        for each in zip(self.boxes(outputs), self.boxes(reference), strict=True):
            found, expected = (self._sure(boxes) for boxes in each)
            total = len(found[0]) + len(expected[0])
            self._compared += 1
            self._expected += len(expected[0])
            self._count(total - 2 * len(partners(found, expected)), total)

    def _sure(self, found: Boxes) -> tuple[Tensor, Tensor, Tensor]:
        kept = found["scores"] >= self.sure
        return found["boxes"][kept], found["scores"][kept], found["labels"][kept]


def brought_back(boxes: Boxes, target: dict[str, Any]) -> Boxes:
    """Boxes in the network's input as boxes in the picture before preprocessing."""
    placed: Sequence[float] | None = target.get("placed")
    if placed is None:
        return boxes
    scale_x, scale_y, left, top = placed
    moved = boxes["boxes"] - torch.tensor([left, top, left, top])
    moved = moved / torch.tensor([scale_x, scale_y, scale_x, scale_y])
    if "size" in target:
        height, width = target["size"]
        moved = moved.clamp(min=0).minimum(torch.tensor([width, height, width, height]).float())
    return {**boxes, "boxes": moved}


def _by_class(decoded: Any) -> bool:
    """True for boxes [N, A, 4] and a score of each for every class."""
    if not isinstance(decoded, (tuple, list)) or len(decoded) != 2 or not all(isinstance(v, Tensor) for v in decoded):
        return False
    boxes, scores = decoded
    return boxes.ndim == scores.ndim == 3 and boxes.shape[-1] == 4 and boxes.shape[:2] == scores.shape[:2]


def _candidates(boxes: Tensor, scores: Tensor, least: float) -> tuple[Tensor, Tensor, Tensor]:
    """Each box once for every class that gives it at least this score: boxes [M, 4], scores [M], labels [M]."""
    which, label = (scores >= least).nonzero(as_tuple=True)
    return boxes[which], scores[which, label], label


def _checked(found: dict[str, Any]) -> Boxes:
    if not {"boxes", "scores", "labels"} <= found.keys():
        raise DataError(f"a picture's boxes hold {', '.join(found)}; they need boxes, scores and labels")
    boxes = found["boxes"].float().cpu().view(-1, 4)
    return {"boxes": boxes, "scores": found["scores"].float().cpu(), "labels": found["labels"].long().cpu()}
