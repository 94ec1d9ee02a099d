"""What will be done, before anything is learned: capture, quantizers, blocks, and the checks of all of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule

from brecq import ranks
from brecq.capture.export import capture, example_batch
from brecq.checkpoint import program
from brecq.checkpoint.resume import RunState, agree, fingerprint
from brecq.data.dataset import Dataset
from brecq.data.extremes import unlike
from brecq.data.pictures import Pictures
from brecq.devices import move
from brecq.errors import CheckpointError, ConfigError
from brecq.forward import Inputs, tensors
from brecq.notice import warn
from brecq.partition import check
from brecq.partition.blocks import Network, extract
from brecq.partition.cut import BlockSpec, partition
from brecq.placement import evidence
from brecq.placement.prepare import prepare
from brecq.placement.quantizer import BrecqQuantizer
from brecq.placement.scope import scope
from brecq.precision.delivery import check_layers, start_from
from brecq.reconstruct import alone
from brecq.report import ScopeEntry
from brecq.steps.request import Request
from brecq.steps.subject import Subject


@dataclass(frozen=True)
class Plan:
    """What will be done. `started`: codes that weights start from, by the names of the fake-quantizers."""

    network: Network
    specs: list[BlockSpec]
    scope: list[ScopeEntry]
    started: dict[str, Tensor]


def make_plan(subject: Subject, request: Request) -> Plan:
    """Capture the network, place quantizers in it, cut it into blocks, and check each of these.

    Raises:
        CaptureError, ConfigError, PartitionError, CheckpointError: it cannot be quantized so, or not be saved.
    """
    progress, device = request.progress, request.device
    progress.stage("capturing the network")
    arguments = subject.arguments
    prepared, specs = prepared_blocks(subject.model, example_batch(arguments), request, arguments)
    _check_savable(prepared, tensors(example_batch(arguments)), request, subject.notes)
    few = evidence.few_values(prepared, min(len(subject.data), request.config.recipe.range_samples))
    for doubt in (unlike(arguments, subject.data), few):
        if doubt is not None:
            subject.notes.append(doubt)
            warn(doubt)
    move(prepared, device)
    started = start_from(prepared, request.learned)
    entries = scope(prepared, specs)
    progress.scope(entries)
    network = extract(prepared, specs)
    check.check_blocks(network, [value.to(device) for value in tensors(check.few(arguments))])
    return Plan(network, specs, entries, started)


def with_outliers_raised(subject: Subject, request: Request) -> Request:
    """With `auto_high_precision`, rules for the tensors that lose too much; the configuration's own rules win."""
    config, progress, device = request.config, request.progress, request.device
    if not config.auto_high_precision:
        return request
    progress.stage("measuring what each tensor loses alone")
    prepared, specs = prepared_blocks(subject.model, example_batch(subject.arguments), request)
    move(prepared, device)
    network = extract(prepared, specs)
    found = ranks.current().first(lambda: alone.losses(network, tensors(subject.arguments), config, device))
    named = [
        f"{each.kind} {each.tensor} ({each.bits} bits, {each.output_sqnr:.1f} dB alone)"
        for each in alone.outliers(found)
    ]
    note = f"raised: {'; '.join(named)}" if named else "no tensor loses too much alone: none was raised"
    progress.note(note)
    subject.notes.append(note)
    return replace(request, config=replace(config, rules=(*alone.raised(found), *config.rules)))


def _check_savable(prepared: GraphModule, examples: Sequence[Any], request: Request, notes: list[str]) -> None:
    """Refuse, before anything is learned, what will be saved and cannot; note it where nobody asked for a folder."""
    try:
        program.check(prepared, examples)
    except CheckpointError as error:
        if request.run_dir is not None:
            raise
        notes.append(f"this result can be used and exported, but not saved: {error}")


def prepared_blocks(
    model: nn.Module, examples: Inputs, request: Request, checked_on: Inputs | None = None
) -> tuple[GraphModule, list[BlockSpec]]:
    """The network with fake-quantizers, and its blocks; `checked_on`: inputs that each graph has to agree on."""
    config, allocation = request.config, request.allocation
    captured = capture(model, examples, any_size=request.part is not None)
    reference = None if checked_on is None else check.FloatNetwork(model, checked_on)
    if reference is not None:
        reference.check(captured, "the captured graph")
    if allocation is not None:
        check_layers(captured, allocation)
    prepared = prepare(captured, request.quantizer or BrecqQuantizer(config, request.part))
    if reference is not None:
        reference.check(prepared, "the prepared graph")
    specs = partition(prepared, config.granularity, config.blocks, part=request.part is not None)
    for spec in specs:
        if spec.joined:
            warn(f"{spec.joined}: they are learned together, with more memory and time")
    return prepared, specs


def run_state(plans: Sequence[Plan], data: Dataset | Pictures, request: Request) -> RunState | None:
    """Where finished blocks are saved; `None` where nobody asked.

    Raises:
        CheckpointError: there is no such run to resume, or the folder cannot be used.
        ConfigError: the processes of the run were given different things.
    """
    config, run_dir = request.config, request.run_dir
    if run_dir is None and ranks.current().size == 1:
        return None
    relevant = {key: value for key, value in config.to_dict().items() if key != "memory_budget"}
    relevant["recipe"] = {k: v for k, v in relevant["recipe"].items() if not k.startswith("tun")}  # of no block
    blocks = [f"{block.name}: {', '.join(block.layers)}" for plan in plans for block in plan.network.blocks]
    tensors = [(i, plan.network.graph.state_dict() | plan.started) for i, plan in enumerate(plans)]
    weights = {f"{i or ''}{name}": value for i, named in tensors for name, value in named.items()}
    what = fingerprint(relevant, weights, data.digest(), blocks)
    agree(what)
    return RunState(run_dir, what, resume=request.resume) if run_dir is not None else None


def check_something(plans: Sequence[Plan]) -> None:
    """Raise `ConfigError` unless some layer computes on something quantized."""
    layers = [entry for plan in plans for entry in plan.scope if entry.weights]
    if all(entry.weights == entry.inputs == "float" for entry in layers):
        raise ConfigError(
            "nothing to quantize: weights and activations of every layer stay in float; drop the rule that says so "
            "(--set), or lower the bits"
        )
