"""Programs that `torch.export.save` wrote (`.pt2`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from brecq.errors import SourceError
from brecq.sources.file import batch_of_two
from brecq.sources.source import Source
from brecq.sources.weights import load_weights, read_weights
from brecq.storage import pt2

_REMEDY = "export the model to a new file, or pass trust_pickle if you trust its origin"


def load_program(path: Path, spec: str, weights: Path | None, trust_pickle: bool) -> Source:
    program = pt2.load_program(path, SourceError, trust=trust_pickle, remedy=_REMEDY)
    _check_eval_mode(program, path)
    _check_dynamic_batch(program, path)
    inputs, keywords = program.example_inputs or (_zeros(program), {})
    if keywords or not all(isinstance(x, Tensor) for x in inputs):
        raise SourceError(
            f"{path} takes keyword arguments or non-tensors; export a model that takes tensors, in order"
        )
    model = program.module()
    if weights is not None:
        load_weights(model, read_weights(weights, trust_pickle=trust_pickle), weights)
    return Source(path.stem, model, None, tuple(batch_of_two(x) for x in inputs), spec)


def _zeros(program: torch.export.ExportedProgram) -> tuple[Tensor, ...]:
    """Inputs of the shapes that a program takes which keeps no example of them, in a batch of two."""
    names = set(program.graph_signature.user_inputs)
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    return tuple(torch.zeros((2, *map(int, value.shape[1:])), dtype=value.dtype) for value in values)


def _check_eval_mode(program: torch.export.ExportedProgram, path: Path) -> None:
    # positions of the flag `training` (`train`)
    flags = {torch.ops.aten.batch_norm.default: 5, torch.ops.aten.dropout.default: 2}
    for node in program.graph.nodes:
        position = flags.get(node.target)
        if position is not None and len(node.args) > position and node.args[position]:
            raise SourceError(
                f"{path} was exported in training mode ({node.name}); call model.eval() before torch.export.export"
            )


def _check_dynamic_batch(program: torch.export.ExportedProgram, path: Path) -> None:
    user_inputs = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.op != "placeholder" or node.name not in user_inputs or not isinstance(value, Tensor) or not value.ndim:
            continue
        batch: Any = value.shape[0]
        if not isinstance(batch, torch.SymInt):
            raise SourceError(
                f"{path} was exported for batches of exactly {batch} ({node.name}); export it with "
                "dynamic_shapes={'" + node.name + "': {0: torch.export.Dim('batch')}}"
            )
