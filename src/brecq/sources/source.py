"""A model together with what its origin says about its inputs."""

from __future__ import annotations

import dataclasses
import importlib
from dataclasses import dataclass
from difflib import get_close_matches
from types import ModuleType
from typing import TYPE_CHECKING

from torch import Tensor, nn

from brecq.errors import SourceError
from brecq.tasks import TaskName

if TYPE_CHECKING:
    from collections.abc import Iterable

    from brecq.data.preprocessing import Preprocessing


@dataclass(frozen=True)
class Source:
    """A float model that is ready to be quantized.

    Attributes:
        name: short, for titles.
        model: in eval mode, on the CPU.
        preprocessing: how pictures become its inputs; `None` where its origin does not say.
        example_inputs: inputs of the right shapes, a batch of 2; empty where its origin does not say (take them
            from the calibration data then).
        spec: what `load_source` was given.
        submodules: the parts of it that are quantized, where it cannot be captured whole (detectors); empty: all.
        task: what it does, where its origin says so and it is no classifier.
    """

    name: str
    model: nn.Module
    preprocessing: Preprocessing | None
    example_inputs: tuple[Tensor, ...]
    spec: str
    submodules: tuple[str, ...] = ()
    task: TaskName | None = None

    def with_preprocessing(self, preprocessing: Preprocessing) -> Source:
        """A copy with another preprocessing and, for a model that takes one picture, example inputs of its size."""
        inputs = self.example_inputs
        if not inputs or (len(inputs) == 1 and inputs[0].shape[1:] != (preprocessing.channels, *preprocessing.size)):
            inputs = (preprocessing.example(),)
        return dataclasses.replace(self, preprocessing=preprocessing, example_inputs=inputs)


def require(module: str, extra: str, spec: str) -> ModuleType:
    """Import an optional dependency, or say which extra of brecq brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SourceError(f"{spec} needs the package {module} ({error}); pip install 'brecq[{extra}]'") from error


def unknown_name(spec: str, name: str, known: Iterable[str], where: str, what: str = "model") -> SourceError:
    """The error for a name that does not exist, with the nearest ones that do."""
    close = get_close_matches(name, list(known), n=5, cutoff=0.5)
    hint = f"; did you mean {', '.join(close)}?" if close else f"; see {where} for the names there are"
    return SourceError(f"{spec}: there is no {what} {name!r}{hint}")
