"""Whatever is given: success, or a `BrecqError` that says what is wrong. Anything else is a bug.

`make test` tries a few dozen examples a property, always the same ones; `make test-slow` many more, at random.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import io
import json
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import brecq
from brecq.cli import app
from brecq.config import LayerRule
from brecq.data import Preprocessing, collect, load_data
from brecq.deploy.options import BenchmarkConfig
from brecq.precision.budget import Budget
from brecq.precision.options import ProfileConfig, SearchConfig, SurveyConfig
from brecq.settings import Setting, types_of
from brecq.storage import sealed

FEW, MANY = 30, 1500

SMALL = Preprocessing(mean=(0.5,), std=(0.25,), size=(8, 8), resize=8)

CONFIGS = (
    brecq.QuantConfig, brecq.Recipe, brecq.DistillConfig, LayerRule, SurveyConfig, SearchConfig, BenchmarkConfig,
    ProfileConfig, Preprocessing, Budget, brecq.Accelerator,
)  # fmt: skip

numbers = st.one_of(
    st.integers(-3, 40), st.integers(), st.floats(), st.sampled_from([0.5, 1.0, 2**31, 2**64, -(2**64), 1e38, 10**400])
)
scalars = st.one_of(
    st.none(), st.booleans(), numbers, st.text(max_size=8), st.binary(max_size=4),
    st.sampled_from(["fast", "auto", "none", "fisher", "layer", "nan", "*", "8", "size"]),
    st.sampled_from([np.int64(4), np.float32(0.5), np.float64("nan"), torch.tensor(3), Path("x"), int]),
)  # fmt: skip
wild = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.tuples(inner, inner), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)


class Network(nn.Module):
    """Small enough to be quantized in a second."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


SOURCE = """
import torch
from torch import nn
from brecq.data import Preprocessing

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)
    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))

def build():
    torch.manual_seed(0)
    return Network().eval(), Preprocessing(mean=(0.5,), std=(0.25,), size=(8, 8), resize=8)
"""


def network() -> Network:
    torch.manual_seed(0)
    return Network().eval()


@contextlib.contextmanager
def only_brecq_errors() -> Iterator[None]:
    """Success or a `BrecqError` of one reasonable line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except brecq.BrecqError as error:
            told = str(error)
        else:
            return
    assert 5 < len(told) < 2000


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A finished result, a sensitivity table, an allocation, a latency table, an accelerator, a network's file."""
    folder = tmp_path_factory.mktemp("things")
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(8, 3, 8, 8, generator=generator)
    config = brecq.QuantConfig(4, 8, first_last=None, method="rtn")
    brecq.quantize(network(), inputs, config).save(folder / "result")
    table = brecq.measure_sensitivity(network(), inputs, brecq.QuantConfig(4, 8, first_last=None), bits=(2, 4, 8))
    table.save(folder / "search")
    brecq.search(table, "size=250B").save(folder / "search" / "allocation.json")
    rows = [dict.fromkeys(("input", "output", "kernel", "stride", "dilation"), "1x1") for _ in range(2)]
    rows = [{"op": "conv2d", "groups": "1", "w_bits": 8, "a_bits": 8, "milliseconds": 1.5, **row} for row in rows]
    (folder / "latency.json").write_text(json.dumps({"version": 1, "name": "x", "entries": rows}))
    (folder / "network.py").write_text(SOURCE)
    pictures(folder / "images", 6)
    np.savez(folder / "data.npz", x=np.zeros((4, 3, 8, 8), np.float32), y=np.arange(4))
    return {"folder": folder, "table": table}


