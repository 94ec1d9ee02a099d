"""Read calibration and evaluation data from disk."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from brecq.data.annotated import Annotated, Split
from brecq.data.arrays import load_npz, split_selector
from brecq.data.boxes import find_boxes
from brecq.data.dataset import Dataset, check
from brecq.data.decode import Folder, Skipped, decode
from brecq.data.images import IMAGE_SUFFIXES, is_image
from brecq.data.labels import find_csv, from_csv, from_folders
from brecq.data.masks import find_masks, masks_beside
from brecq.data.pairs import find_pairs
from brecq.data.pictures import Pictures
from brecq.data.preprocessing import Preprocessing
from brecq.data.text import Tokenizer, load_text
from brecq.errors import DataError
from brecq.forward import even_slices
from brecq.settings import MAX_SKIPPED

DISTILLED = "distilled.npz"
"""A folder with this file was written by `brecq distill`: it is the data, the pictures beside it are not."""


OWN_SIZES = 64
"""Pictures at their own sizes that are read at a time: those of cameras are large."""


@dataclass(frozen=True)
class Form:
    """What kind of data is read.

    Attributes:
        task: `detection` (COCO's JSON, YOLO's labels), `segmentation` (masks), `restoration` (pairs of pictures),
            `language` (text), `any` of the first three, whatever is there; any other or `None`: pictures and labels.
            Pictures without targets are read for each.
        split: which part of a data set that names several.
        tokenizer, length: of text.
        model: the network, where it is known: the arrays of an archive that are named as its inputs are these.
    """

    task: str | None = None
    split: Split = "val"
    tokenizer: Tokenizer | None = None
    length: int = 128
    model: nn.Module | None = None


PLAIN = Form()


def load_data(
    path: Path | str,
    preprocessing: Preprocessing | None,
    size: int | None,
    seed: int,
    *,
    labels: Path | None = None,
    max_skipped: float = MAX_SKIPPED,
    form: Form = PLAIN,
    at_most: bool = False,
) -> Dataset:
    """Inputs of one size: as `load_samples`, whose arguments and errors these are.

    Raises:
        DataError: also for pictures that the preprocessing leaves at their own sizes.
    """
    found = load_samples(
        path, preprocessing, size, seed, labels=labels, max_skipped=max_skipped, form=form, at_most=at_most
    )
    if isinstance(found, Pictures):
        raise own_sizes(path)
    return found


def own_sizes(what: Path | str) -> DataError:
    """The error for pictures of several sizes where inputs of one are needed."""
    return DataError(
        f"{what} is read as pictures at their own sizes (fit own), and the network takes inputs of one size; choose "
        "another fit (--fit crop, letterbox, corner or original)"
    )


def load_samples(
    path: Path | str,
    preprocessing: Preprocessing | None,
    size: int | None,
    seed: int,
    *,
    labels: Path | None = None,
    max_skipped: float = MAX_SKIPPED,
    form: Form = PLAIN,
    at_most: bool = False,
) -> Dataset | Pictures:
    """Read network inputs from a folder of images, an `.npz` file or, for a task, what is usual for it (`Form`).

    A folder that `brecq distill` wrote stands for its inputs; any other is searched recursively. Its labels come from
    a CSV (columns `file`, `label`): the one given, or `labels.csv` in the folder or beside it; else from its
    subfolders when all images lie in at least two of them (class indices in the order of the sorted names). Where
    the preprocessing leaves pictures at their own sizes (`fit="own"`), they are `Pictures`. For `.npz` files see
    `brecq.data.arrays.load_npz`; the path may name the arrays: `cifar10.npz:x_train,y_train`.

    Args:
        size: samples to draw at random, in random order; files that cannot be read are replaced by others. Where
            there are fewer, all are used, with a warning unless it is meant as `at_most`. `None` takes all, in the
            order of their names.
        seed: of that draw; the same seed, data and size give the same samples in the same order.
        labels: a CSV that must label every image.
        max_skipped: share of the samples, 0 to 1, that may be unreadable: then they are left out, with a warning that
            names them. One may be of any two or more, unless the share is 0.

    Raises:
        DataError: nothing there, too much unreadable, labels that do not fit, NaN or infinite values.
    """
    _check_arguments(size, max_skipped)
    file, names = _locate(path)
    if file.suffix == ".npz":
        _check_npz(file, labels)
        dataset: Dataset | Pictures = load_npz(
            file, names, preprocessing, lambda count: _draw(count, size, seed)[:size], form.model
        )
    elif form.task == "language":
        dataset = load_text(file, _tokenizer(form), form.length, lambda count: _draw(count, size, seed)[:size])
    else:
        folder = _find(file, labels, form)
        order = _draw(len(folder.paths), size, seed)
        wanted = len(order) if size is None else min(size, len(order))
        skipped = Skipped(folder.root, max_skipped, wanted)
        some = decode(folder, order, wanted, preprocessing, skipped)
        if some is None:
            raise skipped.all_of_them()
        dataset = some
        skipped.tell(path)
    if size is not None and len(dataset) < size and not at_most:
        warnings.warn(f"{path} holds {len(dataset)} samples, fewer than the {size} asked for: using all", stacklevel=2)
    _check(dataset)
    return dataset


def iter_data(
    path: Path | str,
    preprocessing: Preprocessing | None,
    *,
    labels: Path | None = None,
    max_skipped: float = MAX_SKIPPED,
    chunk: int = 512,
    form: Form = PLAIN,
) -> Iterator[Dataset]:
    """All samples in the order of their names, `chunk` at a time: for evaluation sets larger than memory.

    Arguments and errors are those of `load_data`; `max_skipped` is a share of the whole set.
    """
    for part in iter_samples(path, preprocessing, labels=labels, max_skipped=max_skipped, chunk=chunk, form=form):
        if isinstance(part, Pictures):
            raise own_sizes(path)
        yield part


def iter_samples(
    path: Path | str,
    preprocessing: Preprocessing | None,
    *,
    labels: Path | None = None,
    max_skipped: float = MAX_SKIPPED,
    chunk: int = 512,
    form: Form = PLAIN,
) -> Iterator[Dataset | Pictures]:
    """The same of inputs of one size and of pictures at their own sizes, of which `OWN_SIZES` are read at a time."""
    _check_arguments(chunk, max_skipped)
    file, names = _locate(path)
    if file.suffix == ".npz" or form.task == "language":
        if form.task == "language" and file.suffix != ".npz":
            dataset = load_text(file, _tokenizer(form), form.length, range)
        else:
            _check_npz(file, labels)
            dataset = load_npz(file, names, preprocessing, lambda count: list(range(count)), form.model)
        for rows in even_slices(len(dataset), chunk):
            part = dataset.subset(rows)
            check(part)
            yield part
        return
    folder = _find(file, labels, form)
    skipped = Skipped(folder.root, max_skipped, len(folder.paths))
    if preprocessing is not None and preprocessing.fit == "own":
        chunk = min(chunk, OWN_SIZES)
    for rows in even_slices(len(folder.paths), chunk):
        order = list(range(len(folder.paths))[rows])
        if (found := decode(folder, order, len(order), preprocessing, skipped)) is not None:
            _check(found)
            yield found
    if len(skipped.files) == len(folder.paths):
        raise skipped.all_of_them()
    skipped.tell(path)


def _check(found: Dataset | Pictures) -> None:
    if isinstance(found, Dataset):  # decoded pixels are finite
        check(found)


def _tokenizer(form: Form) -> Tokenizer:
    if form.tokenizer is None:
        raise DataError("text needs a tokenizer; give one (--tokenizer NAME or file.py:callable)")
    return form.tokenizer


_FINDERS: dict[str, Callable[[Path, Split], Annotated | None]] = {
    "detection": find_boxes, "segmentation": find_masks, "restoration": find_pairs,
}  # fmt: skip


def _find_any(root: Path, split: Split) -> Annotated | None:
    for finder in _FINDERS.values():
        with suppress(DataError):  # boxes, masks and pairs may lie in folders of the same names
            if (found := finder(root, split)) is not None:
                return found
    return None


def _find(root: Path, labels: Path | None, form: Form) -> Folder:
    finder = _find_any if form.task == "any" else _FINDERS.get(form.task or "")
    found = None if finder is None else finder(root, form.split)
    if found is None:
        if labels is None and form.task != "classification":
            _refuse_targets(root, form)
        return _find_images(root, labels)
    if labels is not None:
        raise DataError(f"{labels} cannot label {root}, which has targets ({found.origin}); leave it out")
    if not found.paths:
        raise DataError(f"none of the pictures that {root} names are there ({found.origin})")
    return Folder(found.root, found.paths, None, found)


def _refuse_targets(root: Path, form: Form) -> None:
    """Masks are not read as pictures, nor pictures and masks as two classes; of pairs nobody can be as sure."""
    folders = masks_beside(root)
    if folders is not None:
        raise DataError(
            f"{root} holds pictures and masks ({folders[0].name}, {folders[1].name}): give --task segmentation "
            f"(form=Form('segmentation')) to read both, or the pictures alone: {folders[0]}"
        )
    if form.task is None:
        with suppress(DataError):
            if (pairs := find_pairs(root, form.split)) is not None:
                warnings.warn(
                    f"{root} is read as pictures of two classes; if they are {pairs.origin}, give --task restoration "
                    "(form=Form('restoration'))",
                    stacklevel=4,
                )


def _locate(path: Path | str) -> tuple[Path, list[str]]:
    """The folder or file, and the names of arrays in it."""
    file, names = split_selector(path)
    return (file / DISTILLED, []) if os.path.isfile(file / DISTILLED) else (file, names)


def _check_arguments(size: int | None, max_skipped: float) -> None:
    if size is not None and size < 1:
        raise DataError(f"the number of samples is {size}; ask for at least 1")
    if not 0 <= max_skipped <= 1:
        raise DataError(f"max_skipped is {max_skipped}; give a share between 0 and 1")


def _check_npz(file: Path, labels: Path | None) -> None:
    if labels is not None:
        raise DataError(f"{labels} cannot label {file}; put the labels into the .npz file as array y")
    if not os.path.isfile(file):
        raise DataError(f"there is no file {file}; check the path")


def _draw(count: int, size: int | None, seed: int) -> list[int]:
    if size is None:
        return list(range(count))
    order: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return order


def _find_images(root: Path, labels: Path | None) -> Folder:
    if not os.path.exists(root):
        raise DataError(f"there is no {root}; give a folder of images or an .npz file")
    if os.path.isfile(root):
        raise DataError(f"{root} is a {root.suffix or 'plain'} file; give a folder of images or an .npz file")
    paths: list[Path] = []
    seen: set[str] = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        # links may lead back up; a folder is read once
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        if (real := os.path.realpath(folder)) in seen:
            subfolders.clear()
            continue
        seen.add(real)
        paths += [path for path in (Path(folder, name) for name in files) if is_image(path)]
    if not paths:
        raise DataError(f"{root} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}); give a folder that does")
    paths.sort(key=lambda path: path.relative_to(root).as_posix())
    found = labels or find_csv(root)
    indices = from_csv(root, paths, found, explicit=labels is not None) if found else None
    if indices is None:
        indices = from_folders(root, paths)
    return Folder(root, paths, indices)
