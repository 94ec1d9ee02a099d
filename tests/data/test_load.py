from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import brecq
from brecq.data import Dataset, Preprocessing, iter_data, load_data
from brecq.data.load import iter_samples, load_samples
from brecq.data.pictures import Pictures
from brecq.errors import DataError

PREPROCESSING = Preprocessing((0.0,), (1.0,), (8, 8), None)
Folder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Make images at the paths given; every one has another gray level, 10 times its position."""

    def make(*names: str) -> Path:
        root = tmp_path / "images"
        for level, name in enumerate(names):
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (12, 10), (10 * level,) * 3).save(path)
        return root

    return make


def load(root: Path | str, size: int | None = None, seed: int = 0, **options: object) -> Dataset:
    return load_data(root, PREPROCESSING, size, seed, **options)  # type: ignore[arg-type]


def levels(inputs: torch.Tensor) -> list[int]:
    return [round(float(x.mean()) * 25.5) for x in inputs]


def test_flat_folder_in_the_order_of_names(folder: Folder) -> None:
    root = folder("b.png", "a.jpg", "sub/c.png")
    (root / "notes.txt").write_text("not a picture")
    (root / "._a.jpg").write_bytes(b"resource fork")
    data = load(root)
    assert data.names == ["a.jpg", "b.png", "sub/c.png"]
    assert levels(data.inputs[0]) == [1, 0, 2]
    assert data.inputs[0].dtype == torch.float32
    assert data.inputs[0].shape == (3, 3, 8, 8)
    assert (data.labels, data.skipped) == (None, [])


def test_sample_is_random_repeatable_and_without_repetition(folder: Folder) -> None:
    root = folder(*(f"{i:02}.png" for i in range(20)))
    first, again, other = load(root, 8), load(root, 8), load(root, 8, seed=1)
    assert first.names == again.names
    assert first.digest() == again.digest()
    assert first.names != other.names
    assert len(set(first.names)) == 8
    assert first.names != sorted(first.names)
    assert levels(first.inputs[0]) == [int(name[:2]) for name in first.names]


def test_all_are_used_with_a_warning_where_there_are_fewer(folder: Folder) -> None:
    root = folder("a.png", "b.png")
    with pytest.warns(UserWarning, match="holds 2 samples, fewer than the 5 asked for"):
        assert sorted(load(root, 5).names) == ["a.png", "b.png"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load(root, 2)) == 2


def test_folder_per_class(folder: Folder) -> None:
    data = load(folder("dog/1.png", "cat/2.png", "dog/deep/3.png"))
    assert data.labels is not None
    assert dict(zip(data.names, data.labels.tolist(), strict=True)) == {
        "cat/2.png": 0,
        "dog/1.png": 1,
        "dog/deep/3.png": 1,
    }


@pytest.mark.parametrize("names", [("only/1.png", "only/2.png"), ("a/1.png", "2.png"), ("train/1.png", "val/2.png")])
def test_folders_that_are_no_classes(folder: Folder, names: tuple[str, ...]) -> None:
    assert load(folder(*names)).labels is None


def test_numbered_class_folders_warn(folder: Folder) -> None:
    with pytest.warns(UserWarning, match=r"sorted names \(0, 10, 2"):
        assert load(folder("0/a.png", "10/b.png", "2/c.png")).labels.tolist() == [0, 1, 2]


def test_linked_folders_are_followed_once(folder: Folder) -> None:
    root = folder("a/1.png", "b/2.png")
    (root / "a" / "up").symlink_to(root)
    (root.parent / "extern").mkdir()
    Image.new("RGB", (9, 9)).save(root.parent / "extern" / "3.png")
    (root / "c").symlink_to(root.parent / "extern")
    data = load(root)
    assert data.names == ["a/1.png", "b/2.png", "c/3.png"]
    assert data.labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize("where", ["inside", "beside", "given"])
def test_labels_from_csv(folder: Folder, where: str) -> None:
    root = folder("x/a.png", "y/b.png", "y/c.png")
    path = {"inside": root / "labels.csv", "beside": root.parent / "labels.csv", "given": root / "truth.csv"}[where]
    path.write_text("id,label,file\n1,7,x/a.png\n2,5,b.png\n3,6,c\n\n4,9,absent.png\n")
    data = load(root, labels=path if where == "given" else None)
    assert data.labels.tolist() == [7, 5, 6]


@pytest.mark.parametrize(
    "text", ["a.png,3\nb.png,4\n", "name,class\na.png,3\nb.png,4\n", "\ufeffa.png , 3\r\nb.png,4"]
)
def test_csv_without_the_usual_header(folder: Folder, text: str) -> None:
    root = folder("a.png", "b.png")
    (root / "labels.csv").write_text(text, encoding="utf-8")
    assert load(root).labels.tolist() == [3, 4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("file,label\n", "no rows"),
        ("file,label\na.png,cat\nb.png,1\n", "label 'cat' of a.png is not a class index"),
        ("file,label\na.png\n", "row 2"),
        ("file,label\na.png,1\na.png,2\n", "two labels, 1 and 2"),
        ("file,label\na.png,1\n", "no label for 1 of 2 images, such as b.png"),
        ("file,label\nz.png,1\n", "no label for 2 of 2 images, such as a.png, b.png .its first row is for z.png"),
        ("file,label\n,3\n", "no label for 2 of 2 images"),
    ],
)
def test_bad_csv(folder: Folder, text: str, message: str) -> None:
    root = folder("a.png", "b.png")
    (root / "truth.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        load(root, labels=root / "truth.csv")


def test_paths_that_no_system_has_are_refused() -> None:
    for path in ("x" * 300, "a\0b"):
        for read in (lambda path: load_data(path, None, None, 0), brecq.load, brecq.BitAllocation.load):
            with pytest.raises(brecq.BrecqError):
                read(path)


def test_missing_csv(folder: Folder) -> None:
    with pytest.raises(DataError, match=r"cannot read .*none.csv"):
        load(folder("a.png"), labels=Path("none.csv"))


def test_found_csv_of_something_else_is_ignored(folder: Folder) -> None:
    root = folder("a.png", "b.png")
    (root.parent / "labels.csv").write_text("file,label\nz.png,1\n")
    assert load(root).labels is None
    for text, message in (
        ("file,label\na.png,1\n", "labels only 1 of 2"),
        ("a.png,cat\n", "has a header and no rows"),
    ):
        (root / "labels.csv").write_text(text)
        with pytest.warns(UserWarning, match=message):
            assert load(root).labels is None


def test_unreadable_files_are_named_and_replaced(folder: Folder) -> None:
    root = folder(*(f"{i}.png" for i in range(9)))
    (root / "3.png").write_text("broken")
    data = load(root, max_skipped=0.2)
    assert data.skipped == ["3.png: not an image"]
    assert data.names == [f"{i}.png" for i in range(9) if i != 3]
    assert levels(data.inputs[0]) == [0, 1, 2, 4, 5, 6, 7, 8]
    samples = [load(root, 8, seed, max_skipped=0.2) for seed in range(6)]
    assert all(len(sample) == 8 for sample in samples)
    assert any(sample.skipped for sample in samples)


def test_too_many_unreadable_files(folder: Folder) -> None:
    root = folder(*(f"{i}.png" for i in range(9)))
    for name in ("2.png", "3.png"):
        (root / name).write_text("broken")
    with pytest.raises(DataError, match=r"2 of 9 images in .* more than the 12.0%.*2.png: not an image; 3.png"):
        load(root, max_skipped=0.12)
    with pytest.raises(
        DataError, match=r"3.png: not an image; remove or repair them, or allow for more \(max_skipped"
    ):
        load(root)


def test_all_unreadable_files_are_named_at_once(folder: Folder) -> None:
    root = folder(*(f"{i:02}.png" for i in range(40)))
    for name in range(0, 12, 2):
        (root / f"{name:02}.png").write_text("broken")
    with pytest.raises(DataError, match=r"6 of 40 images") as refused:
        load(root)
    assert all(f"{name:02}.png: not an image" in str(refused.value) for name in range(0, 12, 2))
    with pytest.raises(DataError, match=r"4 of 40 images in .* cannot be read \(32 were not tried yet\), more than"):
        list(iter_data(root, PREPROCESSING, chunk=8))
    for name in range(25):
        (root / f"{name:02}.png").write_text("broken")
    with pytest.raises(DataError, match=r"25 of 40 images .* 19.png: not an image; and 5 more; remove"):
        load(root)
    with pytest.raises(DataError, match=r"of \d\d images in") as refused:
        load(root, 10)  # in random order, until there are ten
    bad, tried = str(refused.value).split()[0], str(refused.value).split()[2]
    assert int(tried) - int(bad) == 10


@pytest.mark.parametrize("in_parts", [False, True])
def test_one_of_a_handful_may_be_unreadable(folder: Folder, in_parts: bool) -> None:
    root = folder("0.png", "1.png", "2.png")
    (root / "1.png").write_text("broken")

    def names(**how: float) -> list[str]:
        parts = iter_data(root, PREPROCESSING, chunk=1, **how) if in_parts else [load(root, **how)]
        return [name for part in parts for name in part.names]

    with pytest.warns(UserWarning, match=r"1 file cannot be read and is left out: 1.png: not an image"):
        assert names() == ["0.png", "2.png"]
    with pytest.raises(DataError, match=r"1 of 3 images in .* more than the 0.0%"):
        names(max_skipped=0)
    (root / "0.png").write_text("broken")
    with pytest.raises(DataError, match=r"2 of 3 images in .* more than the 1.0%"):
        names()
    with pytest.warns(UserWarning, match=r"2 files cannot be read and are left out: 0.png: not an image; 1.png: not"):
        assert names(max_skipped=0.7) == ["2.png"]
    (root / "2.png").write_text("broken")
    with pytest.raises(DataError, match="none of the images"):
        names(max_skipped=1)


def test_nothing_readable(folder: Folder) -> None:
    root = folder("a.png")
    (root / "a.png").write_text("broken")
    with pytest.raises(DataError, match=r"none of the images .* can be read: a.png: not an image"):
        load(root, max_skipped=1.0)


def test_bad_arguments(folder: Folder, tmp_path: Path) -> None:
    root = folder("a.png")
    (tmp_path / "void").mkdir()
    (tmp_path / "x.csv").touch()
    for arguments, message in (
        ((tmp_path / "void",), "holds no images"),
        ((tmp_path / "absent",), "there is no .*absent"),
        ((tmp_path / "absent.npz",), "there is no file .*absent.npz"),
        ((tmp_path / "x.csv",), "is a .csv file"),
        ((root, 0), "number of samples is 0"),
    ):
        with pytest.raises(DataError, match=message):
            load(*arguments)
    with pytest.raises(DataError, match="max_skipped is 2"):
        load(root, max_skipped=2)
    with pytest.raises(DataError, match="give a preprocessing"):
        load_data(root, None, None, 0)


def test_iter_data_gives_the_same_in_parts(folder: Folder) -> None:
    root = folder(*(f"{'abc'[i % 3]}/{i:02}.png" for i in range(11)))
    (root / "a" / "03.png").write_text("broken")
    whole = load(root, max_skipped=0.1)
    parts = list(iter_data(root, PREPROCESSING, max_skipped=0.1, chunk=4))
    assert len(parts) == 3
    assert [name for part in parts for name in part.names] == whole.names
    assert [name for part in parts for name in part.skipped] == whole.skipped == ["a/03.png: not an image"]
    assert torch.equal(torch.cat([part.inputs[0] for part in parts]), whole.inputs[0])
    assert torch.cat([part.labels for part in parts]).tolist() == whole.labels.tolist()
    (root / "c" / "08.png").write_text("broken")
    with pytest.raises(DataError, match=r"2 of 11 images"):
        list(iter_data(root, PREPROCESSING, max_skipped=0.1, chunk=4))


def test_iter_data_of_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.random.rand(7, 3, 4, 4), y=np.arange(7))
    parts = list(iter_data(tmp_path / "d.npz", None, chunk=3))
    assert [part.labels.tolist() for part in parts] == [[0, 1], [2, 3], [4, 5, 6]]


def test_imagenet(shared_data: Path) -> None:
    preprocessing = Preprocessing.imagenet(64)
    data = load_data(shared_data / "imagenet_val" / "images", preprocessing, 40, 0)
    assert data.labels is not None
    assert len(data) == 40
    table = dict(line.split(",") for line in (shared_data / "imagenet_val" / "labels.csv").read_text().split())
    assert data.labels.tolist() == [int(table[name]) for name in data.names]
    above = load_data(shared_data / "imagenet_val", preprocessing, 40, 0)
    assert above.digest() == data.digest()
    assert load_data(shared_data / "imagenet_calib", preprocessing, 10, 0).labels is None


def test_pipes_folders_and_extreme_pictures_are_unreadable_not_waited_for(folder: Folder) -> None:
    root = folder("a.png")
    os.mkfifo(root / "pipe.png")
    (root / "folder.png").mkdir()
    (root / "loop.png").symlink_to(root / "loop.png")
    Image.new("RGB", (1, 50_000)).save(root / "long.png")
    (root / os.fsdecode(b"\xff.png")).write_bytes(b"")
    with pytest.warns(UserWarning, match=r"4 files cannot be read") as told:
        data = load_data(root, Preprocessing((0.5,), (0.5,), (224, 224), 256), None, 0, max_skipped=1)
    told[0].message.args[0].encode()  # a name that is no UTF-8 ended what writes warnings down
    assert data.names == ["a.png"]
    found = "; ".join(data.skipped)
    for text in (
        r"\xff.png: ",
        "pipe.png: ",
        "named pipe",
        "Too many levels of symbolic links",
        "crop it to a usual aspect ratio",
    ):
        assert text in found


def test_pictures_at_their_own_sizes(tmp_path: Path) -> None:
    own = Preprocessing((0.0,), (1.0,), (32, 32), None, fit="own")
    sizes = [(20, 30), (40, 10), (25, 25)]
    for index, size in enumerate(sizes):
        Image.fromarray(np.full((*size, 3), 10 * index, np.uint8)).save(tmp_path / f"{index}.png")
    found = load_samples(tmp_path, own, None, 0)
    assert isinstance(found, Pictures)
    assert [tuple(picture.shape) for picture in found.pictures] == [(3, *size) for size in sizes]
    assert found.names == ["0.png", "1.png", "2.png"]
    assert len(load_samples(tmp_path, own, 2, 0)) == 2
    parts = list(iter_samples(tmp_path, own, chunk=2))
    assert [len(part) for part in parts] == [1, 2]
    for read in (lambda: load_data(tmp_path, own, None, 0), lambda: list(iter_data(tmp_path, own))):
        with pytest.raises(DataError, match="is read as pictures at their own sizes"):
            read()
    np.savez(tmp_path / "x.npz", x=np.zeros((4, 20, 45, 3), np.uint8))
    assert load_data(tmp_path / "x.npz", own, None, 0).inputs[0].shape == (4, 3, 20, 45)
