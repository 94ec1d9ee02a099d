"""What is measured of a network on a task: one small protocol, a metric for each task, and one's own.

update(outputs, targets)   for every batch: what the network returned, and what is right
compute()                  numbers by name, e.g. {"mIoU %": 71.3}, the most telling first
"""

from __future__ import annotations

from brecq.metrics.base import Metric, Task
from brecq.metrics.classification import Classification
from brecq.metrics.custom import Function, load_callable, load_metric
from brecq.metrics.detection import Detection
from brecq.metrics.embeddings import Embeddings
from brecq.metrics.language import LanguageModel
from brecq.metrics.names import task_metric
from brecq.metrics.restoration import Regression, Restoration
from brecq.metrics.segmentation import Segmentation
from brecq.tasks import TASKS, TaskName

__all__ = [
    "TASKS",
    "Classification",
    "Detection",
    "Embeddings",
    "Function",
    "LanguageModel",
    "Metric",
    "Regression",
    "Restoration",
    "Segmentation",
    "Task",
    "TaskName",
    "load_callable",
    "load_metric",
    "task_metric",
]
