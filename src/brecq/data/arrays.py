"""Data in NumPy's `.npz` files: pixels or ready inputs, with or without labels."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.lib.format as npy
import torch
from PIL import Image
from torch import Tensor, nn

from brecq.data.dataset import Dataset
from brecq.data.pairs import as_pictures
from brecq.data.preprocessing import Preprocessing
from brecq.data.signature import Signature
from brecq.errors import DataError
from brecq.reading import check_regular, reason_of

INPUT_NAMES = ("x", "images", "inputs")
LABEL_NAMES = ("y", "labels", "targets")
OrderFn = Callable[[int], list[int]]
_LABEL_PREFIX = re.compile(r"(y|labels?|targets?)(_|$)")


def split_selector(path: Path | str) -> tuple[Path, list[str]]:
    """`data.npz:x_train,y_train` → the path and the selected names (none without a selector)."""
    match = re.fullmatch(r"(.*\.npz):([\w.\-:/, ]*)", str(path))
    if match is None:
        return Path(path), []
    return Path(match[1]), [name.strip() for name in match[2].split(",") if name.strip()]


def load_npz(
    path: Path,
    names: list[str],
    preprocessing: Preprocessing | None,
    order: OrderFn,
    model: nn.Module | None = None,
) -> Dataset:
    """Read inputs and labels.

    uint8 arrays [N, H, W, 3] (or 1, 4 or no channels) are pixels and go through `preprocessing`; where they have
    the network's size already they are only normalized. Without a preprocessing they are taken as they are, for
    networks that convert pixels themselves. Floating-point arrays are taken as the network's inputs
    (float32, already normalized), integer arrays of other types too (token ids, as int64), and bool (masks).

    Args:
        names: the arrays to use, labels among them (`y...`, `label...`, `target...`), or one split (`train` for
            `x_train` and `y_train`); several inputs are named as the network's are. Empty: the arrays named as
            the inputs of the `model`, where it takes several; else `x`, `images` or `inputs` or, where none of them
            is there, all arrays but labels; and `y`, `labels` or `targets`. Labels that go with the inputs named
            (`y_train` with `x_train`) are found.
        order: maps the sample count to the indices of the samples to take.
        model: the network, where it is known.
    """
    try:
        check_regular(path, DataError)
        with path.open("rb") as handle:
            if handle.read(1) not in (b"P", b"\x93"):  # NumPy takes anything else for a pickle, and advises to load it
                raise DataError(f"{path} is no .npz file; write it with numpy.savez(FILE, x=ARRAY)")
            handle.seek(0)
            file = np.load(handle, allow_pickle=False)
            if isinstance(file, np.ndarray):
                raise DataError(f"{path} is a single array; save it with numpy.savez(FILE, x=ARRAY)")
            with file:
                inputs, label = _choose(path, names, list(file), model)
                for name in (*inputs, *([label] if label else [])):
                    _check_header(path, file.zip, name)
                arrays = {name: file[name] for name in (*inputs, *([label] if label else []))}
    except DataError:
        raise
    # a damaged archive makes NumPy, zipfile, zlib and struct raise whatever they stumble over
    except Exception as error:
        raise DataError(
            f"cannot read {path}: {reason_of(error)}; give an .npz file of plain (not object) arrays"
        ) from error
    return _assemble(path, arrays, inputs, label, preprocessing, order)


def _check_header(path: Path, archive: zipfile.ZipFile, name: str) -> None:
    """Raise unless the array has as many bytes as its header promises: NumPy reserves whatever the header says."""
    member = next(each for each in archive.infolist() if each.filename in (f"{name}.npy", name))
    with archive.open(member) as stream:
        version = npy.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise DataError(f"{name} of {path} has fields; give an array of plain numbers")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(stream)
        promised, there = math.prod(shape) * dtype.itemsize, member.file_size - stream.tell()
    if promised != there and not dtype.hasobject:
        raise DataError(
            f"{name} of {path} should hold {dtype} {list(shape)}, {promised} bytes, but holds {there}: the file is "
            "damaged; write it again with numpy.savez"
        )


def _choose(path: Path, names: list[str], present: list[str], model: nn.Module | None) -> tuple[list[str], str | None]:
    listing = f"it holds {', '.join(present) or 'nothing'}"
    if not names:
        wanted = [] if model is None else Signature(model).among(present)
        if len(wanted) > 1:
            return wanted, next((name for name in LABEL_NAMES if name in present and name not in wanted), None)
        found = [name for name in INPUT_NAMES if name in present]
        splits = [name[2:] for name in present if name.startswith("x_")]
        if not found and len(splits) == 1:
            names = splits
        elif splits and not found:
            example = f"{path.name}:x_{splits[0]}"
            raise DataError(f"{path} has several splits; {listing}: name the inputs, such as {example}")
        else:
            inputs = found[:1] or [name for name in present if not _LABEL_PREFIX.match(name)]
            if not inputs:
                raise DataError(f"{path} has no inputs; {listing}: save them as x, or as forward calls them")
            return inputs, next((name for name in LABEL_NAMES if name in present), None)
    if len(names) == 1 and names[0] not in present and f"x_{names[0]}" in present:
        names = [f"x_{names[0]}"]
    for name in names:
        if name not in present:
            raise DataError(f"{path} has no array {name!r}; {listing}")
    labels = [name for name in names if _LABEL_PREFIX.match(name)]
    inputs = [name for name in names if name not in labels]
    if not inputs or len(labels) > 1:
        raise DataError(f"{path}:{','.join(names)} names {len(inputs)} inputs and {len(labels)} labels; {listing}")
    suffix = inputs[0].partition("_")[2]
    beside = [f"{name}_{suffix}" if suffix else name for name in LABEL_NAMES]
    return inputs, next((name for name in (*labels, *beside) if name in present), None)


def _assemble(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    inputs: list[str],
    label: str | None,
    preprocessing: Preprocessing | None,
    order: OrderFn,
) -> Dataset:
    count = len(arrays[inputs[0]]) if arrays[inputs[0]].ndim else 0
    for name, array in arrays.items():
        if array.ndim == 0 or len(array) != count:
            raise DataError(
                f"{name} of {path} has shape {array.shape}, {inputs[0]} holds {count} samples; they must match"
            )
    if count == 0:
        raise DataError(f"{inputs[0]} of {path} is empty, shape {arrays[inputs[0]].shape}; give at least one sample")
    chosen = order(count)
    labels = targets = None
    if label is not None:
        values = arrays[label][chosen]
        if values.ndim == 2 and values.shape[1] == 1:
            values = values[:, 0]
        if values.ndim == 1 and values.dtype.kind in "iu":
            labels = torch.from_numpy(values.astype(np.int64))
        else:
            targets = _to_targets(f"{label} of {path}", values)
    tensors = tuple(_to_input(f"{name} of {path}", arrays[name][chosen], preprocessing) for name in inputs)
    # several arrays go to the inputs of their names: their order in a file or a selector says nothing
    keys = tuple(inputs) if len(inputs) > 1 else ()
    return Dataset(tensors, labels, [f"{path.name}[{index}]" for index in chosen], keys=keys, targets=targets)


def _to_targets(name: str, array: np.ndarray) -> Tensor:
    """What is right, where it is no class index: uint8 pixels [N, H, W, 3 or 1] become float32 [N, C, H, W] in [0, 1],
    other integers (masks, token ids) int64, the rest float32."""
    if array.dtype == np.uint8 and array.ndim == 4 and array.shape[-1] in (1, 3):
        return as_pictures(array)
    if array.dtype.kind in "iub":
        return torch.from_numpy(array.astype(np.int64))
    if array.dtype.kind == "f":
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    raise DataError(f"{name} is {array.dtype}; give class indices [N], or numbers that a metric takes")


def _to_input(name: str, array: np.ndarray, preprocessing: Preprocessing | None) -> Tensor:
    if array.dtype == np.uint8:
        return torch.from_numpy(array) if preprocessing is None else _from_pixels(name, array, preprocessing)
    if array.dtype.kind == "f":
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    if array.dtype.kind in "iu" and array.dtype.itemsize > 1:
        return torch.from_numpy(array.astype(np.int64))
    if array.dtype == np.bool_:
        return torch.from_numpy(np.ascontiguousarray(array))
    raise DataError(f"{name} is {array.dtype}; give uint8 pixels [N, H, W, 3] or float32 network inputs [N, ...]")


def _from_pixels(name: str, pixels: np.ndarray, preprocessing: Preprocessing) -> Tensor:
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    if 0 in pixels.shape:
        raise DataError(f"{name} has shape {pixels.shape}: pictures without a pixel; store them again")
    if pixels.ndim != 4 or pixels.shape[-1] not in (1, 3, 4):
        raise DataError(
            f"{name} has shape {pixels.shape}; uint8 pixels must be [N, H, W, 3] (channels last): transpose them, "
            "or store normalized float32 inputs"
        )
    pixels = np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels[..., :3]
    if preprocessing.fit == "own" or pixels.shape[1:3] == preprocessing.size:
        return preprocessing.normalize_pixels(pixels)
    output = torch.empty(len(pixels), preprocessing.channels, *preprocessing.size)
    for index, image in enumerate(pixels):
        output[index] = preprocessing(Image.fromarray(np.ascontiguousarray(image)))
    return output
