"""`brecq evaluate`: how well a saved result does."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from brecq.cli import options as o
from brecq.cli.command import command
from brecq.cli.inputs import (
    Draw,
    EvaluationData,
    stored_preprocessing,
    tell,
    tell_data,
    tell_preprocessing,
    use_device,
)
from brecq.cli.parsing import require_data, require_path
from brecq.cli.render import describe_evaluation, make_console
from brecq.cli.tasks import Judged, check_answers
from brecq.errors import BrecqError, ConfigError, SourceError
from brecq.settings import DATA, MODEL, MOST, RUN, setting

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

_MAY_RUN_CODE = (".py:", "hub:", "hf_hub:", "local-dir:")  # Python files, and weights that timm unpickles


@dataclass(frozen=True, kw_only=True)
class Data(o.Checked):
    """What is evaluated on."""

    data: Path = setting(help="a folder of images, or .npz", metavar="PATH", panel=DATA)
    labels: Path | None = setting(None, "labels of the images", metavar="CSV", panel=DATA)
    samples: int | None = o.samples(None, "samples, chosen by --seed")
    max_skipped: float = o.max_skipped()
    batch_size: int | None = setting(
        None, "samples at a time. By default 64, fewer of large pictures", low=1, high=MOST, metavar="N", panel=RUN
    )


@dataclass(frozen=True, kw_only=True)
class Compared(o.Checked):
    """What the result is compared with, and in which form."""

    model: str | None = setting(None, "the float model to compare with", metavar="MODEL", panel=MODEL)
    reference: bool = setting(True, "compare with the float model", flags=("--reference/--no-reference",), panel=MODEL)
    output: str | None = setting(None, "the output with class scores, of several", metavar="NAME", panel=MODEL)
    integer: bool = setting(False, "evaluate what integer hardware computes, code for code", panel=MODEL)


@command
def evaluate(
    path: o.Result,
    data: Data,
    judged: Judged,
    changes: o.Changes,
    compared: Compared,
    checkpoint: o.Checkpoint,
    seed: o.Seed,
    machine: o.Machine,
    as_json: o.Json = False,
) -> None:
    """Evaluate a saved RESULT: top-1 and top-5 or a task's own metric, agreement with the float model and SQNR.

    brecq evaluate out/ --data DIR

    brecq evaluate out/ --data coco/ --task detection --decode yolo.py:decode

    brecq evaluate out/ --data DIR --metric mine.py:psnr
    """
    require_path("RESULT", path)
    check_asked(data, compared, checkpoint, machine)

    import brecq
    from brecq.data import check
    from brecq.data.signature import Signature
    from brecq.evaluation.run import try_out
    from brecq.storage.sealed import finite
    from brecq.submodules.submodule import Submodule

    console = make_console(quiet=as_json)
    use_device(machine)
    result = brecq.load(path)
    preprocessing = stored_preprocessing(result.metadata, changes.given())
    tell(console, "result", str(path))
    judged = judged.like(result.metadata)
    tell_preprocessing(console, preprocessing, judged.task, in_parts=bool(result.parts))
    metric = judged.made(compared.output)
    submodule = (result.metadata.get("source") or {}).get("submodule")
    whole = result.converted if submodule is None and not result.parts else None
    form = judged.form("val", whole)
    drawn = Draw(data.samples, seed.seed)
    dataset = EvaluationData(data.data, preprocessing, drawn, data.labels, form, data.max_skipped)
    tell_data(console, "data", data.data, dataset)
    check_answers(data.data, dataset, metric)

    if whole is not None:
        check(Signature(whole).bind(dataset.one_size()), like=result.example_inputs)
    float_model = find_reference(result.metadata, compared, checkpoint, dataset.labelled, console)
    if isinstance(result, brecq.CompositeResult) and float_model is not None:
        result.around = float_model
    quantized = brecq.simulate(result) if compared.integer else result.model
    if submodule is not None and float_model is not None:
        few = dataset.one_size().subset(slice(0, 2))
        quantized = Submodule(float_model, submodule, few.inputs).put_back(quantized)
    how: dict[str, Any] = {
        "metric": metric, "reference": float_model, "output": compared.output,
        "device": "cpu" if compared.integer else machine.device, "class_axis": result.config.class_axis,
    }  # fmt: skip
    try_out(quantized, dataset.telling(), **how)  # what does not fit is refused before all others are run
    measured = brecq.evaluate(quantized, dataset, batch_size=data.batch_size, **how)
    if as_json:
        # JSON has no infinity: an output identical to the reference's has the SQNR null and the agreement 100
        typer.echo(json.dumps(finite(dataclasses.asdict(measured))))
    else:
        tell(console, "on integers" if compared.integer else "quantized", describe_evaluation(measured))


def check_asked(data: Data, compared: Compared, checkpoint: o.Checkpoint, machine: o.Machine) -> None:
    """Raise for whatever can be known to be wrong before any work."""
    require_data("--data", data.data)
    require_path("--labels", data.labels, file=True)
    require_path("--weights", checkpoint.weights, file=True)
    if compared.integer and machine.device not in ("auto", "cpu"):
        raise ConfigError(f"--integer simulates the kernels of a CPU; drop --device {machine.device}")
    if not compared.reference and (compared.model is not None or checkpoint.weights is not None):
        raise ConfigError("--no-reference leaves the float model out; drop it, or drop --model and --weights")


def find_reference(
    metadata: dict[str, Any], compared: Compared, checkpoint: o.Checkpoint, labelled: bool, console: Console
) -> nn.Module | None:
    """The float model, as asked for or as the result remembers it; `None` where labels are enough."""
    source = metadata.get("source") or {}
    submodule = source.get("submodule") or ", ".join(source.get("submodules") or ()) or None
    if not compared.reference:
        if submodule is not None:
            raise ConfigError(f"only the submodule {submodule!r} was quantized; its float model is needed around it")
        if not labelled:
            raise ConfigError(
                "without labels or targets and without the float model nothing can be measured; give data that has "
                "some (or --labels), or drop --no-reference"
            )
        return None
    needed = submodule is not None or not labelled
    spec, file = choose_reference(metadata, compared.model, checkpoint.weights, needed=needed)
    if spec is None:
        tell(console, "reference", "none; name the float model with --model to compare with it")
        return None
    float_model = load_reference(spec, file, checkpoint.trust_pickle)
    tell(console, "reference", spec)
    return float_model


def choose_reference(
    metadata: dict[str, Any], model: str | None, weights: Path | None, *, needed: bool
) -> tuple[str | None, Path | None]:
    """The float model's spec and weights: as named, otherwise as the result remembers them.

    A result that was made from a Python file or a hub only names it: loading somebody's result must not run code,
    so such a model has to be named with `--model`. Where none is known and one is `needed`, raises `ConfigError`.
    """
    stored = metadata.get("source") or {}
    if model is not None:
        return model, weights
    spec = stored.get("spec")
    if spec is not None and not any(part in spec.lower() for part in _MAY_RUN_CODE):
        file = stored.get("weights")
        return spec, weights or (None if file is None else Path(file))
    if needed or weights is not None:
        hint = f" (it was {spec})" if spec is not None else ""
        raise ConfigError(f"the float model is needed to compare with; name it with --model MODEL{hint}")
    return None, None


def load_reference(spec: str, weights: Path | None, trust_pickle: bool) -> nn.Module:
    """The float model; a failure tells the ways around it."""
    from brecq.sources import load_source

    try:
        require_path("--weights", weights, file=True)
        return load_source(spec, weights, trust_pickle=trust_pickle).model
    except BrecqError as error:
        raise SourceError(f"{error} (name another float model with --model, or use --no-reference)") from error
