"""Pictures of a page: what the network was calibrated on, and inputs whose decision changed, as small JPEG files."""

from __future__ import annotations

import base64
import io

import torch
from PIL import Image
from torch import Tensor, nn

from brecq.data.dataset import Dataset
from brecq.data.preprocessing import Preprocessing
from brecq.devices import on_device
from brecq.forward import even_slices
from brecq.page.record import Changed

SIDE = 112
SHOWN = 24
COMPARED = 256
_BATCH = 32


def thumbnails(inputs: Tensor, preprocessing: Preprocessing) -> list[str]:
    """The first inputs [N, 3, H, W], normalized as the network takes them, as base64 JPEG files."""
    return [_jpeg(pixels) for pixels in preprocessing.to_pixels(inputs[:SHOWN])]


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
            found.append(Changed(picture, label, before[i], after[i]))
    return found[:SHOWN], compared


def _jpeg(pixels: object) -> str:
    picture = Image.fromarray(pixels)  # type: ignore[arg-type]
    picture.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    picture.convert("RGB").save(stream, "JPEG", quality=80)
    return base64.b64encode(stream.getvalue()).decode("ascii")
