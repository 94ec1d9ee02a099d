"""`.pt2` files of `torch.export.save`, read without running what is in them. The only door to `torch.export.load`.

PyTorch unpickles members, looks functions up by any dotted name, has SymPy evaluate strings, imports modules that a
tree specification names, and pastes names into the code of `forward`. Here an archive is read with Python's `zipfile`,
each member and each field is checked against what `torch.export.save` writes for tensors and operators, and only what
was checked is written into an archive of its own, which is what PyTorch opens: it never sees the file.
"""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.pt2_archive import PT2ArchiveWriter

from brecq.errors import BrecqError
from brecq.names import is_variable, unwritable
from brecq.storage.operators import find_operator

_MODEL = "models/model.json"
_WEIGHTS, _CONSTANTS = "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"
_INPUTS = "data/sample_inputs/model.pt"
_EXTRA = "extra/"
_TENSOR = re.compile(r"data/weights/weight_\d+|data/constants/tensor_\d+")
_IGNORED = re.compile(
    r"\.data/.*|\.format_version|\.storage_alignment|byteorder|archive_format|archive_version|version"
)

_MEMBER = re.compile(r"[\w.\-]+(/[\w.\-]+)*")
_WORD = re.compile(r"[A-Za-z_]\w*|", re.ASCII)
_TEXT = re.compile(r"[\w.:/+\-@ ]*")
_SYMBOL = re.compile(r"[a-z]+\d+", re.ASCII)
_LITERAL = re.compile(r"[a-z]+\d+|-?\d{1,20}(\.\d{0,20})?", re.ASCII)  # Symbol('s0'), Float('1.5')

_HIGHER_ORDER = {"wrap_with_set_grad_enabled", "wrap_with_autocast", "cond", "while_loop"}
_FORBIDDEN = {"as_custom_obj", "custom_obj", "as_operator", "as_opaque_obj"}
_NAMES = {"name", "as_name"}
_PATHS = {"parameter_name", "buffer_name", "tensor_constant_name"}
_OF_NAMES = {"tensor_values", "sym_int_values", "sym_float_values", "sym_bool_values", "custom_obj_values"}
_FREE_TEXT = {"as_string", "as_strings", "nn_module_stack"}  # never evaluated: literals, and names of modules
_CONTAINERS = {"builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}

_FUNCTIONS = {
    "Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Mod", "FloorDiv", "PythonMod",
    "CleanDiv", "CeilDiv", "ModularIndexing", "Where", "CeilToInt", "FloorToInt", "TruncToInt", "TruncToFloat",
    "RoundToInt", "floor", "ceiling", "ToFloat", "IntTrueDiv", "FloatTrueDiv", "PowByNatural", "FloatPow", "Identity",
    "Equality", "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan", "And", "Or", "Not",
}  # fmt: skip
_POWERS = {"Pow", "PowByNatural", "FloatPow"}
_ARITHMETIC = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.keyword, ast.Load, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv,
    ast.Mod, ast.USub, ast.Tuple,
)  # fmt: skip


class Unsafe(ValueError):
    """The archive holds what could run code, or what brecq does not know; the message says what."""


