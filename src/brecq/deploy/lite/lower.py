"""From a completed program to a channels-last one, for a fixed batch size."""

from __future__ import annotations

import torch

from brecq.converted import rewrite
from brecq.deploy.complete import Completed
from brecq.deploy.formats import some
from brecq.deploy.lite import floats, joins, layers, moves  # noqa: F401 (they register their handlers)
from brecq.deploy.lite.lowering import HANDLERS, Lowering, Runtime
from brecq.deploy.lite.program import Program
from brecq.errors import ExportError
from brecq.graph import ops


def lower(completed: Completed, batch: int, runtime: Runtime) -> Program:
    """The channels-last program of a completed one. Inputs and outputs are float32, pictures [N, H, W, C].

    Args:
        batch: the batch size. runtime: what the program is for.

    Raises:
        ExportError: an operator has no form there.
    """
    refuse_unknown(completed, runtime)
    rewrite.spell_pads(completed.graph, ("reflect", "replicate"))
    lowering = Lowering(completed, runtime)
    inputs = [value[:1].expand(batch, *[-1] * (value.dim() - 1)) for value in completed.example_inputs]
    with torch.no_grad():
        lowering.run(*inputs)
    return prune(lowering.build.program)


def refuse_unknown(completed: Completed, runtime: Runtime) -> None:
    """Raise `ExportError` for operators that have no handler, all at once."""
    lowering = Lowering(completed, runtime)
    unknown: dict[str, str] = {}
    for node in completed.graph.graph.nodes:
        if node in lowering.computed and node.op == "call_function" and node.target not in HANDLERS:
            unknown.setdefault(ops.op_name(node), ops.module_path(node) or node.name)
    if unknown:
        names = some([f"{op} (in {module})" for op, module in unknown.items()])
        raise ExportError(f"{runtime.name} has no operator here for {names}; export to ONNX or OpenVINO")


def prune(program: Program) -> Program:
    """Without operators whose outputs nobody reads."""
    wanted = {*program.outputs, *(each.tensor for each in program.codes.values())}
    kept = []
    for operator in reversed(program.operators):
        if any(output in wanted for output in operator.outputs):
            kept.append(operator)
            wanted.update(each for each in operator.inputs if each is not None)
    program.operators = kept[::-1]
    return program
