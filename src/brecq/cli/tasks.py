"""The options that say what a network does, and how that is judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brecq.cli import options as o
from brecq.errors import ConfigError, DataError, first_line
from brecq.settings import DATA, setting
from brecq.tasks import TaskName

if TYPE_CHECKING:
    from torch import nn

    from brecq.cli.inputs import EvaluationData
    from brecq.config import QuantConfig
    from brecq.data import Form
    from brecq.data.annotated import Split
    from brecq.data.preprocessing import Preprocessing
    from brecq.metrics import Metric
    from brecq.sources import Source

CODE = "FILE.py:NAME"
TOKENS = 128
VALUES = ("detection", "restoration", "regression", "embeddings")
"""Tasks whose networks return no scores of classes, whatever the shapes of their outputs."""


@dataclass(frozen=True, kw_only=True)
class Judged(o.Checked):
    """What the network does, and what is measured of it."""

    # fmt: off
    task: TaskName | None = setting(
        None,
        "what the network does, which decides how data is read (detection: COCO's JSON or YOLO's YAML and labels; "
        "segmentation: VOC or images and masks; restoration: pairs; language: text) and what is measured",
        panel=DATA,
    )
    metric: str | None = setting(
        None, "a metric of your own: a function of outputs and targets, or a class with update and compute",
        metavar=CODE, panel=DATA,
    )
    decode: str | None = setting(
        None, "your function from what the network returns to what the task's metric takes, such as boxes",
        metavar=CODE, panel=DATA,
    )
    tokenizer: str | None = setting(
        None, "for text: a tokenizer of transformers (its name or folder), or your function", metavar=f"NAME|{CODE}",
        panel=DATA,
    )
    tokens: int | None = setting(
        None, f"for text: tokens a sample. By default {TOKENS}, or as many as the result was quantized with", low=2,
        high=2**20, metavar="N", panel=DATA,
    )
    # fmt: on

    def made(self, output: str | None = None) -> Metric | None:
        """The metric; `None` leaves class scores to speak for themselves. Runs the files that it names.

        `output`: the output that a task's metric looks at, of several.
        """
        from brecq.metrics import load_callable, load_metric, task_metric

        self.check_task()
        chosen = {} if output is None else {"output": output}
        if chosen and (self.metric is not None or self.task == "detection"):
            raise ConfigError("--output is for tasks that look at one output; drop it, and choose in a function")
        decode = None if self.decode is None else load_callable("--decode", self.decode)
        if self.metric is not None:
            return load_metric(self.metric)
        return None if self.task is None else task_metric(self.task, decode, **chosen)

    def check_task(self) -> None:
        """Raise `ConfigError` for what belongs to another task: this may come from the network, not from an option."""
        if self.decode is not None and self.task is None:
            raise ConfigError("--decode belongs to a task; give --task too")
        if self.tokenizer is not None and self.task != "language":
            raise ConfigError("--tokenizer belongs to text; give --task language too")
        if self.tokens is not None and self.task != "language":
            raise ConfigError("--tokens belongs to text; give --task language too")

    def settled(self, config: QuantConfig, source: Source) -> tuple[Judged, QuantConfig]:
        """With the task of the source where nothing was said, and the configuration with what the task settles."""
        judged = self
        if self.task is None and self.metric is None:
            judged = dataclasses.replace(self, task=source.task)
        if judged.task in VALUES and config.outputs == "auto":
            config = config.replace(outputs="values")
        return judged, config

    def form(self, split: Split, model: nn.Module | None) -> Form:
        """How data is read for the network, where it is known."""
        from brecq.data import Form

        tokenizer = None if self.tokenizer is None else _tokenizer(self.tokenizer)
        task = self.task or (None if self.metric is None else "any")
        return Form(task, split, tokenizer, self.tokens or TOKENS, model)

    def remembered(self) -> dict[str, Any]:
        """What a result keeps of it, for `like`."""
        return {"task": self.task, "tokens": (self.tokens or TOKENS) if self.task == "language" else None}

    def like(self, metadata: Mapping[str, Any]) -> Judged:
        """With what a result remembers, where nothing was said."""
        task = metadata.get("task") if self.task is None else self.task
        tokens = metadata.get("tokens") if self.tokens is None and task == "language" else self.tokens
        return dataclasses.replace(self, task=task, tokens=tokens)


def whole_pictures(preprocessing: Preprocessing | None, task: str | None) -> Preprocessing | None:
    """For detection a preprocessing that cuts nothing off: objects outside a central crop could never be found."""
    cuts = preprocessing is not None and preprocessing.fit == "crop" and preprocessing.resize is not None
    return preprocessing.replace(fit="corner") if preprocessing and cuts and task == "detection" else preprocessing


def check_answers(path: Path, data: EvaluationData, metric: Metric | None) -> None:
    """Raise `ConfigError` for targets that nothing is done with, `DataError` for those that say nothing."""
    from brecq.metrics.judge import check_counted

    if metric is None and data.parts[0].targets is not None:
        raise ConfigError(
            f"what {path} says to be right are no class indices; say what the network does (--task), or give a metric "
            "of your own (--metric)"
        )
    if data.complete:
        try:
            check_counted(metric, [part.answers for part in data.parts])
        except DataError as error:
            raise DataError(f"{path}: {error}") from error


def _tokenizer(spec: str) -> Any:
    from brecq.metrics import load_callable

    if ".py:" in spec:
        return load_callable("--tokenizer", spec)
    from brecq.sources.source import require

    auto = require("transformers", "hf", f"--tokenizer {spec}").AutoTokenizer
    try:
        return auto.from_pretrained(spec)
    except (OSError, ValueError) as error:
        reason = first_line(error).rstrip(".")
        raise ConfigError(f"--tokenizer {spec}: {reason}; give a name of the hub, a folder, or {CODE}") from error
