"""COCO's JSON: pictures, categories and the boxes in them, every number looked at."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from brecq.data.annotated import Annotated
from brecq.data.images import UnreadableError
from brecq.data.objects import no_box, no_object, target_of
from brecq.data.preprocessing import Preprocessing
from brecq.errors import DataError
from brecq.text import shown


@dataclass(frozen=True)
class _Box:
    """An annotation. `where` it is; `box`: x1, y1, x2, y2 in pixels."""

    where: str
    image: int
    category: int
    box: tuple[float, float, float, float]
    area: float
    iscrowd: int


def read_json(file: Path) -> Any:
    """What the file holds.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {file}: {error}") from error


def categories(file: Path, values: Any) -> list[tuple[int, str]]:
    """Number and name of the categories, in order.

    Raises:
        DataError: they are not there, have no numbers, or twice the same.
    """
    found = [(_whole(each, "id", where), str(each.get("name", each["id"]))) for where, each in
             _items(file, values, "categories")]  # fmt: skip
    _check_once(file, "categories", "id", [number for number, _ in found])
    return sorted(found)


def coco(file: Path) -> Annotated:
    """The pictures and boxes of a COCO annotation file.

    Raises:
        DataError: it is none; numbers that belong to nothing, or are there twice.
    """
    values = read_json(file)
    index = {number: place for place, (number, _) in enumerate(categories(file, values))}
    listed = [(_whole(each, "id", where), where, each) for where, each in _items(file, values, "images")]
    _check_once(file, "images", "id", [number for number, _, _ in listed])
    for _, where, each in listed:
        if not isinstance(each.get("file_name"), str):
            raise DataError(f"{where} has file_name {shown(each.get('file_name'))}; give the name of its picture")
    _check_once(file, "images", "file_name", [each["file_name"] for _, _, each in listed])
    images = {number: each for number, _, each in listed}
    every = [_box(where, each) for where, each in _items(file, values, "annotations")]
    if every and all(abs(value) <= 1 for box in every for value in box.box):
        raise DataError(
            f"{file} has no box beyond the first pixel of its picture: bbox is x, y, width, height in pixels; "
            "multiply shares of the sides by width and height"
        )
    for box in every:
        if box.category not in index:
            raise DataError(f"{box.where} is of the category {box.category}, which its categories do not list")
    strangers = [box for box in every if box.image not in images]
    if strangers and len(strangers) == len(every):
        raise DataError(
            f"{strangers[0].where} is of the image {strangers[0].image}, which its images do not list, and so are all "
            "others of none; check that images and annotations belong together"
        )
    found: dict[int, list[_Box]] = {}
    for box in every:
        found.setdefault(box.image, []).append(box)
    root = _folder_of(file, [each["file_name"] for each in images.values()])
    by_path = {root / each["file_name"]: (each, found.get(number, [])) for number, each in images.items()}
    present = sorted(path for path in by_path if path.is_file())

    def target(path: Path, image: Image.Image, preprocessing: Preprocessing) -> dict[str, Any]:
        described, boxes = by_path[path]
        _check_size(file, described, image)
        numbers = [each.category for each in boxes]
        target = target_of(
            [each.box for each in boxes], [index[each] for each in numbers], numbers, image, preprocessing,
            area=torch.tensor([each.area for each in boxes]),
            iscrowd=torch.tensor([each.iscrowd for each in boxes], dtype=torch.int64),
        )  # fmt: skip
        if (wrong := no_box(target["boxes"], target["size"])) is not None:
            row, why = wrong
            x1, y1, x2, y2 = boxes[row].box
            raise UnreadableError(f"the box [{x1:g}, {y1:g}, {x2 - x1:g}, {y2 - y1:g}] in {file.name} {why}")
        if (wrong := no_object(target)) is not None:
            raise UnreadableError(f"{boxes[wrong[0]].where} {wrong[1]}")
        return target

    told = [f"boxes of {file}"]
    if missing := sorted(str(each["file_name"]) for path, (each, _) in by_path.items() if not path.is_file()):
        named = ", ".join([*missing[:3], *(["..."] if len(missing) > 3 else [])])
        told.append(f"{len(missing)} picture{'' if len(missing) == 1 else 's'} missing in {root} ({named})")
    if strangers:
        told.append(f"{len(strangers)} of images that it does not list left out, such as {strangers[0].image}")
    return Annotated(root, present, target, ", ".join(told))


def _items(file: Path, values: Any, key: str) -> list[tuple[str, Mapping[str, Any]]]:
    """The entries of a list, each with the words for where it is."""
    found = values.get(key) if isinstance(values, dict) else None
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise DataError(
            f"{file} is no COCO annotation file: it needs lists of images, annotations with bbox and category_id, and "
            f"categories, and {key} is {'not there' if found is None else 'none'}"
        )
    singular = {"images": "image", "annotations": "annotation", "categories": "category"}[key]
    return [(f"{singular} {each.get('id', f'number {place}')} of {file.name}", each) for place, each in
            enumerate(found)]  # fmt: skip


def _whole(item: Mapping[str, Any], key: str, where: str, default: int | None = None) -> int:
    value = item.get(key, default)
    try:
        number = float(value)
        if number == number // 1:
            return int(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise DataError(f"{where} has {key} {shown(value)}; give a whole number")


def _box(where: str, item: Mapping[str, Any]) -> _Box:
    try:
        x, y, width, height = map(float, item["bbox"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{where} has the bbox {shown(item.get('bbox'))}; give x, y, width, height in pixels"
        ) from error
    area = item.get("area", width * height)
    try:
        area = float(area)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where} has area {shown(area)}; give a number of pixels, or leave it out") from error
    whole = {key: _whole(item, key, where, default) for key, default in
             (("image_id", None), ("category_id", None), ("iscrowd", 0))}  # fmt: skip
    box = (x, y, x + width, y + height)
    return _Box(where, whole["image_id"], whole["category_id"], box, area, whole["iscrowd"])


def _check_once(file: Path, what: str, key: str, values: Sequence[Any]) -> None:
    """Raise `DataError` for a value that is there twice: one of the two would be lost."""
    again = next((value for value, count in Counter(values).items() if count > 1), None)
    if again is not None:
        raise DataError(f"{file} has several {what} of the {key} {again}; give each its own")


def _check_size(file: Path, listed: Mapping[str, Any], image: Image.Image) -> None:
    """Boxes are for a picture of the size that is written beside it, where one is."""
    written = (listed.get("width"), listed.get("height"))
    if all(isinstance(side, (int, float)) and side > 0 for side in written) and written != image.size:
        raise UnreadableError(
            f"it is {image.size[0]}x{image.size[1]} pixels (upright), and {file.name} has boxes for one of "
            f"{written[0]}x{written[1]}"
        )


def _folder_of(file: Path, names: Sequence[str]) -> Path:
    """The folder that the pictures of a COCO file are in."""
    stem = file.stem.removeprefix("instances_")
    bases = (file.parent, file.parent.parent)
    places = [base / part for base in bases for part in (stem, f"images/{stem}", "images", "")]
    for place in places:
        if any((place / name).is_file() for name in names[:100]):
            return place
    looked = ", ".join(str(place) for place in places[:4])
    raise DataError(f"{file} names pictures such as {(names or ['(none)'])[0]}, which are not in {looked} or above")
