"""Boxes of objects: COCO's JSON, YOLO's text labels with or without their YAML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from brecq.data.annotated import Annotated, Split, folder_named, pictures_in
from brecq.data.coco import categories, coco, read_json
from brecq.data.images import UnreadableError
from brecq.data.objects import SLACK, no_box, target_of
from brecq.data.preprocessing import Preprocessing
from brecq.errors import DataError
from brecq.text import shown

COCO_IDS = tuple(i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
"""COCO's numbers of its 80 classes, which torchvision's detectors return."""

_YAML = (".yaml", ".yml")


def find_boxes(path: Path, split: Split) -> Annotated | None:
    """The pictures and boxes that `path` names: a COCO JSON file or a folder with one, a YOLO YAML file or a folder
    with `images` and `labels`; `None` for a folder without any of these.

    Raises:
        DataError: they are there, and cannot be read.
    """
    file = _described(path, split)
    if file is not None:
        return coco(file) if file.suffix.lower() == ".json" else _yolo_yaml(file, split)
    images = folder_named(path, ("images",)) if path.is_dir() else None
    if images is not None and folder_named(path, ("labels",)) is not None:
        return _yolo(path, pictures_in(images), None)
    return None


def class_names(path: Path, split: Split) -> dict[int, tuple[int, str]]:
    """The classes that a file of `find_boxes` lists, counted from 0: category and name of each; empty where none does.

    Raises:
        DataError: the file cannot be read.
    """
    file = _described(path, split)
    if file is None:
        return {}
    if file.suffix.lower() == ".json":
        return dict(enumerate(categories(file, read_json(file))))
    named = _names(file, _yaml(file)) or {}
    ids = _categories(len(named))
    return {place: (ids[place], name) for place, name in named.items()}


def _described(path: Path, split: Split) -> Path | None:
    """The COCO or YAML file that `path` is, or that lies in this folder."""
    if path.is_file() and path.suffix.lower() in (".json", *_YAML):
        return path
    if not path.is_dir():
        return None
    annotations = [
        *path.glob("annotations/instances_*.json"),
        *path.glob("*.coco.json"),
        *path.glob("instances*.json"),
    ]
    named = [file for file in annotations if split in file.name] if len(annotations) > 1 else annotations
    if annotations and len(named) != 1:
        listed = ", ".join(file.name for file in sorted(annotations))
        raise DataError(f"{path} holds several annotation files ({listed}); give the path of one")
    yamls = sorted(each for suffix in _YAML for each in path.glob(f"*{suffix}"))
    return named[0] if named else yamls[0] if len(yamls) == 1 else None


def _yaml(file: Path) -> dict[str, Any]:
    try:
        import yaml
    except ImportError as error:
        raise DataError(f"{file} needs the package pyyaml; pip install 'brecq[tasks]'") from error
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"cannot read {file}: {' '.join(str(error).split())}") from error
    return values if isinstance(values, dict) else {}


def _yolo_yaml(file: Path, split: Split) -> Annotated:
    values = _yaml(file)
    if values.get(split) is None:
        raise DataError(f"{file} has no entry {split!r}; a YOLO data file names path, train, val and names")
    base = Path(str(values.get("path", ".")))
    base = base if base.is_absolute() else file.parent / base
    entries = values[split] if isinstance(values[split], list) else [values[split]]
    paths: list[Path] = []
    for entry in entries:
        tried = [base / str(entry), file.parent / str(entry)]
        place = next((each for each in tried if each.exists()), None)
        if place is None:
            raise DataError(f"{file} names {entry} for {split}, and neither {tried[0]} nor {tried[1]} is there")
        paths += pictures_in(place) if place.is_dir() else _listed(place)
    names, count = _names(file, values), values.get("nc")
    if count is not None and (not isinstance(count, int) or count < 1):
        raise DataError(f"nc of {file} is {shown(count)}; give the number of classes")
    if count is None and names is not None:
        count = len(names)
    if names is not None and count != len(names):
        raise DataError(f"{file} has {len(names)} names and nc: {count}; give each class a name, and count them all")
    return _yolo(base, sorted(paths), count)


def _names(file: Path, values: Mapping[str, Any]) -> dict[int, str] | None:
    """The names of the classes, which count from 0; `None` where there are none.

    Raises:
        DataError: they are no list, and not numbered so.
    """
    names = values.get("names")
    if names is None:
        return None
    named = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(named, dict) or sorted(map(str, named)) != sorted(map(str, range(len(named)))):
        raise DataError(f"names of {file} is {shown(names)}; give a list, or number the names from 0 without gaps")
    return {int(place): str(name) for place, name in named.items()}


def _listed(file: Path) -> list[Path]:
    """The pictures that a text file lists, a path a line."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {file}, which is to list pictures, one a line: {error}") from error
    return [file.parent / line for line in lines if line]


