"""Tasks by name, as options spell them."""

from __future__ import annotations

from typing import Any

from brecq.errors import ConfigError
from brecq.metrics.base import Decode, Task
from brecq.metrics.classification import Classification
from brecq.metrics.detection import Detection
from brecq.metrics.embeddings import Embeddings
from brecq.metrics.language import LanguageModel
from brecq.metrics.restoration import Regression, Restoration
from brecq.metrics.segmentation import Segmentation


def task_metric(name: str, decode: Decode | None = None, **settings: Any) -> Task:
    """The metric of a task.

    Raises:
        ConfigError: there is no such task.
    """
    known: dict[str, type[Task]] = {
        "classification": Classification,
        "detection": Detection,
        "segmentation": Segmentation,
        "restoration": Restoration,
        "regression": Regression,
        "embeddings": Embeddings,
        "language": LanguageModel,
    }
    if name not in known:
        raise ConfigError(f"the task is {name!r}; choose one of {', '.join(known)}")
    made: Task = known[name](decode=decode, **settings)
    return made
