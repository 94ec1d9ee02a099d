"""What networks do, by name."""

from __future__ import annotations

from typing import Literal, get_args

TaskName = Literal[
    "classification", "detection", "segmentation", "restoration", "regression", "embeddings", "language"
]  # fmt: skip
TASKS: tuple[str, ...] = get_args(TaskName)