def _yolo(root: Path, paths: Sequence[Path], classes: int | None) -> Annotated:
    if not paths:
        raise DataError(f"{root} holds no pictures; check the paths in the YAML file")
    labels = {path: _label_file(path) for path in paths}
    if not any(file.is_file() for file in labels.values()):
        raise DataError(f"there are no labels: no {labels[paths[0]]} for {paths[0]}, and none for the others")
    ids = _categories(classes)

    def target(path: Path, image: Image.Image, preprocessing: Preprocessing) -> dict[str, Any]:
        boxes, found = _read_yolo(labels[path], image.width, image.height)
        wrong = [label for label in found if not 0 <= label < len(ids)]
        if wrong:
            raise UnreadableError(f"{labels[path].name} holds class {wrong[0]}, and there are {len(ids)}")
        return target_of(boxes, found, [ids[label] for label in found], image, preprocessing)

    numbers = "COCO's category ids" if ids is COCO_IDS else "1 and up"
    return Annotated(root, paths, target, f"YOLO labels of {len(ids)} classes; as categories they are {numbers}")


def _categories(classes: int | None) -> tuple[int, ...]:
    """The dataset's numbers of so many classes: COCO's of 80, or where it is not known how many there are."""
    return COCO_IDS if classes in (None, len(COCO_IDS)) else tuple(range(1, (classes or 0) + 1))


def _label_file(picture: Path) -> Path:
    """YOLO's rule: the last folder named `images` becomes `labels`; otherwise the labels lie beside the picture."""
    parts = list(picture.parts)
    places = [place for place, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    return Path(*parts).with_suffix(".txt")


def _read_yolo(file: Path, width: int, height: int) -> tuple[list[list[float]], list[int]]:
    """Boxes in pixels, and classes: of lines `class cx cy w h` or `class x1 y1 x2 y2 …` (an outline), in shares of the
    picture's sides. Without a file there are none: a picture without objects."""
    if not file.is_file():
        return [], []
    boxes, labels, lines = [], [], []
    try:
        written = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UnreadableError(f"cannot read {file.name}: {error}") from error
    for number, text in enumerate(written, 1):
        if not text.strip():
            continue
        line = f"line {number} of {file.name} is {text.strip()[:60]!r}"
        try:
            label, *values = map(float, text.split())
            if label != label // 1 or len(values) < 4 or (len(values) > 5 and len(values) % 2):
                raise ValueError("class cx cy w h are expected")
            boxes.append(_from_shares(values, width, height))
        except ValueError as error:
            raise UnreadableError(f"{line}: {error}") from error
        labels.append(int(label))
        lines.append(line)
    if (wrong := no_box(torch.tensor(boxes).view(-1, 4), (height, width))) is not None:
        raise UnreadableError(f"{lines[wrong[0]]}: the box {wrong[1]}")
    return boxes, labels


def _from_shares(values: Sequence[float], width: int, height: int) -> list[float]:
    """x1, y1, x2, y2 in pixels of the values of a line.

    Raises:
        ValueError: they are no shares of the picture's sides.
    """
    outline = len(values) > 5
    shares = values if outline else values[:4]  # a fifth is a score
    if strange := [each for each in shares if not -SLACK <= each <= 1 + SLACK]:
        raise ValueError(
            f"{strange[0]:g} is no share of the picture's sides, from 0 to 1; divide pixels by its width and height"
        )
    if outline:
        xs, ys = shares[::2], shares[1::2]
        return [min(xs) * width, min(ys) * height, max(xs) * width, max(ys) * height]
    x, y, w, h = shares
    return [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height]
