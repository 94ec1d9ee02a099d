"""Pictures of a page as small JPEG files: what was calibrated on, inputs whose decision changed, boxes found."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from brecq.data.dataset import Dataset
from brecq.data.pictures import Pictures
from brecq.data.preprocessing import Preprocessing
from brecq.devices import on_device
from brecq.forward import Inputs, call, evaluating, even_slices
from brecq.labels import IGNORED
from brecq.page.record import Box, Changed, Detected

SIDE = 112
SHOWN = 24
BOXED = 8
BOXED_SIDE = 320
COMPARED = 256
_BATCH = 32


def thumbnails(inputs: Tensor, preprocessing: Preprocessing) -> list[str]:
    """The first inputs [N, 3, H, W], normalized as the network takes them, as base64 JPEG files."""
    return [_jpeg(pixels) for pixels in preprocessing.to_pixels(inputs[:SHOWN])]


def thumbnails_of(data: Dataset | Pictures, preprocessing: Preprocessing) -> list[str]:
    """The same of the first samples of data."""
    if isinstance(data, Dataset):
        return thumbnails(data.inputs[0], preprocessing)
    return [each for picture in data.pictures[:SHOWN] for each in thumbnails(picture[None], preprocessing)]


@torch.no_grad()
def changed_decisions(
    floating: nn.Module,
    quantized: nn.Module,
    data: Dataset,
    preprocessing: Preprocessing | None,
    device: torch.device,
) -> tuple[list[Changed], int]:
    """The first inputs of `data` on which two classifiers decide otherwise, and how many were compared.

    Nothing is compared where inputs are no pictures or the output is no tensor [N, classes].
    """
    if preprocessing is None or len(data.inputs) != 1:
        return [], 0
    found: list[Changed] = []
    compared = min(len(data), COMPARED)
    for rows in even_slices(compared, _BATCH):
        batch = data.inputs[0][rows].to(device)
        with on_device(device, floating, quantized):
            outputs = floating(batch), quantized(batch)
        if not all(isinstance(output, Tensor) and output.ndim == 2 for output in outputs):
            return [], 0
        before, after = (output.argmax(1).tolist() for output in outputs)
        different = [i for i in range(len(batch)) if before[i] != after[i]]
        if not different:
            continue
        pictures = thumbnails(batch[different].cpu(), preprocessing)
        for i, picture in zip(different, pictures, strict=False):
            label = None if data.labels is None else int(data.labels[rows.start + i])
            label = None if label == IGNORED else label
            found.append(Changed(picture, label, before[i], after[i]))
    return found[:SHOWN], compared


@torch.no_grad()
def detections(
    floating: nn.Module,
    quantized: nn.Module,
    data: Dataset | Pictures,
    boxes: Callable[[Any], Sequence[Mapping[str, Tensor]]],
    sure: float,
    preprocessing: Preprocessing | None,
    device: torch.device,
    names: Mapping[int, str] | None = None,
) -> list[Detected]:
    """The first inputs of `data`, and where both detectors found something with a score of at least `sure`.

    `boxes`: from what a network returns to a dictionary (boxes, scores, labels) a picture. `names`: of labels; others
    are shown as numbers. Nothing where inputs are no pictures.
    """
    if preprocessing is None or (isinstance(data, Dataset) and len(data.inputs) != 1):
        return []
    few = data.subset(slice(0, min(len(data), BOXED)))
    inputs: list[Tensor] = list(few.pictures) if isinstance(few, Pictures) else list(few.inputs[0])
    calls: list[Inputs | list[Tensor]] = []
    if isinstance(few, Pictures):  # each alone, as they are evaluated
        calls += [[picture.to(device)] for picture in inputs]
    else:
        calls.append(few.arguments([value.to(device) for value in few.inputs]))
    found: list[list[Mapping[str, Tensor]]] = []
    with on_device(device, floating, quantized), evaluating(floating, quantized):
        for model in (floating, quantized):
            found.append([each for given in calls for each in boxes(_run(model, given))])
    named, drawn = names or {}, []
    for picture, *both in zip(inputs, *found, strict=True):
        (pixels,) = preprocessing.to_pixels(picture[None])
        rows = (_rows(each, sure, named) for each in both)
        drawn.append(Detected(_jpeg(pixels, BOXED_SIDE), picture.shape[-1], picture.shape[-2], *rows))
    return drawn


def _run(model: nn.Module, given: Inputs | list[Tensor]) -> Any:
    return model([picture.clone() for picture in given]) if isinstance(given, list) else call(model, given)


def _rows(found: Mapping[str, Tensor], sure: float, names: Mapping[int, str]) -> list[Box]:
    """Boxes as in `Detected`, to a tenth of a pixel."""
    rows = torch.cat([found["boxes"].float(), found["scores"][:, None], found["labels"][:, None].float()], 1).cpu()
    found_rows: list[Box] = []
    for *corners, score, label in rows.tolist():
        if score >= sure:
            called = names.get(int(label), str(int(label)))
            found_rows.append([*(round(value, 1) for value in corners), round(score, 2), called])
    return found_rows


def _jpeg(pixels: object, side: int = SIDE) -> str:
    picture = Image.fromarray(pixels)  # type: ignore[arg-type]
    picture.thumbnail((side, side))
    stream = io.BytesIO()
    picture.convert("RGB").save(stream, "JPEG", quality=80)
    return base64.b64encode(stream.getvalue()).decode("ascii")
