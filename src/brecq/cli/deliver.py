"""What `brecq quantize` leaves: the result, how it compares, and its page."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from brecq.cli.events import log
from brecq.cli.inputs import EvaluationData, tell, which_parts
from brecq.cli.job import Job
from brecq.cli.prepare import Prepared
from brecq.cli.render import ResultRow, describe_evaluation, result_table
from brecq.cli.report import collect_pictures, measured, write_run_page

if TYPE_CHECKING:
    from rich.console import Console

    from brecq.data import Dataset
    from brecq.data.pictures import Pictures
    from brecq.metrics import Metric
    from brecq.result import QuantResult
    from brecq.sources import Source


def deliver(job: Job, ready: Prepared, result: QuantResult, floating: ResultRow, console: Console) -> None:
    """Save the result, measure it beside rounding to nearest, and write its page."""
    folder, source, preprocessing = job.output.output, ready.source, ready.preprocessing
    result.metadata.update(describe_source(job, source), preprocessing=preprocessing and preprocessing.to_dict())
    result.metadata.update(job.judged.remembered())
    for part in result.parts.values():
        part.metadata["part_of"] = job.spec
    state, result.run_state = result.run_state, None  # the run is kept until all is written
    result.save(folder)
    try:
        measure(job, ready, result, floating, console)
    except BaseException:  # an interruption too
        tell(console, "saved", f"{folder}; its evaluation and its report are not complete")
        raise
    if ready.made is not None:
        ready.made.forget_batches()
    if state is not None:
        state.clear()


def measure(job: Job, ready: Prepared, result: QuantResult, floating: ResultRow, console: Console) -> None:
    """Measure a saved result beside rounding to nearest, and write what came out, and its page, into its folder."""
    from brecq import ranks

    folder, source = job.output.output, ready.source
    rows = [dataclasses.replace(floating, size=result.float_bytes())]
    with ranks.alone():
        rows += quantized_rows(job, source, ready.calibration, ready.evaluation, ready.metric, result)
    console.print(result_table(rows))
    log("result", rows=[{"name": row.name, "metrics": measured(row), "bytes": row.size, "seconds": row.seconds}
                        for row in rows])  # fmt: skip
    last = rows[-1].evaluation
    # of plain class scores the table says it all
    if last is not None and (last.scored or last.outputs or last.metrics or last.notes or not last.shown()):
        tell(console, "measured", describe_evaluation(last))
    result.report.measured = {
        row.name: {name: value for name, value in measured(row).items() if math.isfinite(value)}
        for row in rows
        if row.evaluation is not None
    }
    if result.report.measured:
        result.report.notes += [f"evaluation: {note}" for note in ([] if last is None else last.notes)]
        result.save(folder)
    tell(console, "saved", str(folder))
    log("saved", folder=str(folder))
    pictures = collect_pictures(
        (source.model, result.model), ready.calibration, ready.evaluation, ready.preprocessing, job.machine.device,
        ready.metric, (job.calibration.calib, job.evaluation.eval),
    )  # fmt: skip
    write_run_page(console, result, folder, rows, pictures)


def quantized_rows(
    job: Job,
    source: Source,
    calibration: Dataset | Pictures,
    evaluation: EvaluationData | None,
    metric: Metric | None,
    result: QuantResult,
) -> list[ResultRow]:
    """The rows of the final table below the float one; rounding to nearest only where it can be evaluated."""
    import brecq

    size = result.weight_bytes()
    learned = job.config.method != "rtn"
    name = "reconstructed" if learned else "rounding to nearest"
    if evaluation is None:
        return [ResultRow(name, None, size, result.report.seconds)]
    rows: list[ResultRow] = []
    device, model = job.machine.device, source.model
    how: dict[str, Any] = {
        "metric": metric, "reference": model, "device": device,
        "class_axis": job.config.class_axis,
    }  # fmt: skip
    if learned:
        config = dataclasses.replace(
            result.config, method="rtn", auto_high_precision=False
        )  # an allocation's bits included
        nearest = brecq.quantize(model, calibration, config, device=device, **which_parts(job.submodules, source))
        found = brecq.evaluate(nearest.model, evaluation, **how)
        rows.append(ResultRow("rounding to nearest", found, size, nearest.report.seconds))
    found = brecq.evaluate(result.model, evaluation, **how)
    rows.append(ResultRow(name, found, size, result.report.seconds))
    return rows


def describe_source(job: Job, source: Source) -> dict[str, Any]:
    """What `brecq evaluate` needs to find the float model again."""
    weights = None if job.checkpoint.weights is None else str(job.checkpoint.weights.resolve())
    return {"source": {"spec": job.spec, "weights": weights, "submodule": None, **which_parts(job.submodules, source)}}
