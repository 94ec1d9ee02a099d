"""Data of tasks as it lies on disk: boxes, masks, pairs, text; and where pictures are placed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from brecq.data import Form, Preprocessing, iter_data, load_data
from brecq.data.boxes import class_names
from brecq.errors import ConfigError, DataError

PLAIN = Preprocessing((0.0,), (1.0,), (32, 32), None)
LETTERBOX = PLAIN.replace(fit="letterbox")
SIZE = (40, 20)  # width, height


def picture(path: Path, size: tuple[int, int] = SIZE, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def yolo(root: Path) -> Path:
    for index, split in enumerate(("train", "val")):
        picture(root / split / "images" / "a.png", seed=index)
        picture(root / split / "images" / "b.png", seed=index + 2)  # no objects, and so no file
        (root / split / "labels").mkdir()
        (root / split / "labels" / "a.txt").write_text("1 0.5 0.5 0.5 1.0\n0 0.25 0.25 0.75 0.25 0.75 0.5\n")
    (root / "data.yaml").write_text("path: .\ntrain: train/images\nval: val/images\nnames: [cat, dog]\n")
    return root


def coco(root: Path) -> Path:
    picture(root / "val2017" / "7.png")
    (root / "annotations").mkdir()
    values = {
        "images": [{"id": 7, "file_name": "7.png"}, {"id": 8, "file_name": "missing.png"}],
        "categories": [{"id": 90, "name": "b"}, {"id": 3, "name": "a"}],
        "annotations": [
            {"image_id": 7, "bbox": [10, 0, 20, 20], "category_id": 90, "area": 123.0, "iscrowd": 1},
        ],
    }
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(values))
    return root


@pytest.mark.parametrize("what", ["folder", "yaml", "split"])
def test_yolo_labels(tmp_path: Path, what: str) -> None:
    root = yolo(tmp_path)
    path = {"folder": root, "yaml": root / "data.yaml", "split": root / "val"}[what]
    data = load_data(path, LETTERBOX, None, 0, form=Form("detection"))
    assert [Path(name).name for name in data.names] == ["a.png", "b.png"]
    first, second = data.targets  # type: ignore[misc]
    # of class cx cy w h, and of an outline its box; in pixels of the picture
    assert first["boxes"].tolist() == [[10.0, 0.0, 30.0, 20.0], [10.0, 5.0, 30.0, 10.0]]
    assert first["labels"].tolist() == [1, 0]
    assert first["categories"].tolist() == [2, 1]
    assert second["boxes"].shape == (0, 4)
    # 40 × 20 pixels fit into 32 × 32 at 0.8, 8 rows of gray above
    assert first["placed"] == pytest.approx((0.8, 0.8, 0, 8))
    assert first["size"] == (20, 40)
    assert torch.equal(data.inputs[0][0, :, 0], torch.full((3, 32), 114 / 255))


def test_a_yaml_names_what_to_calibrate_on(tmp_path: Path) -> None:
    root = yolo(tmp_path)
    train, val = (
        load_data(root / "data.yaml", LETTERBOX, None, 0, form=Form("detection", split)) for split in ("train", "val")
    )
    assert not torch.equal(train.inputs[0], val.inputs[0])


def test_what_classes_are_called(tmp_path: Path) -> None:
    root = yolo(tmp_path / "yolo")
    named = {0: (1, "cat"), 1: (2, "dog")}
    assert class_names(root, "val") == class_names(root / "data.yaml", "val") == named
    (root / "data.yaml").write_text("val: val/images\nnames: {1: dog, 0: cat}\n")
    assert class_names(root, "val") == named
    assert class_names(root / "val", "val") == {}
    assert class_names(coco(tmp_path / "coco"), "val") == {0: (3, "a"), 1: (90, "b")}


def test_coco_json(tmp_path: Path) -> None:
    root = coco(tmp_path)
    for path in (root, root / "annotations" / "instances_val2017.json"):
        data = load_data(path, LETTERBOX, None, 0, form=Form("detection"))
        (target,) = data.targets  # type: ignore[misc]
        assert target["boxes"].tolist() == [[10.0, 0.0, 30.0, 20.0]]
        assert (target["labels"].tolist(), target["categories"].tolist()) == ([1], [90])
        assert (target["area"].tolist(), target["iscrowd"].tolist()) == ([123.0], [1])
        assert "1 picture missing in " in data.origin
        assert data.origin.endswith("(missing.png)")


def test_wrong_boxes(tmp_path: Path) -> None:
    root = yolo(tmp_path)
    (root / "val" / "labels" / "a.txt").write_text("1 0.5\n")
    with pytest.raises(DataError, match=r"line 1 of a\.txt is '1 0\.5'"):
        load_data(root / "data.yaml", PLAIN, None, 0, form=Form("detection"), max_skipped=0)
    (root / "val" / "labels" / "a.txt").write_text("2 0.5 0.5 0.1 0.1\n")
    with pytest.raises(DataError, match=r"a\.txt holds class 2, and there are 2"):
        load_data(root / "data.yaml", PLAIN, None, 0, form=Form("detection"), max_skipped=0)
    (root / "data.yaml").write_text("val: val/images\n")
    with pytest.raises(DataError, match="no entry 'train'"):
        load_data(root / "data.yaml", PLAIN, None, 0, form=Form("detection", "train"))


def label_yolo(root: Path, line: str) -> torch.Tensor:
    """The boxes of a picture of 40 × 20 pixels with this label."""
    (root / "val" / "labels" / "a.txt").write_text(f"0 0.5 0.5 0.5 0.5\n{line}\n")
    data = load_data(root / "val", PLAIN, None, 0, form=Form("detection"), max_skipped=0)
    return data.targets[0]["boxes"][1]  # type: ignore[index]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("1 nan 0.5 0.1 0.1", "nan is no share of the picture's sides, from 0 to 1"),
        ("1 0.5 0.5 inf 0.1", "inf is no share"),
        ("nan 0.5 0.5 0.1 0.1", "class cx cy w h are expected"),
        ("inf 0.5 0.5 0.1 0.1", "class cx cy w h are expected"),
        ("1 50 50 20 20", "50 is no share of the picture's sides, from 0 to 1; divide pixels by its width and height"),
        ("1 0 0 20 0 20 10", "20 is no share"),
        ("1 0.5 -0.2 0.1 0.1", r"-0\.2 is no share"),
        ("1 0.5 0.5 0 0.1", "the box has no area"),
        ("1 0.5 0.5 0.1 -0.005", "the box has no area"),
        ("1 0.1 0.1 0.5 0.1 0.9 0.1", "the box has no area"),
        ("1 1.005 0.5 0.004 0.1", "the box is wholly outside its picture of 40x20 pixels"),
    ],
)
def test_boxes_of_yolo_that_cannot_be(tmp_path: Path, line: str, why: str) -> None:
    with pytest.raises(DataError, match=f"line 2 of a\\.txt is '{line}': {why}"):
        label_yolo(yolo(tmp_path), line)


@pytest.mark.parametrize(
    ("line", "box"),
    [
        ("1 0.5 0.5 1.0000003 1.0000003", [0, 0, 40, 20]),
        ("1 0.0 0.5 0.5 0.5", [-10, 5, 10, 15]),  # sticks out
        ("1 0.5 0.5 0.5 0.5 0.9", [10, 5, 30, 15]),  # with a score
    ],
)
def test_boxes_of_yolo_that_can_be(tmp_path: Path, line: str, box: list[float]) -> None:
    assert label_yolo(yolo(tmp_path), line).tolist() == pytest.approx(box, abs=1e-4)


@pytest.mark.parametrize(
    ("box", "why"),
    [
        ([1, 2, math.nan, 20], r"the box \[1, 2, nan, 20\] in instances_val2017\.json is not finite"),
        ([1, 2, 0, 20], r"the box \[1, 2, 0, 20\] in instances_val2017\.json has no area"),
        ([1, 2, 10, -3], "has no area"),
        ([50, 2, 10, 3], "is wholly outside its picture of 40x20 pixels"),
        (
            [0.1, 0.2, 0.5, 0.3],
            "has no box beyond the first pixel .* multiply shares of the sides by width and height",
        ),
    ],
)
def test_boxes_of_coco_that_cannot_be(tmp_path: Path, box: list[float], why: str) -> None:
    file = coco(tmp_path) / "annotations" / "instances_val2017.json"
    values = json.loads(file.read_text())
    values["annotations"][0]["bbox"] = box
    file.write_text(json.dumps(values))
    with pytest.raises(DataError, match=why):
        load_data(file, LETTERBOX, None, 0, form=Form("detection"))


def test_pictures_without_boxes_are_read_for_calibration(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    data = load_data(tmp_path, LETTERBOX, None, 0, form=Form("detection", "train"))
    assert data.targets is None
    assert len(data) == 1


@pytest.mark.parametrize("voc", [True, False])
def test_masks(tmp_path: Path, voc: bool) -> None:
    folders = ("JPEGImages", "SegmentationClass") if voc else ("images", "masks")
    picture(tmp_path / folders[0] / ("a.jpg" if voc else "a.png"))
    indices = np.zeros((20, 40), dtype=np.uint8)
    indices[:, 20:] = 5
    mask = Image.fromarray(indices)
    if voc:
        mask.putpalette([255, 0, 0] * 256)  # colors mean nothing
        picture(tmp_path / folders[0] / "unlisted.jpg")
        (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True)
        (tmp_path / "ImageSets" / "Segmentation" / "val.txt").write_text("a\n")
    (tmp_path / folders[1]).mkdir()
    mask.save(tmp_path / folders[1] / "a.png")
    data = load_data(tmp_path, PLAIN.replace(fit="corner"), None, 0, form=Form("segmentation"))
    expected = torch.full((32, 32), 255, dtype=torch.uint8)
    expected[:16, :16], expected[:16, 16:] = 0, 5  # scaled by 0.8 to 32 × 16
    assert len(data) == 1
    assert torch.equal(data.targets[0], expected)  # type: ignore[index]


@pytest.mark.parametrize("name", ["y", "labels", "targets"])
def test_targets_of_an_archive_by_their_name(tmp_path: Path, name: str) -> None:
    values = {"x": np.zeros((3, 4), np.float32), name: np.ones((3, 2), np.float32)}
    np.savez(tmp_path / "pairs.npz", **values)  # type: ignore[arg-type]
    data = load_data(tmp_path / "pairs.npz", None, None, 0)
    assert torch.equal(data.targets, torch.ones(3, 2))  # type: ignore[arg-type]


def test_masks_and_pairs_are_no_classes(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        picture(tmp_path / "seg" / folder / "a.png")
    for form in (Form(), Form("detection")):
        with pytest.raises(DataError, match=r"\(images, masks\): give --task segmentation .* alone: .*images"):
            load_data(tmp_path / "seg", PLAIN, None, 0, form=form)
    assert len(load_data(tmp_path / "seg" / "images", PLAIN, None, 0)) == 1
    asked_for = load_data(tmp_path / "seg", PLAIN, None, 0, form=Form("classification"))
    assert asked_for.labels is not None
    for folder in ("noisy", "clean"):
        picture(tmp_path / "pairs" / folder / "a.png")
    with pytest.warns(UserWarning, match="two classes; if they are pairs of noisy and clean, give --task restoration"):
        load_data(tmp_path / "pairs", PLAIN, None, 0)


def test_classes_of_a_mask_are_never_mixed(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    indices = np.random.default_rng(0).choice(np.array([0, 4, 255], dtype=np.uint8), (20, 40))
    (tmp_path / "masks").mkdir()
    Image.fromarray(indices).save(tmp_path / "masks" / "a.png")
    for fit in ("corner", "crop", "letterbox"):
        data = load_data(tmp_path, PLAIN.replace(fit=fit), None, 0, form=Form("segmentation"))
        assert set(np.unique(data.targets[0])) == {0, 4, 255}  # type: ignore[index]


def test_a_picture_without_its_mask(tmp_path: Path) -> None:
    for name in ("images/a.png", "images/b.png"):
        picture(tmp_path / name)
    (tmp_path / "masks").mkdir()
    Image.new("L", SIZE).save(tmp_path / "masks" / "a.png")
    with pytest.raises(DataError, match=r"1 pictures in .*images have no mask in .*masks, such as b\.png"):
        load_data(tmp_path, PLAIN, None, 0, form=Form("segmentation"))


@pytest.mark.parametrize(
    ("folders", "task", "told"),
    [
        (("images", "masks"), "segmentation", r"images/b\.png: masks/b\.png: cannot identify image file"),
        (("input", "target"), "restoration", r"input/b\.png: its target target/b\.png: not an image"),
    ],
)
def test_a_damaged_answer_is_named_itself(tmp_path: Path, folders: tuple[str, str], task: str, told: str) -> None:
    for name in ("a.png", "b.png"):
        picture(tmp_path / folders[0] / name)
        (tmp_path / folders[1]).mkdir(exist_ok=True)
        Image.fromarray(np.zeros(SIZE[::-1], np.uint8)).save(tmp_path / folders[1] / name)
    (tmp_path / folders[1] / "b.png").write_text("broken")
    with pytest.warns(UserWarning, match=f"1 file cannot be read and is left out: {told}"):
        assert len(load_data(tmp_path, PLAIN, None, 0, form=Form(task))) == 1


def test_pairs_of_pictures(tmp_path: Path) -> None:
    picture(tmp_path / "lr" / "a.png", (20, 20))
    picture(tmp_path / "hr" / "a.png", (40, 40))
    original = PLAIN.replace(fit="original", fill=(0.0,))
    data = load_data(tmp_path, original, None, 0, form=Form("restoration"))
    (target,) = data.targets  # type: ignore[misc]
    assert (data.inputs[0].shape, target.shape) == ((1, 3, 32, 32), (3, 64, 64))
    pixels = np.asarray(Image.open(tmp_path / "hr" / "a.png"), dtype=np.float32) / 255
    assert torch.equal(target[:, :40, :40], torch.from_numpy(pixels).permute(2, 0, 1))
    assert target[:, 40:].abs().max() == 0


def test_whatever_targets_are_there(tmp_path: Path) -> None:
    """For a metric of one's own, which names no task."""
    for name in ("noisy/a.png", "clean/a.png"):
        picture(tmp_path / "pairs" / name)
    for name in ("images/a.png", "labels/a.png"):  # masks, not YOLO's labels
        picture(tmp_path / "masks" / name)
    Image.new("L", SIZE).save(tmp_path / "masks" / "labels" / "a.png")
    kinds = {}
    for name in ("pairs", "masks"):
        data = load_data(tmp_path / name, PLAIN, None, 0, form=Form("any"))
        kinds[name] = data.targets[0].shape  # type: ignore[index]
    data = load_data(yolo(tmp_path / "yolo"), PLAIN, None, 0, form=Form("any"))
    assert kinds == {"pairs": (3, 32, 32), "masks": (32, 32)}
    assert set(data.targets[0]) >= {"boxes", "labels"}  # type: ignore[index]


