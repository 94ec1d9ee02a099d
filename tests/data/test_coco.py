"""COCO's JSON with numbers that cannot be right, and YOLO's files likewise: each is refused by its name."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from brecq.data import Dataset, Form, Preprocessing, load_data
from brecq.errors import DataError

PLAIN = Preprocessing((0.0,), (1.0,), (32, 32), None, fit="letterbox")
Values = dict[str, list[dict[str, Any]]]


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((20, 40, 3), np.uint8)).save(path)


def read(root: Path, change: Callable[[Values], object] = lambda _: None) -> Dataset:
    """Two pictures of 40 × 20 pixels, with a box each, after a change of what the file says."""
    values: Values = {
        "images": [{"id": 7, "file_name": "a.png"}, {"id": 8, "file_name": "b.png"}],
        "categories": [{"id": 3, "name": "a"}, {"id": 90, "name": "b"}],
        "annotations": [
            {"id": 70, "image_id": 7, "bbox": [10, 0, 20, 20], "category_id": 90, "area": 123.0, "iscrowd": 1},
            {"id": 80, "image_id": 8, "bbox": [0, 0, 5, 5], "category_id": 3},
        ],
    }
    change(values)
    for name in ("a.png", "b.png"):
        picture(root / "val" / name)
    file = root / "instances_val.json"
    file.write_text(json.dumps(values))
    return load_data(file, PLAIN, None, 0, form=Form("detection"), max_skipped=0)


def first(**values: Any) -> Callable[[Values], object]:
    return lambda found: found["annotations"][0].update(values)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (first(area=math.nan), "annotation 70 of F has area nan, no number of pixels"),
        (first(area=math.inf), "annotation 70 of F has area inf"),
        (first(area=-4.0), "annotation 70 of F has area -4, no number of pixels; without one it is"),
        (first(area="wide"), "annotation 70 of F has area 'wide'; give a number of pixels"),
        (first(iscrowd=2), "annotation 70 of F has iscrowd 2, which is 1 for a crowd, and otherwise 0"),
        (first(iscrowd=0.5), "annotation 70 of F has iscrowd 0.5; give a whole number"),
        (first(iscrowd=None), "annotation 70 of F has iscrowd None; give a whole number"),
        (first(category_id=4), "annotation 70 of F is of the category 4, which its categories do not"),
        (first(category_id=90.5), "has category_id 90.5; give a whole number"),
        (first(category_id="cat"), "has category_id 'cat'; give a whole number"),
        (first(image_id=math.nan), "has image_id nan; give a whole number"),
        (first(bbox=[1, 2, 3]), r"annotation 70 of F has the bbox \[1, 2, 3\]; give x, y, width, height"),
        (first(bbox=[]), r"annotation 70 of F has the bbox \[\]; give x, y, width, height in pixels"),
        (lambda v: [each.update(image_id=5) for each in v["annotations"]],
         "annotation 70 of F is of the image 5, which its images do not list, and so are all others"),
        (lambda v: v["images"][1].update(id=7), "has several images of the id 7; give each its own"),
        (lambda v: v["images"][1].update(file_name="a.png"), "has several images of the file_name a.png"),
        (lambda v: v["images"][1].pop("file_name"), "image 8 of F has file_name None; give the name"),
        (lambda v: v["categories"][1].update(id=3), "has several categories of the id 3"),
        (lambda v: v["categories"][1].pop("id"), "category number 1 of F has id None; give a whole num"),
        (lambda v: v.pop("annotations"), "is no COCO annotation file: .*, and annotations is not there"),
        (lambda v: v["images"][0].update(width=400, height=200),
         "a.png: it is 40x20 pixels .upright., and instances_val.json has boxes for one of 400x200"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_named(tmp_path: Path, change: Callable[[Values], object], why: str) -> None:
    with pytest.raises(DataError, match=why.replace(" F ", " instances_val.json ")):
        read(tmp_path, change)


def test_what_can_be(tmp_path: Path) -> None:
    data = read(tmp_path, lambda v: v["images"][0].update(width=40, height=20))
    first, second = data.targets  # type: ignore[misc]
    assert (first["area"].tolist(), first["iscrowd"].tolist(), first["labels"].tolist()) == ([123.0], [1], [1])
    assert (second["area"].tolist(), second["iscrowd"].tolist(), second["categories"].tolist()) == ([25.0], [0], [3])
    read(tmp_path, lambda v: v["images"][0].update(width=0, height=None))  # sizes that say nothing


def test_boxes_of_pictures_that_are_not_listed_are_told_of(tmp_path: Path) -> None:
    data = read(tmp_path, lambda v: v["annotations"][1].update(image_id=5))
    assert data.origin.endswith("instances_val.json, 1 of images that it does not list left out, such as 5")
    assert [len(each["boxes"]) for each in data.targets] == [1, 0]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("yaml", "why"),
    [
        ("val: images\nnames: [a, b]\nnc: 3\n", "data.yaml has 2 names and nc: 3; give each class a name"),
        ("val: images\nnames: cat\n", "names of .*data.yaml is 'cat'; give a list"),
        ("val: images\nnames: {1: a, 2: b}\n", "names of .*data.yaml is .*; give a list, or number the names from 0"),
        ("val: images\nnc: few\n", "nc of .*data.yaml is 'few'; give the number of classes"),
        ("val: images\nnc: 1\n", "a.txt holds class 1, and there are 1"),
    ],
)
def test_classes_of_yolo_that_cannot_be(tmp_path: Path, yaml: str, why: str) -> None:
    picture(tmp_path / "images" / "a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("1 0.5 0.5 0.5 0.5\n")
    (tmp_path / "data.yaml").write_text(yaml)
    with pytest.raises(DataError, match=why):
        load_data(tmp_path / "data.yaml", PLAIN, None, 0, form=Form("detection"))


def test_labels_that_are_no_text_are_named(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_bytes(b"\xff\xfe1 0.5")
    with pytest.raises(DataError, match=r"cannot read a\.txt: 'utf-8' codec"):
        load_data(tmp_path, PLAIN, None, 0, form=Form("detection"))
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "data.yaml").write_text("val: list.txt\n")
    with pytest.raises(DataError, match=r"cannot read .*list\.txt, which is to list pictures"):
        load_data(tmp_path / "data.yaml", PLAIN, None, 0, form=Form("detection"))
