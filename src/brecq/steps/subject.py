"""What is quantized: the network or a submodule of it, and the inputs that it receives."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from brecq.checks import check_runs, check_weights
from brecq.config import QuantConfig
from brecq.data.collect import collect
from brecq.data.dataset import Dataset
from brecq.float32 import in_float32
from brecq.forward import Inputs, unwrap
from brecq.progress import Progress
from brecq.reconstruct.fisher import check_labels
from brecq.reconstruct.sampler import used
from brecq.submodules.submodule import Submodule


@dataclass(frozen=True)
class Subject:
    """What is quantized: a network, or a submodule of one, with the inputs that it receives. `notes`: on the way.
    `copied`: bytes of a copy that had to be made of it, or of a part of the data. `received`: what the quantized one
    gets in place of the arguments, each [N, ...], where something before it is quantized, too."""

    model: nn.Module
    arguments: Inputs
    data: Dataset
    wrapped: Submodule | None
    notes: list[str]
    copied: int = 0
    received: tuple[Tensor, ...] | None = None


def subject_of(
    model: nn.Module,
    calibration: Iterable[Any] | Tensor | Dataset,
    submodule: str | None,
    progress: Progress,
    config: QuantConfig,
) -> Subject:
    """The network, or the submodule of this name, checked and run once in float. Of more samples than anything is
    taken from so many are kept, evenly spread."""
    data, most = collect(calibration, None, model=model), used(config)
    check_labels(config, data.labels)
    model, copied = in_float32(model)
    size = sum(value.nbytes for value in model.parameters()) if copied else 0
    fewer, left_out = "", data.left_out
    if most is not None and len(data) > most:
        fewer = f"nothing is learned by gradient steps: {most} of the {len(data)} samples are used"
        data = data.subset(torch.arange(most) * len(data) // most)
        size += sum(value.nbytes for value in data.inputs)
    notes = [note for note in (data.origin and f"inputs: {data.origin}", copied, fewer) if note]
    for note in notes:
        progress.note(note)
    notes += [f"calibration: {left_out}"] if left_out else []  # who read it has been told
    check_weights(model)
    check_runs(model, data)
    if submodule is None:
        return Subject(unwrap(model), data.arguments(), data, None, notes, size)
    target = Submodule(model, submodule, data.arguments())
    return Subject(target.module, target.inputs, data, target, notes, size)
