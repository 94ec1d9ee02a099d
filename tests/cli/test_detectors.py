"""Torchvision's detectors from the command line: what they are given, and the AP that comes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import Result

import brecq

Invoke = Callable[..., Result]

NAMES = {"faster_rcnn": "fasterrcnn_mobilenet_v3_large_fpn", "ssd": "ssd300_vgg16"}
SIZES = [(60, 100), (90, 50), (70, 72), (48, 120)]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for index, size in enumerate(SIZES):
        coarse = np.random.default_rng(index).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(size[::-1]).save(tmp_path / f"{index}.png")
    return tmp_path


def original(folder: Path) -> list[Tensor]:
    files = sorted(folder.glob("*.png"))
    return [torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).float() / 255 for file in files]


def write_coco(folder: Path, model: nn.Module) -> tuple[Path, list[dict[str, Tensor]]]:
    """The best boxes of the float network, each a picture alone, moved by a little; and the same as targets."""
    targets: list[dict[str, Tensor]] = []
    annotations: list[dict[str, Any]] = []
    for index, picture in enumerate(original(folder)):
        with torch.no_grad():
            (found,) = model([picture])
        boxes, labels = found["boxes"][:8] + 0.5, found["labels"][:8]
        targets.append({"boxes": boxes, "labels": labels})
        for (x1, y1, x2, y2), label in zip(boxes.tolist(), labels.tolist(), strict=True):
            annotations.append({
                "id": len(annotations), "image_id": index, "category_id": label, "bbox": [x1, y1, x2 - x1, y2 - y1],
            })  # fmt: skip
    images = [{"id": i, "file_name": f"{i}.png", "height": h, "width": w} for i, (h, w) in enumerate(SIZES)]
    categories = [{"id": number, "name": f"class {number}"} for number in (1, 2)]
    file = folder / "coco.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return file, targets


@pytest.mark.parametrize("build", ["faster_rcnn", "ssd"])
def test_the_ap_is_that_of_the_original_pictures(
    detectors: ModuleType, invoke: Invoke, pictures: Path, monkeypatch: pytest.MonkeyPatch, build: str
) -> None:
    """As torchvision's own script gives it: each picture alone, at its own size."""
    pytest.importorskip("faster_coco_eval")
    model: nn.Module = getattr(detectors, build)()
    weights, out = pictures / "w.pth", pictures / "out"
    torch.save(model.state_dict(), weights)
    monkeypatch.setattr("torchvision.models.get_model", lambda *_, **__: getattr(detectors, build)())
    coco, targets = write_coco(pictures, model)
    spec = f"torchvision:{NAMES[build]}"
    result = invoke(
        "quantize", spec, "--weights", weights, "--calib", pictures, "--eval", coco, "--method", "rtn", "-w", 8,
        "-a", 8, "-o", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "each picture at its own size" in result.output
    assert "4 pictures of 4 sizes" in result.output
    result_of_parts = brecq.load(out)
    assert isinstance(result_of_parts, brecq.CompositeResult)
    quantized = result_of_parts.put_into(model)
    data = [([picture], [target]) for picture, target in zip(original(pictures), targets, strict=True)]
    expected = brecq.evaluate(quantized, data, metric="detection", reference=model)
    assert expected.reference_metrics["AP %"] > 30
    record = json.loads((out / "record.json").read_text())
    rows: dict[str, Any] = {row["name"]: row["metrics"] for row in record["rows"]}
    assert rows["float"]["AP %"] == pytest.approx(expected.reference_metrics["AP %"], abs=0.01)
    assert rows["rounding to nearest"]["AP %"] == pytest.approx(expected.metrics["AP %"], abs=0.01)
    again = invoke("evaluate", out, "--data", coco, "--json")
    assert again.exit_code == 0, again.output
    found = json.loads(again.stdout)
    assert found["samples"] == len(SIZES)
    assert found["metrics"] == pytest.approx(expected.metrics, abs=0.01)
    assert found["flips"] == pytest.approx(expected.flips)
    if build == "faster_rcnn":
        assert "of each, as the detector resizes it, the middle 64 × 64" in result.output
        files = ("export", out, "--format", "onnx", "-o", pictures / "files")
        assert invoke(*files).exit_code == 0
        verified = invoke("verify", out, pictures / "files" / "backbone.onnx", "--data", pictures, "--json")
        assert verified.exit_code == 0, verified.output
        assert json.loads(verified.stdout)["backbone"]["samples"] == len(SIZES)
    fitted = invoke("evaluate", out, "--data", coco, "--size", 64)
    assert "its AP is not that of pictures as they are" in fitted.output