def load_program(
    path: Path,
    raises: type[BrecqError],
    *,
    trust: bool = False,
    remedy: str = "",
    extra: dict[str, Any] | None = None,
) -> ExportedProgram:
    """The program of a file, with its example inputs where it has them.

    Args:
        trust: open the file as it is: it may run any code. remedy: what a refusal proposes. extra: where to put texts
            that were saved beside the program, by name.

    Raises:
        `raises`: the file is missing, is no such program, or holds what could run code.
    """
    if not os.path.isfile(path):
        raise raises(f"there is no file {path}; check the path")
    inputs: Any = None
    source: Any = path
    if not trust:
        try:
            source, inputs = _checked(path, {} if extra is None else extra)
        except Unsafe as error:
            raise raises(f"{path} holds {error}, and opening it could run any code; {remedy}") from None
        except (zipfile.BadZipFile, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise raises(f"{path} is not a torch.export program: {error}; save one with torch.export.save") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.load(source, extra_files=extra if trust else None)
    except Exception as error:  # whatever its many deserializers stumble over
        raise raises(
            f"{path} is not a readable torch.export program ({type(error).__name__}: {error}); "
            f"export it again with torch {torch.__version__}"
        ) from error
    if inputs is not None:
        program.example_inputs = inputs
    return program


def _checked(path: Path, extra: dict[str, Any]) -> tuple[io.BytesIO, Any]:
    """A new archive with the checked members of a file, and its example inputs."""
    members = _members(path)
    for name in [name for name in members if name.startswith(_EXTRA)]:
        extra[name.removeprefix(_EXTRA)] = members.pop(name).decode()
    written = io.BytesIO()
    inputs = _sample_inputs(members.pop(_INPUTS, b""))
    with PT2ArchiveWriter(written) as archive:
        for name in (_WEIGHTS, _CONSTANTS):
            config = json.loads(members.pop(name))
            _check_payloads(config, name, members)
            archive.write_string(name, json.dumps(config))
        archive.write_string(_MODEL, json.dumps(_checked_model(json.loads(members.pop(_MODEL)))))
        archive.write_bytes(_INPUTS, b"")
        for name, content in members.items():
            archive.write_bytes(name, content)
    written.seek(0)
    return written, inputs


def _members(path: Path) -> dict[str, bytes]:
    """The members that a program consists of, without the name of the archive in front."""
    found: dict[str, bytes] = {}
    seen: set[str] = set()
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = info.filename.partition("/")[2]
            plain = _MEMBER.fullmatch(info.filename) and ".." not in info.filename.split("/")
            if not plain or info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                raise Unsafe(f"a member that torch.export.save does not write ({info.filename!r})")
            if info.filename.lower() in seen:
                raise Unsafe(f"two members of one name ({info.filename!r})")
            seen.add(info.filename.lower())
            if name in (_MODEL, _WEIGHTS, _CONSTANTS, _INPUTS) or _TENSOR.fullmatch(name) or name.startswith(_EXTRA):
                if name in found:
                    raise Unsafe(f"two programs ({info.filename!r})")
                found[name] = archive.read(info)
            elif not _IGNORED.fullmatch(name):
                raise Unsafe(_what(info.filename))
    for name in (_MODEL, _WEIGHTS, _CONSTANTS):
        if name not in found:
            raise ValueError(f"it has no {name}")
    return found


def _what(name: str) -> str:
    if "/aotinductor/" in name.lower() or name.lower().endswith((".so", ".dll", ".dylib")):
        return f"compiled code ({name})"
    if name.lower().endswith((".pt", ".pkl", ".pickle")) or "custom_obj" in name or "opaque_obj" in name:
        return f"pickled objects ({name})"
    return f"an unknown member ({name})"


def _sample_inputs(content: bytes) -> Any:
    if not content:
        return None
    try:
        return torch.load(io.BytesIO(content), weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError):
        raise Unsafe(f"pickled objects ({_INPUTS})") from None


def _check_payloads(config: Any, name: str, members: dict[str, bytes]) -> None:
    folder, prefix = name.rpartition("/")[0], "weight" if name == _WEIGHTS else "tensor"
    for path, entry in config["config"].items():
        file = entry["path_name"]
        if entry.get("use_pickle") is not False or not re.fullmatch(rf"{prefix}_\d+", file):
            raise Unsafe(f"pickled objects ({file})")
        if f"{folder}/{file}" not in members:
            raise ValueError(f"it has no {folder}/{file}")
        _require(_is_path, path, "name")
        _check(entry["tensor_meta"], "tensor_meta")


def _checked_model(model: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a program's description, all of it checked."""
    graph = model["graph_module"]
    _clean_metadata(graph["graph"])
    _check(graph["graph"], "graph")
    _check(graph["signature"], "signature")
    (call,) = (entry["signature"] for entry in graph["module_call_graph"] if entry["fqn"] == "")
    _check({key: value for key, value in call.items() if not key.endswith("_spec")}, "signature")
    for name in call.get("forward_arg_names") or []:
        _require(_is_name, name, "name")
    specs = {key: _checked_spec(call[key], names=key == "in_spec") for key in ("in_spec", "out_spec")}
    for symbol, limits in model["range_constraints"].items():
        _require(_SYMBOL.fullmatch, symbol, "symbol")
        if not all(value is None or type(value) is int for value in limits.values()):
            raise Unsafe(f"the limits {limits!r}")
    versions = ("opset_version", "schema_version", "verifiers", "torch_version", "range_constraints")
    kept = {key: model[key] for key in versions}
    _check(kept, "version")
    whole = {
        "graph": graph["graph"], "signature": graph["signature"], "metadata": {}, "treespec_namedtuple_fields": {},
        "module_call_graph": [{"fqn": "", "signature": {**call, **specs}}],
    }  # fmt: skip
    return {**kept, "graph_module": whole, "guards_code": []}


def _clean_metadata(value: Any) -> None:
    """Drop what nodes remember of their origin, modules excepted."""
    if isinstance(value, dict):
        if isinstance(value.get("metadata"), dict):
            value["metadata"] = {k: v for k, v in value["metadata"].items() if k == "nn_module_stack"}
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _clean_metadata(item)


def _check(value: Any, key: str) -> None:
    """Raise `Unsafe` for names that are no names, operators and expressions that are not known, and objects."""
    if isinstance(value, dict):
        for name, item in value.items():
            if name in _FORBIDDEN or (name == "custom_obj_values" and item):
                raise Unsafe(f"an object of a custom class ({name})")
            if key in _OF_NAMES:
                _require(_is_name, name, "name")
            if name == "target" and isinstance(item, str):
                _check_operator(item)
            elif name == "expr_str":
                _check_expression(item)
            else:
                _check(item, name)
    elif isinstance(value, list):
        for item in value:
            _check(item, key)
    elif isinstance(value, str) and key not in _FREE_TEXT:
        _require(_is_name if key in _NAMES else _is_path if key in _PATHS else _TEXT.fullmatch, value, "name")


def _is_name(value: str) -> bool:
    return bool(_WORD.fullmatch(value)) or is_variable(value)


def _is_path(value: str) -> bool:
    return unwritable(value) is None


def _require(fits: Callable[[str], Any], value: Any, what: str) -> None:
    if not isinstance(value, str) or not fits(value):
        raise Unsafe(f"the {what} {str(value)[:80]!r}")


def _check_operator(target: str) -> None:
    name = target.removeprefix("torch.ops.") if target.startswith("torch.ops.") else target.removeprefix("_")
    namespace, _, rest = name.partition(".")
    if not (namespace == "higher_order" and rest in _HIGHER_ORDER) and find_operator(name) is None:
        raise Unsafe(f"the operator {target[:80]!r}")


def _check_expression(text: Any) -> None:
    """Integers, symbols, arithmetic, and the constructors that SymPy prints: `Mul(Integer(2), Symbol('s0'))`."""
    wrong = Unsafe(f"the shape {str(text)[:80]!r}")
    if not isinstance(text, str) or len(text) > 4096:
        raise wrong
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise wrong from None
    powers = 0
    called: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            plain = isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS
            called.add(id(node.func))
            powers += plain and node.func.id in _POWERS  # type: ignore[attr-defined]
        elif isinstance(node, ast.Name):
            plain = id(node) in called or bool(_SYMBOL.fullmatch(node.id))
        elif isinstance(node, ast.Constant):
            plain = type(node.value) in (bool, float) or (type(node.value) is int and abs(node.value) < 1 << 63)
            plain = plain or (isinstance(node.value, str) and bool(_LITERAL.fullmatch(node.value)))
        else:
            plain = isinstance(node, _ARITHMETIC)
        if not plain or powers > 3:
            raise wrong


def _checked_spec(text: str, *, names: bool) -> str:
    """A tree of tuples, lists and dictionaries; `names`: its keys are names of arguments."""
    protocol, tree = json.loads(text)
    if protocol != 1:
        raise Unsafe(f"a structure of protocol {protocol!r}")
    return json.dumps([1, _checked_tree(tree, names)])


def _checked_tree(tree: dict[str, Any], names: bool) -> dict[str, Any]:
    kind, context = tree["type"], tree["context"]
    children = [_checked_tree(child, names) for child in tree["children_spec"]]
    if kind is None and context is None and not children:
        return {"type": None, "context": None, "children_spec": []}
    if kind not in _CONTAINERS:
        raise Unsafe(f"a structure of the class {kind!r}")
    keys = json.loads(context)
    if kind in ("builtins.tuple", "builtins.list"):
        plain = keys is None
    else:
        plain = isinstance(keys, list) and all(type(key) in (str, int) for key in keys)
    if not plain:
        raise Unsafe(f"a structure with {context!r}")
    if names:
        for key in keys or []:
            _require(_is_name, key, "name")
    return {"type": kind, "context": json.dumps(keys), "children_spec": children}
