"""`brecq report` and `brecq compare`: results as HTML pages."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from brecq.cli.inputs import tell
from brecq.cli.parsing import require_path, typed
from brecq.cli.render import make_console
from brecq.errors import ConfigError, DataError

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

    from brecq.cli.inputs import EvaluationData
    from brecq.cli.render import ResultRow
    from brecq.data import Dataset, Preprocessing
    from brecq.data.pictures import Pictures
    from brecq.metrics import Detection, Metric
    from brecq.page.record import Record
    from brecq.result import QuantResult

PAGE, COMPARISON = "report.html", "compare.html"


def report(
    path: Annotated[Path, typer.Argument(metavar="RESULT", help="The folder that `brecq quantize` wrote.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="The page. Default: report.html in RESULT.")
    ] = None,
    node_data: Annotated[
        Path | None,
        typer.Option(
            "--node-data",
            metavar="FILE",
            help="Also error, bits and bytes per node of this exported ONNX file, for Model Explorer, in RESULT.",
        ),
    ] = None,
) -> None:
    """Write the report of a saved RESULT as one HTML page.

    brecq report out/

    brecq report out/ --node-data model.onnx    # and data to color its nodes by in Model Explorer
    """
    require_path("RESULT", path)
    require_path("--node-data", node_data, file=True)

    import brecq
    from brecq.page.record import Record
    from brecq.page.render import write_page

    result = brecq.load(path)
    page = write_page(result, output or path / PAGE, Record.load(path))
    tell(make_console(), "saved", str(page))
    if node_data is not None:
        from brecq.page.node_data import write_node_data

        tell(make_console(), "node data", ", ".join(map(str, write_node_data(result, node_data, path))))


def collect_pictures(
    networks: tuple[nn.Module, nn.Module],
    calibration: Dataset | Pictures,
    evaluation: EvaluationData | None,
    preprocessing: Preprocessing | None,
    device: str,
    metric: Metric | None,
    files: tuple[Path | None, Path | None],
) -> Record:
    """What the page shows of the data; `networks`: the float one and the quantized one. `metric`: of their task,
    `None` for class scores. `files`: where data for calibration and evaluation are from."""
    from brecq.checks import check_device
    from brecq.data import Dataset
    from brecq.metrics import Detection, Task
    from brecq.page import pictures
    from brecq.page.record import Record

    shown = [] if preprocessing is None else pictures.thumbnails_of(calibration, preprocessing)
    data = None if evaluation is None else evaluation.parts[0]
    found = Record(calibration=shown)
    if isinstance(metric, Detection):
        try:
            boxed = pictures.detections(
                *networks, data or calibration, metric.boxes, metric.sure, preprocessing, check_device(device),
                label_names(metric, files),
            )  # fmt: skip
        except DataError:
            if data is not None:
                raise
            return found  # heads that need --decode, which goes with --eval: there are no boxes to draw
        return dataclasses.replace(found, detected=boxed)
    if not isinstance(data, Dataset) or (isinstance(metric, Task) and metric.name != "classification"):
        return found
    changed, compared = pictures.changed_decisions(*networks, data, preprocessing, check_device(device))
    return dataclasses.replace(found, changed=changed, compared=compared)


def label_names(metric: Detection, files: tuple[Path | None, Path | None]) -> dict[int, str]:
    """What the labels of a detector are called, where its data says so: those for evaluation, or for calibration."""
    from brecq.data.boxes import class_names

    calibration, evaluation = files
    for file, split in ((evaluation, "val"), (calibration, "train")):
        classes = {} if file is None else class_names(file, split)  # type: ignore[arg-type]
        if classes:
            by_category = metric.labels == "category"
            return {category if by_category else index: name for index, (category, name) in classes.items()}
    return {}


def write_run_page(
    console: Console, result: QuantResult, folder: Path, rows: Sequence[ResultRow], pictures: Record
) -> None:
    """Keep what a run measured in its folder, and write its page there."""
    from brecq.page.record import Row
    from brecq.page.render import write_page

    record = dataclasses.replace(
        pictures,
        command=typed(),
        rows=[Row(row.name, measured(row), row.size, row.seconds) for row in rows],
        samples=max((row.evaluation.samples for row in rows if row.evaluation is not None), default=0),
    )
    record.save(folder)
    tell(console, "report", str(write_page(result, folder / PAGE, record)))


def measured(row: ResultRow) -> dict[str, float]:
    """What was measured of a network, by the name it is shown under."""
    return {} if row.evaluation is None else row.evaluation.shown()


def compare(
    paths: Annotated[list[Path], typer.Argument(metavar="RESULT...", help="Folders that `brecq quantize` wrote.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The page.")] = Path(COMPARISON),
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
) -> None:
    """Put several saved results side by side on one HTML page.

    brecq compare w8/ w4/ w2/
    """
    if len(paths) < 2:
        raise ConfigError("one result is nothing to compare; give at least two folders")
    for path in paths:
        require_path("RESULT", path)
    if os.path.exists(output) and not force:
        raise ConfigError(f"{str(output)!r} exists; replace it with --force, or name another file with -o")

    import brecq
    from brecq.page.compare import compare_page, shortest_names
    from brecq.page.record import Record
    from brecq.page.render import write_text

    names = shortest_names(paths)
    results = [(name, brecq.load(path), Record.load(path)) for name, path in zip(names, paths, strict=True)]
    write_text(output, compare_page(results))
    tell(make_console(), "saved", str(output))