def test_targets_in_npz(tmp_path: Path) -> None:
    x = np.zeros((4, 3, 8, 8), np.float32)
    masks = np.arange(4 * 64).reshape(4, 8, 8) % 5
    np.savez(tmp_path / "masks.npz", x=x, y=masks)
    data = load_data(tmp_path / "masks.npz", None, 2, 0)
    assert data.labels is None
    assert torch.equal(data.targets, torch.from_numpy(masks)[[int(n[-2]) for n in data.names]])  # type: ignore[arg-type]
    np.savez(tmp_path / "pairs.npz", x=x, y=np.full((4, 8, 8, 3), 51, np.uint8))
    (part,) = iter_data(tmp_path / "pairs.npz", None)
    assert torch.equal(part.targets, torch.full((4, 3, 8, 8), 0.2))  # type: ignore[arg-type]
    np.savez(tmp_path / "two.npz", a=x, b=x[:, 0], y=np.zeros(4, np.float32))
    two = load_data(f"{tmp_path / 'two.npz'}:a,b,y", None, None, 0)
    assert (two.keys, two.targets.shape) == (("a", "b"), (4,))  # type: ignore[union-attr]


def test_text(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("abcdefghij")

    def tokenizer(text: str) -> list[int]:
        return [ord(letter) - ord("a") for letter in text]

    data = load_data(tmp_path / "text.txt", None, None, 0, form=Form("language", tokenizer=tokenizer, length=4))
    assert data.inputs[0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert torch.equal(data.targets, data.inputs[0])  # type: ignore[arg-type]
    assert data.keys == ()
    named = Form("language", tokenizer=lambda text: {"input_ids": tokenizer(text), "attention_mask": [1]}, length=5)
    (part,) = iter_data(tmp_path / "text.txt", None, form=named)
    assert part.keys == ("input_ids", "attention_mask")
    with pytest.raises(DataError, match="10 tokens, fewer than one sequence of 11"):
        load_data(tmp_path / "text.txt", None, None, 0, form=Form("language", tokenizer=tokenizer, length=11))
    with pytest.raises(DataError, match="text needs a tokenizer"):
        load_data(tmp_path / "text.txt", None, None, 0, form=Form("language"))


@pytest.mark.parametrize("fit", ["crop", "letterbox", "corner", "original"])
@pytest.mark.parametrize("size", [(40, 20), (20, 40), (33, 64), (16, 16)])
def test_points_are_where_they_are_said_to_be(fit: str, size: tuple[int, int]) -> None:
    preprocessing = PLAIN.replace(fit=fit, **({"resize": 40} if fit == "crop" else {}))
    width, height = size
    image = Image.new("RGB", size)
    spot = (3 * width // 8, height // 2)
    image.paste((255, 255, 255), (spot[0] - 1, spot[1] - 1, spot[0] + 1, spot[1] + 1))
    placed = preprocessing.place(height, width)
    pixels = preprocessing(image).mean(0)
    x, y = spot[0] * placed.scale_x + placed.left, spot[1] * placed.scale_y + placed.top
    rows, columns = torch.arange(32) + 0.5, torch.arange(32) + 0.5
    light = (pixels - (114 / 255) * (pixels == torch.tensor(114 / 255))).clamp(min=0)
    assert (light.sum(1) * rows).sum() / light.sum() == pytest.approx(y, abs=0.6)
    assert (light.sum(0) * columns).sum() / light.sum() == pytest.approx(x, abs=0.6)


def test_letterbox_settings() -> None:
    assert PLAIN.replace(multiple=20).size == (40, 40)
    assert Preprocessing.imagenet().replace(fit="letterbox").resize is None
    assert PLAIN.replace(fit="corner").replace(resize=40).fit == "crop"
    with pytest.raises(ConfigError, match="resize is 256, and letterbox scales to the size"):
        Preprocessing.imagenet().replace(fit="letterbox", resize=256)
    described = LETTERBOX.describe()
    assert "fit into 32x32, both sides padded with 114" in described
    assert Preprocessing.from_dict(json.loads(json.dumps(LETTERBOX.to_dict()))) == LETTERBOX
    old = {key: value for key, value in PLAIN.to_dict().items() if key not in ("fit", "fill", "multiple")}
    assert Preprocessing.from_dict(old) == PLAIN


def test_masks_of_wide_integers_hold_class_indices_too(tmp_path: Path) -> None:
    """A TIFF of int32 was refused for colors that it has not."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / "a.png")
    values = np.array([[0, 1, 2, -100]] * 4, np.int32)
    Image.fromarray(values).save(tmp_path / "masks" / "a.tiff")
    plain = Preprocessing((0.5,), (0.5,), (4, 4), None)
    data = load_data(tmp_path, plain, None, 0, form=Form("segmentation"))
    assert data.targets is not None
    assert data.targets[0].tolist() == [[0, 1, 2, 255]] * 4
    Image.fromarray(np.full((4, 4), 300, np.int32)).save(tmp_path / "masks" / "a.tiff")
    with pytest.raises(DataError, match="holds class 300; masks hold 0 to 255, or -100"):
        load_data(tmp_path, plain, None, 0, form=Form("segmentation"))