def pictures(folder: Path, count: int) -> None:
    folder.mkdir()
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 256, (9, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")


# what is tried: a strategy, and what is done with its examples


def build_config(example: tuple[type, dict[str, Any]], things: dict[str, Any]) -> None:
    kind, values = example
    with only_brecq_errors():
        made = kind(**values)
        for field in dataclasses.fields(made):
            value = getattr(made, field.name)
            assert not isinstance(value, float) or math.isfinite(value), f"{field.name} is {value}"
        if isinstance(made, brecq.QuantConfig):
            assert brecq.QuantConfig.from_dict(json.loads(json.dumps(made.to_dict()))) == made


def some_fields(kind: type) -> st.SearchStrategy[tuple[type, dict[str, Any]]]:
    fields = dataclasses.fields(kind)
    values = {field.name: wild for field in fields}
    required = {
        field.name: values.pop(field.name)
        for field in fields
        if field.default is field.default_factory is dataclasses.MISSING
    }
    return st.tuples(st.just(kind), st.fixed_dictionaries(required, optional=values))


def valid_values(kind: type) -> st.SearchStrategy[Any]:
    """Fields of a configuration within their bounds, the bounds themselves often among them."""

    def values(field: dataclasses.Field[Any]) -> st.SearchStrategy[Any]:
        known: Setting = field.metadata["setting"]
        of, low, high = types_of(kind)[field.name], known.low, min(known.high, 12)
        if of is bool:
            return st.booleans()
        if of is int:
            return st.integers(int(low), int(high))
        if of is float:
            return st.one_of(st.floats(low, min(known.high, 1000)), st.sampled_from([low, known.high]))
        return st.just(field.default)

    chosen = {field.name: values(field) for field in dataclasses.fields(kind) if field.name != "tuning"}
    return st.fixed_dictionaries(
        {"steps": st.integers(1, 3)}, optional={k: v for k, v in chosen.items() if k != "steps"}
    )


def run_recipe(values: dict[str, Any], things: dict[str, Any]) -> None:
    with only_brecq_errors():
        recipe = brecq.Recipe(**values)
        inputs = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        made = brecq.quantize(network(), inputs, brecq.QuantConfig(3, 4, recipe=recipe, seed=2**64 - 1))
        assert torch.isfinite(made.model(inputs)).all()


def mutate(value: Any, path: list[int], new: Any, how: str) -> Any:
    """A copy of plain values with one part, found by walking `path`, replaced, dropped or doubled."""
    value = copy.deepcopy(value)
    parent, key, here = None, None, value
    for step in path:
        if not isinstance(here, (dict, list)) or not here:
            break
        parent, key = here, list(here)[step % len(here)] if isinstance(here, dict) else step % len(here)
        here = parent[key]
    if parent is None:
        return new
    if how == "drop":
        del parent[key]
    elif how == "double" and isinstance(parent, list):
        parent.append(here)
    elif how == "rename" and isinstance(parent, dict):
        parent[f"{key}x"] = parent.pop(key)
    else:
        parent[key] = new
    return value


mutations = st.tuples(
    st.lists(st.integers(0, 60), min_size=1, max_size=5), plain, st.sampled_from(["set", "drop", "double", "rename"])
)
texts = st.one_of(
    st.text(max_size=30).map(str.encode), st.binary(max_size=30),
    st.sampled_from([b"", b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", b"\0", b"1e999", b"9" * 5000, b"null"]),
    st.tuples(st.integers(0, 3000), st.binary(min_size=1, max_size=3)),
)  # fmt: skip
edits = st.one_of(mutations, texts)


def edited(content: bytes, edit: Any) -> bytes:
    """The file's content after a mutation of its JSON, an overwritten part, or entirely other content."""
    if isinstance(edit, bytes):
        return edit
    if isinstance(edit[0], int):
        position = edit[0] % max(len(content), 1)
        return content[:position] + edit[1] + content[position + len(edit[1]) :]
    return json.dumps(mutate(json.loads(content), *edit)).encode()


def resealed(content: bytes) -> bytes:
    """With the right digest, where the content has one: a forger writes it, too."""
    with contextlib.suppress(ValueError, RecursionError):
        values = json.loads(content)
        if isinstance(values, dict) and sealed.DIGEST in values:
            return sealed.seal({key: value for key, value in values.items() if key != sealed.DIGEST}).encode()
    return content


def read_tables(example: tuple[str, Any, str], things: dict[str, Any]) -> None:
    name, edit, budget = example
    with tempfile.TemporaryDirectory() as folder, only_brecq_errors():
        file = Path(folder) / Path(name).name
        file.write_bytes(resealed(edited((things["folder"] / name).read_bytes(), edit)))
        if file.name == "sensitivity.json":
            table = brecq.SensitivityTable.load(file.parent)
            found = brecq.search(table, budget)
            brecq.pareto(table, "size", 3)
            found.apply(brecq.QuantConfig())
        elif file.name == "allocation.json":
            found = brecq.BitAllocation.load(file)
            found.apply(brecq.QuantConfig())
            json.dumps(found.to_dict())
        else:
            latency = brecq.LatencyTable.load(file)
            brecq.search(things["table"], "latency=1s", hardware=latency)


def read_other_tables(example: tuple[str, bytes], things: dict[str, Any]) -> None:
    name, content = example
    with tempfile.TemporaryDirectory() as folder, only_brecq_errors():
        file = Path(folder) / name
        file.write_bytes(content)
        if name == "npu.toml":
            brecq.search(things["table"], "latency=1s", hardware=brecq.Accelerator.load(file))
        elif name == "latency.csv":
            brecq.LatencyTable.load(file)
        else:
            load_data(things["folder"] / "images", SMALL, None, 0, labels=file)


def read_result(example: tuple[str, Any], things: dict[str, Any]) -> None:
    name, edit = example
    with tempfile.TemporaryDirectory() as folder, only_brecq_errors():
        copied = Path(folder) / "result"
        shutil.copytree(things["folder"] / "result", copied)
        (copied / name).write_bytes(resealed(edited((copied / name).read_bytes(), edit)))
        forge(copied)
        brecq.load(copied).model(torch.zeros(2, 3, 8, 8))


def forge(folder: Path) -> None:
    """Write the digests of the files, whatever they are now, into the manifest."""
    with contextlib.suppress(ValueError, RecursionError, TypeError, AttributeError, KeyError, OSError):
        manifest = json.loads((folder / "manifest.json").read_bytes())
        for name, entry in manifest["files"].items():
            entry["sha256"] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        (folder / "manifest.json").write_bytes(resealed(json.dumps(manifest).encode()))


lines = st.lists(
    st.lists(st.sampled_from(["file", "label", "0.png", "1.png", "3", "-1", "x", '"', "9" * 30, "é", ""]), max_size=4)
    .map(",".join), max_size=8,
).map("\n".join)  # fmt: skip
toml = st.lists(
    st.tuples(
        st.sampled_from([f.name for f in dataclasses.fields(brecq.Accelerator)] + ["x"]),
        st.sampled_from(["8", "0", "-1", "1e400", "inf", "nan", '"serial"', "true", "[]", "", "9" * 400]),
    ).map(" = ".join),
    min_size=6, max_size=9,
).map("\n".join)  # fmt: skip


def png(size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, "PNG")
    return buffer.getvalue()


def bomb() -> bytes:
    """A picture of a few bytes that says it has 10¹⁰ pixels."""
    content = bytearray(png((1, 1)))
    content[16:24] = (100_000).to_bytes(4, "big") * 2
    return bytes(content)


FILES = (
    "good",
    "good",
    "jpeg",
    "tiny",
    "long",
    "truncated",
    "empty",
    "bomb",
    "text",
    "folder",
    "pipe",
    "loop",
    "locked",
)
names = st.one_of(
    st.sampled_from([b"a.png", b"b.jpg", b"c.gif", b"labels.csv", b"sub", b".hidden.png"]),
    st.binary(min_size=1, max_size=6).map(lambda b: b.replace(b"/", b"_").replace(b"\0", b"0") + b".png"),
)
folders = st.lists(st.tuples(names, st.sampled_from(FILES), st.booleans()), max_size=7)


def place(path: Path, kind: str) -> None:
    contents = {
        "good": png((9, 8)), "tiny": png((1, 1)), "long": png((1, 30_000)), "truncated": png((9, 8))[:40],
        "empty": b"", "bomb": bomb(), "text": b"file,label\n0.png,3\n", "locked": png((9, 8)),
    }  # fmt: skip
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path.parent if len(path.name) % 2 else path)
    elif kind == "jpeg":
        Image.new("RGB", (40, 30)).save(path, "JPEG")
    else:
        path.write_bytes(contents[kind])
        if kind == "locked":
            path.chmod(0)


def read_folder(example: tuple[list[tuple[bytes, str, bool]], int | None], things: dict[str, Any]) -> None:
    files, size = example
    with tempfile.TemporaryDirectory() as base:
        root = Path(base) / "data"
        (root / "sub").mkdir(parents=True)
        for name, kind, nested in files:
            path = Path(os.fsdecode(os.fsencode(root / "sub" if nested else root) + b"/" + name))
            if not os.path.lexists(path):
                place(path, kind)
        with only_brecq_errors():
            data = load_data(root, SMALL, size, 0, max_skipped=1.0)
            assert torch.isfinite(data.inputs[0]).all()


shapes = st.lists(st.sampled_from([0, 1, 2, 3, 8, 9]), max_size=5).map(tuple)
dtypes = st.sampled_from(
    [
        "float32",
        "float16",
        "float64",
        "uint8",
        "int8",
        "int64",
        "uint16",
        "bool",
        "complex64",
        "S3",
        "U2",
        "datetime64[s]",
    ]
)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    made = np.zeros(draw(st.one_of(shapes, st.just((4, 3, 8, 8)))), dtype=draw(dtypes))
    if made.dtype.kind == "f" and made.size:
        made.flat[0] = draw(st.sampled_from([0.0, np.nan, np.inf, 6e4]))
    return made


def use_arrays(example: tuple[str, Any, bool], things: dict[str, Any]) -> None:
    how, values, labelled = example
    parts: Any = list(values)
    with only_brecq_errors():
        data = {
            "list": lambda: parts, "tuple": lambda: [tuple(parts)], "dict": lambda: [dict(enumerate(parts))],
            "names": lambda: [{"x": parts[0] if parts else None, "labels": parts[-1] if parts else 0}],
            "array": lambda: parts[0] if parts else np.zeros(0), "text": lambda: "abc", "number": lambda: 3,
            "nested": lambda: [[parts]], "wild": lambda: [labelled],
        }[how]()  # fmt: skip
        brecq.evaluate(network(), data, reference=network())
        collect(data, 3, model=network())


def read_npz(example: tuple[dict[str, Any], tuple[int, bytes] | None, str], things: dict[str, Any]) -> None:
    values, change, names = example
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "data.npz"
        np.savez(file, **values)
        content = bytearray(file.read_bytes())
        if change is not None:
            position = change[0] % len(content)
            content[position : position + len(change[1])] = change[1]
            file.write_bytes(bytes(content))
        with only_brecq_errors():
            load_data(f"{file}{names}", SMALL, 2, 0)


names_of_files = st.one_of(
    st.text(max_size=8), st.sampled_from(["", "\0", "x" * 300, "/dev/null", "/dev/null/x", ".", "a.npz", "a.json"])
)
calls = st.one_of(
    st.tuples(st.sampled_from(["search", "pareto"]), st.text(max_size=12), wild, scalars),
    st.tuples(st.sampled_from(["measure", "distill", "benchmark"]), scalars, wild, wild),
    st.tuples(
        st.sampled_from(["load", "data", "latency", "accelerator", "allocation", "sensitivity"]), names_of_files,
        st.none(), st.none(),
    ),
    st.tuples(st.just("rule"), st.text(max_size=8), st.text(max_size=8), st.none()),
)  # fmt: skip


def call(example: tuple[str, Any, Any, Any], things: dict[str, Any]) -> None:
    name, first, second, third = example
    table, zeros = things["table"], torch.zeros(4, 3, 8, 8)
    with only_brecq_errors():
        {
            "search": lambda: brecq.search(table, first, algorithm=second, seed=third),
            "pareto": lambda: brecq.pareto(table, first, third, metric=second),
            "measure": lambda: brecq.measure_sensitivity(network(), zeros, draws=first, quality=second, cross=third),
            "distill": lambda: brecq.distill(network(), first, shape=(3, 8, 8), device=second),
            "benchmark": lambda: BenchmarkConfig(second, runs=first, seconds=third),
            "load": lambda: brecq.load(first),
            "data": lambda: load_data(first, SMALL, 2, 0),
            "latency": lambda: brecq.LatencyTable.load(first),
            "accelerator": lambda: brecq.Accelerator.load(first),
            "allocation": lambda: brecq.BitAllocation.load(first),
            "sensitivity": lambda: brecq.SensitivityTable.load(first),
            "rule": lambda: LayerRule.parse(first, second),
        }[name]()


values = st.one_of(
    st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0"), max_size=6),
    numbers.map(lambda n: str(n)[:400] if isinstance(n, float) else str(n % 10**100)),
    st.sampled_from(
        ["8", "2,4", "none", "fast", "steps=2", "name=", "conv w=4", "size=1KB", "cpu", "meta", "mps", "nan"]
    ),
)


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """A command with arguments that are almost right."""
    import typer

    name = draw(
        st.sampled_from(["quantize", "evaluate", "inspect", "search", "distill", "verify", "benchmark", "export"])
    )
    options = typer.main.get_command(app).commands[name].params  # type: ignore[attr-defined]
    places = st.sampled_from(
        ["FOLDER/images", "FOLDER/data.npz", "FOLDER/nowhere", "FOLDER/network.py", "FOLDER/search"]
    )
    first = {"quantize": "MODEL", "inspect": "MODEL", "search": "MODEL", "distill": "MODEL"}.get(name, "FOLDER/result")
    line = [name, draw(st.one_of(st.just(first), places))]
    if name in ("verify", "benchmark"):
        line.append(draw(places))
    line += {
        "quantize": ["--calib", draw(places), "-o", "OUT", "--method", "rtn"], "evaluate": ["--data", draw(places)],
        "search": ["--calib", draw(places), "-o", "OUT", "--budget", draw(values)],
        "distill": ["-o", "OUT", "--n", "2"], "verify": ["--data", draw(places)], "export": ["-o", "OUT/file"],
    }.get(name, [])  # fmt: skip
    known = [option for option in options if option.param_type_name == "option" and option.name != "help"]
    for option in draw(st.lists(st.sampled_from(known), max_size=3)):
        line.append(option.opts[-1])
        if not option.is_flag:
            line.append(draw(st.one_of(values, places)))
    return line


def invoke(line: list[str], things: dict[str, Any]) -> None:
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as out, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = f"{things['folder']}/network.py:build"
        told = [
            part.replace("FOLDER", str(things["folder"])).replace("OUT", f"{out}/out").replace("MODEL", model)
            for part in line
        ]
        try:
            result = CliRunner().invoke(app, told)
        finally:
            torch.set_num_threads(threads)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in (0, 1, 2), result.stderr
    assert "Traceback" not in result.output


PROPERTIES: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any, dict[str, Any]], None], float]] = {
    "configurations": (st.sampled_from(CONFIGS).flatmap(some_fields), build_config, 2),
    "recipes": (valid_values(brecq.Recipe), run_recipe, 0.1),
    "tables": (
        st.tuples(
            st.sampled_from(["search/sensitivity.json", "search/allocation.json", "latency.json"]), edits,
            st.sampled_from(["size=250B", "bops=1M", "size=1GB"]),
        ),
        read_tables, 1,
    ),
    "other tables": (
        st.one_of(
            st.tuples(st.just("npu.toml"), st.one_of(toml.map(str.encode), st.binary(max_size=20))),
            st.tuples(st.sampled_from(["latency.csv", "labels.csv"]), st.one_of(lines.map(str.encode), st.binary())),
        ),
        read_other_tables, 2,
    ),
    "results": (
        st.one_of(
            st.tuples(st.sampled_from(["manifest.json", "report.json", "timing.json", "program.json"]), edits),
            st.tuples(st.just("weights.safetensors"), texts),
        ),
        read_result, 1,
    ),
    "folders": (st.tuples(folders, st.sampled_from([None, 1, 3])), read_folder, 2),
    "arrays": (
        st.tuples(
            st.sampled_from(["list", "tuple", "dict", "names", "array", "text", "number", "nested", "wild"]),
            st.lists(arrays(), max_size=3), st.booleans(),
        ),
        use_arrays, 2,
    ),
    "archives": (
        st.tuples(
            st.dictionaries(st.sampled_from(["x", "y", "labels", "x_train", "y_train", "z"]), arrays(), max_size=3),
            st.one_of(st.none(), st.tuples(st.integers(0, 2000), st.binary(min_size=1, max_size=8))),
            st.sampled_from(["", ":x", ":x,y", ":train", ":z"]),
        ),
        read_npz, 2,
    ),
    "calls": (calls, call, 2),
    "command lines": (command_lines(), invoke, 0.3),
}  # fmt: skip


def try_examples(name: str, things: dict[str, Any], examples: int, **known: Any) -> None:
    strategy, function, share = PROPERTIES[name]
    count = max(2, round(examples * share))
    checks = settings(
        max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck), **known
    )
    given(strategy)(checks(lambda example: function(example, things)))()


@pytest.mark.parametrize("name", PROPERTIES)
def test_success_or_a_brecq_error(name: str, things: dict[str, Any]) -> None:
    try_examples(name, things, FEW, derandomize=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROPERTIES)
def test_success_or_a_brecq_error_at_length(name: str, things: dict[str, Any]) -> None:
    try_examples(name, things, MANY)
