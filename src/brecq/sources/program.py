"""Programs that `torch.export.save` wrote (`.pt2`)."""

from __future__ import annotations

import ast
import io
import json
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from brecq.errors import SourceError
from brecq.sources.file import batch_of_two
from brecq.sources.source import Source
from brecq.sources.weights import load_weights, read_weights

_CONSTRUCTOR = re.compile(r"[A-Z]\w*|floor|ceiling|sqrt")
_SYMBOL = re.compile(r"[A-Za-z0-9.+-][\w.+-]*")
_ARITHMETIC = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Tuple, ast.List, ast.keyword,
    ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context,
)  # fmt: skip


def load_program(path: Path, spec: str, weights: Path | None, trust_pickle: bool) -> Source:
    if not path.is_file():
        raise SourceError(f"there is no file {path}; check the path")
    if not trust_pickle:
        unsafe = find_unsafe(path)
        if unsafe:
            raise SourceError(
                f"{path} holds {unsafe}, and opening it could run any code; export the model to a new file, "
                "or pass trust_pickle if you trust its origin"
            )
    try:
        program = torch.export.load(path)
    # whatever its many deserializers stumble over
    except Exception as error:
        raise SourceError(
            f"{path} is not a readable torch.export program ({type(error).__name__}: {error}); "
            f"export it again with torch {torch.__version__}"
        ) from error
    _check_eval_mode(program, path)
    _check_dynamic_batch(program, path)
    inputs, keywords = program.example_inputs or ((), {})
    if keywords or not all(isinstance(x, Tensor) for x in inputs):
        raise SourceError(
            f"{path} takes keyword arguments or non-tensors; export a model that takes tensors, in order"
        )
    model = program.module()
    if weights is not None:
        load_weights(model, read_weights(weights, trust_pickle=trust_pickle), weights)
    return Source(path.stem, model, None, tuple(batch_of_two(x) for x in inputs), spec)


def find_unsafe(path: Path) -> str | None:
    """What in the archive would be unpickled or executed by `torch.export.load`, or `None`.

    `torch.export.load` falls back to unrestricted pickle on its own and has SymPy evaluate shapes, so the archive is
    looked through first.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if found := _unsafe_member(archive, name):
                    return found
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise SourceError(f"{path} is not a torch.export program: {error}; save one with torch.export.save") from error
    return None


def _unsafe_member(archive: zipfile.ZipFile, name: str) -> str | None:
    if "/aotinductor/" in name or name.endswith((".so", ".dll")):
        return f"compiled code ({name})"
    if name.endswith(".json"):
        return _unsafe_json(json.loads(archive.read(name)), name)
    if name.endswith(".pt"):
        try:
            torch.load(io.BytesIO(archive.read(name)), weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError):
            return f"pickled objects ({name})"
    return None


def _unsafe_json(value: Any, name: str) -> str | None:
    if isinstance(value, dict):
        if value.get("use_pickle") or str(value.get("path_name", "")).startswith(("custom_obj", "opaque")):
            return f"pickled objects ({value.get('path_name')})"
        expression = value.get("expr_str")
        if isinstance(expression, str) and not _is_plain_shape(expression):
            return f"the shape {expression!r} ({name})"
        value = list(value.values())
    if isinstance(value, list):
        return next((found for item in value if (found := _unsafe_json(item, name))), None)
    return None


def _is_plain_shape(expression: str) -> bool:
    """Whether this is arithmetic and SymPy's constructors: `2*s0 + 1`, `Max(1, Symbol('s0', integer=True))`."""
    try:
        tree = ast.parse(expression, mode="eval")
    except (SyntaxError, ValueError, RecursionError):
        return False
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            plain = isinstance(node.func, ast.Name) and bool(_CONSTRUCTOR.fullmatch(node.func.id))
        elif isinstance(node, ast.Name):
            plain = not node.id.startswith("_")
        elif isinstance(node, ast.Constant):
            plain = not isinstance(node.value, str) or bool(_SYMBOL.fullmatch(node.value))
        else:
            plain = isinstance(node, _ARITHMETIC)
        if not plain:
            return False
    return True


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
