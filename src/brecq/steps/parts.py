"""Several submodules of a network, one after another, in one run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from brecq import ranks
from brecq.checkpoint.directory import versions
from brecq.checks import check_runs, check_weights, running
from brecq.composite import CompositeResult
from brecq.config import QuantConfig
from brecq.data.calls import Calls, collect_calls
from brecq.data.dataset import Dataset
from brecq.data.dataset import check as check_data
from brecq.data.pictures import Pictures
from brecq.data.windows import windowed
from brecq.devices import on_device
from brecq.errors import ConfigError, DataError, PartitionError
from brecq.float32 import in_float32
from brecq.forward import unwrap
from brecq.placement.plan import unmatched
from brecq.progress import Progress
from brecq.reconstruct.cache import ActivationCache
from brecq.reconstruct.fisher import check_labels
from brecq.reconstruct.need import left_for_caches
from brecq.reconstruct.run import Run
from brecq.report import Report
from brecq.result import QuantResult
from brecq.steps.carry_out import carry_out
from brecq.steps.plan import Plan, check_something, make_plan, run_state, with_outliers_raised
from brecq.steps.request import Request
from brecq.steps.subject import Subject
from brecq.submodules import parts
from brecq.submodules.outside import outside

PASSES = 8
"""Passes of one part of a network, at most: those of the next one are counted from the next multiple on."""


def quantize_parts(
    model: nn.Module,
    calibration: Iterable[Any] | Tensor | Dataset | Pictures,
    names: Sequence[str],
    request: Request,
) -> CompositeResult:
    """Submodule after submodule, in the order they are called in: each is planned on what the float network gives it,
    and learned on what it receives behind the quantized ones before it."""
    names, config = parts.check_names(model, names), request.config
    check_labels(config, None, "several submodules are learned each on its own outputs, not on the network's")
    calls = collect_calls(calibration, model)
    left_out = calls.data.left_out
    model, copied = in_float32(unwrap(model))
    notes = [note for note in (calls.note, copied) if note]
    for note in notes:
        request.progress.note(note)
    notes += [f"calibration: {left_out}"] if left_out else []  # who read it has been told
    check_weights(model)
    if isinstance(calls.data, Dataset) and not calls.listed:
        check_runs(model, calls.data)
    recorded = _record(model, names, calls)
    subjects = [_subject(model, part) for part in recorded]
    plans = _plans(subjects, recorded, request)
    entries = [*(entry for plan in plans for entry in plan.scope), *outside(model, names)]
    request.progress.scope(entries)
    rooms = [left_for_caches(plan.network, config, request.device) for plan in plans]
    state = run_state(plans, calls.data, request)
    digest = calls.data.digest()
    report = Report(entries, [], config.to_dict(), 0.0, versions(), digest, samples=len(calls), notes=notes)
    interfaces = {part.name: part.interface for part in recorded}
    results: dict[str, QuantResult] = {}
    for number, (part, subject, plan) in enumerate(zip(recorded, subjects, plans, strict=True)):
        request.progress.stage(f"quantizing {part.name}")
        programs = {name: (done.converted, interfaces[name]) for name, done in results.items()}
        inputs, received = _received(model, part, programs, calls, request.device)
        cache = ActivationCache(request.device, rooms[number], request.run_dir)
        section = None if state is None else state.section(PASSES * number)
        subject = replace(subject, received=received)
        share = ranks.current().share(len(inputs[0]))
        inputs = tuple(value[share.rows] for value in inputs)
        received = None if received is None else tuple(value[share.rows] for value in received)
        run = Run(plan.network, inputs, config, cache, None, section, request.progress, received, share)
        results[part.name] = carry_out(run, subject, plan)
        results[part.name].run_state = None
        results[part.name].metadata["part"] = part.name
        if received is not None:
            results[part.name].report.behind = {part.name: list(programs)}
        _add(report, part.name, results[part.name].report)
    metadata = {} if calls.window is None else {"window": list(calls.window)}
    result = CompositeResult(results, interfaces, report, config, model, metadata)
    result.run_state = state
    return result


def _plans(subjects: Sequence[Subject], recorded: Sequence[parts.Part], request: Request) -> list[Plan]:
    requests = [
        with_outliers_raised(subject, replace(request, part=part.ends))
        for subject, part in zip(subjects, recorded, strict=True)
    ]
    silent = Progress()
    found = [
        make_plan(subject, replace(mine, progress=silent)) for subject, mine in zip(subjects, requests, strict=True)
    ]
    _check_rules(request.config, found)
    check_something(found)
    return found


def _add(report: Report, name: str, part: Report) -> None:
    """The report of part `name` to that of the whole run."""
    report.blocks += part.blocks
    report.block_forwards += part.block_forwards
    report.tensors += part.tensors
    report.behind |= part.behind
    report.outputs += [replace(each, name=f"{name}.{each.name}".rstrip(".")) for each in part.outputs]
    report.notes += [f"{name}: {note}" for note in part.notes]


def _record(model: nn.Module, names: Sequence[str], calls: Calls) -> list[parts.Part]:
    with running("the calibration data"), windowed(model, calls.window):
        found = parts.record(model, names, list(calls))
    for part in found:
        try:
            check_data(Dataset(part.inputs))
        except DataError as error:
            raise DataError(f"submodule {part.name!r}: {error}") from error
    return found


def _subject(model: nn.Module, part: parts.Part) -> Subject:
    flat = parts.Flat(part.name, model.get_submodule(part.name), part.interface)
    return Subject(flat, part.inputs, Dataset(part.inputs), None, [])


def _received(
    model: nn.Module,
    part: parts.Part,
    programs: Mapping[str, tuple[nn.Module, parts.Interface]],
    calls: Calls,
    device: torch.device,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...] | None]:
    """What the float submodule is given, and what the quantized one is in its place.

    Rows that are the network's samples are the same pictures in both. Others (regions) the network chooses anew with
    each change of what comes before: there both get what the quantized network chooses.
    """
    if not programs:
        return part.inputs, None
    behind = parts.put_back(model, programs)
    with on_device(device, behind):
        (again,) = _record(behind, [part.name], calls)
    aligned = list(part.rows) == [parts.samples_of(inputs) for inputs in calls]
    return (part.inputs, again.inputs) if aligned else (again.inputs, None)


def _check_rules(config: QuantConfig, plans: Sequence[Plan]) -> None:
    """Every rule and every named block is for some part."""
    layers = [entry.layer for plan in plans for entry in plan.scope if entry.weights]
    blocks = {spec.name for plan in plans for spec in plan.specs}
    for rule in config.rules:
        if not any(map(rule.matches, layers)):
            raise ConfigError(unmatched(rule, layers))
    for name, patterns in (config.blocks or {}).items():
        if name not in blocks:
            raise PartitionError(f"block {name!r}: {', '.join(patterns)} matches no layer of any submodule")
