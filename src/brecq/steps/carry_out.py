"""What a plan asks for, done: blocks learned, the network converted and checked, the report."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.fx import GraphModule

from brecq import ranks
from brecq.capture.export import example_batch
from brecq.checkpoint.directory import versions
from brecq.config import QuantConfig
from brecq.converted import ranges
from brecq.converted.convert import convert
from brecq.devices import device_of, move
from brecq.forward import tensors
from brecq.graph.outputs import weakest
from brecq.partition import check
from brecq.placement import evidence, returned
from brecq.placement.losses import output_loss, tensor_losses
from brecq.placement.noise import SAMPLES, tensor_noise
from brecq.placement.quantizer import activation_scheme
from brecq.placement.scope import float_weights
from brecq.quant import kernels
from brecq.quant.fake_quant import Mode, set_mode
from brecq.reconstruct import alone, passes
from brecq.reconstruct.run import Run
from brecq.reconstruct.sizes import batch_size
from brecq.report import Report
from brecq.result import QuantResult
from brecq.steps.plan import Plan
from brecq.steps.subject import Subject


def carry_out(run: Run, subject: Subject, plan: Plan) -> QuantResult:
    """Learn block after block, and convert."""
    with run.working():
        reports, forwards = passes.run(run)
    run.progress.stage("converting")
    result = _convert(run, subject, plan)
    result.report.blocks, result.report.block_forwards = reports, forwards
    return result


def _convert(run: Run, subject: Subject, plan: Plan) -> QuantResult:
    """The result, and the report as far as the converted network tells it."""
    prepared, device, recipe = plan.network.graph, run.cache.device, run.config.recipe
    set_mode(prepared, Mode.HARD)
    received, first = run.inputs if run.received is None else run.received, ranks.current().first
    everything = tensors(subject.arguments)  # of all processes: the first may have fewer samples than are looked at
    behind = everything if subject.received is None else subject.received
    pair = [[value[:SAMPLES].to(device) for value in values] for values in (everything, behind)]
    noise, outputs = first(lambda: tensor_noise(prepared, *pair))
    lossy = first(lambda: _most_lossy(prepared, run.config, [value[:2].to(device) for value in everything]))
    set_mode(prepared, Mode.HARD)
    converted = convert(prepared)
    few = [value[: check.SAMPLES].to(device) for value in received]
    differs = first(lambda: check.check_converted(prepared, converted, few))
    signed = activation_scheme(run.config) == "signed"
    left = ranges.record(converted, received, device, recipe.range_norm, recipe.range_candidates, signed, run.share)
    move(converted, device_of(subject.model))
    left_in_float = float_weights(plan.scope)
    notes = [f"fake quantization kernels: {kernels.backend(device)}", *([differs] if differs else []), *subject.notes]
    if run.config.method == "reconstruct" and recipe.steps and recipe.batch_size is None:
        notes.append(f"learned from {batch_size(recipe, prepared, device)} samples a step")
    notes += [f"parameters in float: {left_in_float}"] if left_in_float else []
    notes += dict.fromkeys(run.cache.notes)
    for note in lossy:
        run.progress.note(note)
    notes += lossy
    notes += [spec.joined for spec in plan.specs if spec.joined]
    far = evidence.outliers(prepared)
    for note in far:
        run.progress.note(note)
    notes += [*far, *weakest(outputs, plan.scope), *returned.describe(prepared)]
    if plan.started:
        notes.append(f"{len(plan.started)} weights started from the codes that the sensitivity table learned")
    report = Report(
        plan.scope, [], run.config.to_dict(), 0.0, versions(), subject.data.digest(), samples=len(subject.data),
        notes=notes, tensors=noise, outputs=outputs,
    )  # fmt: skip
    examples = tensors(example_batch(subject.arguments))
    prefix = getattr(subject.model, "wrapped", None)  # of a wrapper around another library's model
    return QuantResult(
        converted, report, run.config, examples,
        metadata={"wrapped": prefix} if isinstance(prefix, str) else {}, wrapped=subject.wrapped, run_state=run.state,
        ranges=left,
    )  # fmt: skip


def _most_lossy(prepared: GraphModule, config: QuantConfig, inputs: Sequence[Tensor]) -> list[str]:
    """Of a network of 8 bits whose outputs are far off: the tensors that cost most, and what to do about them."""
    if (
        min(config.weights, config.activations) < 8
        or max(output_loss(prepared, inputs).values(), default=0.0) < alone.LIMIT
    ):
        return []
    found = [each for each in tensor_losses(prepared, inputs) if each.worst > alone.LIMIT / 4][:3]
    set_mode(prepared, Mode.HARD)
    return [
        f"{each.kind} {each.tensor} alone leaves an output {each.output_sqnr:.1f} dB at {each.bits} bits: "
        f"{alone.remedy(each)}, or --auto-high-precision"
        for each in found
    ]
