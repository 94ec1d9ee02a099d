"""Crafted programs: none of them runs, whatever command opens it, and each is refused."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from brecq.deploy.pt2_runtime import read
from brecq.errors import BrecqError, SourceError
from brecq.sources import load_source

Members = list[tuple[str, bytes]]
ROOT = "net"
MODEL = f"{ROOT}/models/model.json"
WEIGHTS, CONSTANTS = (f"{ROOT}/data/{kind}/model_{kind}_config.json" for kind in ("weights", "constants"))
EVIL = "BRECQ_TEST_EVIL"
CODE = f"__import__('os').mkdir(__import__('os').environ['{EVIL}'])"


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (os.environ[EVIL],)


def pickled() -> bytes:
    buffer = io.BytesIO()
    torch.save((((Evil(),), {}),), buffer)
    return buffer.getvalue()


def edited(name: str, change: Callable[[Any], object]) -> Callable[[Members], Members]:
    def edit(members: Members) -> Members:
        found = []
        for member, content in members:
            if member == name:
                values = json.loads(content)
                change(values)
                content = json.dumps(values).encode()
            found.append((member, content))
        return found

    return edit


def model(change: Callable[[Any], object]) -> Callable[[Members], Members]:
    return edited(MODEL, change)


def graph(values: Any) -> Any:
    return values["graph_module"]["graph"]


def call(values: Any) -> Any:
    return values["graph_module"]["module_call_graph"][0]["signature"]


def swapped(old: str, new: str) -> Callable[[Members], Members]:
    """Another name for a member."""
    return lambda members: [(name.replace(old, new), content) for name, content in members]


def with_member(name: str, content: Callable[[], bytes]) -> Callable[[Members], Members]:
    return lambda members: [*members, (f"{ROOT}/{name}", content())]


def evil_shape(values: Any) -> None:
    for meta in graph(values)["tensor_values"].values():
        meta["sizes"] = [{"as_expr": {"expr_str": CODE, "hint": None}} for _ in meta["sizes"]]


def evil_operator(target: str) -> Callable[[Any], None]:
    def change(values: Any) -> None:
        text = {"name": "path", "arg": {"as_string": os.environ[EVIL]}, "kind": 1}
        graph(values)["nodes"][0].update(target=target, inputs=[text])

    return change


def evil_name(values: Any) -> None:
    """FX pastes names of nodes into the code that it compiles."""
    name = graph(values)["inputs"][-1]["as_tensor"]["name"]
    values.update(json.loads(json.dumps(values).replace(json.dumps(name), json.dumps(f"{name}={CODE}"))))


def evil_payload(name: str, **changes: object) -> Callable[[Members], Members]:
    def change(values: Any) -> None:
        first = next(iter(values["config"].values()), None)
        values["config"]["evil"] = {**(first or {"is_param": False, "tensor_meta": None}), **changes}

    return edited(name, change)


ATTACKS: dict[str, Callable[[Members], Members]] = {
    "pickled inputs": lambda members: [(n, pickled() if n.endswith("model.pt") else c) for n, c in members],
    "pickled inputs, upper case": lambda members: swapped("inputs/model.pt", "inputs/model.PT")(
        [(n, pickled() if n.endswith("model.pt") else c) for n, c in members]
    ),
    "pickled inputs, twice": with_member("data/sample_inputs/model.pt", pickled),
    "pickled inputs, both cases": with_member("data/sample_inputs/MODEL.pt", pickled),
    "pickled weights of an older format": with_member("data/weights/model.pt", pickled),
    "pickled constants of an older format": with_member("data/constants/model.pt", pickled),
    "a pickled weight": lambda members: with_member("data/weights/weight_99", pickled)(
        evil_payload(WEIGHTS, use_pickle=True, path_name="weight_99")(members)
    ),
    "a custom object": lambda members: with_member("data/constants/custom_obj_0", pickled)(
        evil_payload(CONSTANTS, use_pickle=True, path_name="custom_obj_0")(members)
    ),
    "an opaque object": lambda members: with_member("data/constants/opaque_obj_0", pickled)(
        evil_payload(CONSTANTS, use_pickle=False, path_name="opaque_obj_0")(members)
    ),
    "a path out of the archive": evil_payload(WEIGHTS, use_pickle=False, path_name="../sample_inputs/model.pt"),
    "compiled code": with_member("data/aotinductor/model/x.so", lambda: b"\x7fELF"),
    "an expression": model(evil_shape),
    "an expression, upper case": lambda members: swapped("model.json", "model.JSON")(model(evil_shape)(members)),
    "an expression in a second program": lambda members: [
        *members, (MODEL.replace("model.json", "Model.json"), dict(model(evil_shape)(members))[MODEL])
    ],
    "a function of os": model(evil_operator("torch.os.mkdir")),
    "a function of operator": model(evil_operator("_operator.methodcaller")),
    "a loader": model(evil_operator("torch.hub.load")),
    "an operator that reads files": model(evil_operator("torch.ops.aten.from_file.default")),
    "an extension": model(evil_operator("#x:os.mkdir")),
    "a name with code": model(evil_name),
    "an argument with code": model(lambda v: call(v).update(forward_arg_names=[f"x={CODE}"])),
    "guards": model(lambda v: v.update(guards_code=[CODE])),
    "a module to import": model(
        lambda v: call(v).update(out_spec=json.dumps([1, {"type": "collections.defaultdict", "context": {
            "default_factory_module": "antigravity", "default_factory_name": "x", "dict_context": []
        }, "children_spec": []}]))
    ),
    "an enumeration to import": model(
        lambda v: call(v).update(out_spec=json.dumps([1, {"type": "builtins.dict", "context": json.dumps(
            [{"__enum__": True, "fqn": "antigravity:x", "name": "x"}]), "children_spec": []}]))
    ),
    "a weight with code for a name": evil_payload(WEIGHTS, use_pickle=False, path_name="weight_0", tensor_meta={
        "dtype": f"x{CODE}"}),
    "a nested archive": lambda members: [(f"a/{name}", content) for name, content in members],
    "a path upwards": with_member("../../evil.json", lambda: b"{}"),
}  # fmt: skip
HARMLESS = {"guards"}  # what PyTorch would compile is dropped, and the rest is the program as it was


@pytest.fixture(autouse=True)
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What crafted programs make when they run."""
    path = tmp_path / "executed"
    monkeypatch.setenv(EVIL, str(path))
    yield path
    assert "antigravity" not in sys.modules


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 2)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.head(pixels.flatten(1))


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Members:
    path = tmp_path_factory.mktemp("program") / f"{ROOT}.pt2"
    network = Network().eval()
    shapes = ({0: torch.export.Dim("batch", max=64)},)
    torch.export.save(torch.export.export(network, (torch.randn(2, 3, 2, 2),), dynamic_shapes=shapes), path)
    with zipfile.ZipFile(path) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def craft(members: Members, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content)
    return path


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_runs(program: Members, tmp_path: Path, marker: Path, attack: str) -> None:
    path = craft(ATTACKS[attack](program), tmp_path / "crafted.pt2")
    for load in (lambda: load_source(str(path)).model, lambda: read(path).module()):
        if attack in HARMLESS:
            load()(torch.ones(2, 3, 2, 2))
        else:
            with pytest.raises(BrecqError):
                load()(torch.ones(2, 3, 2, 2))
        assert not marker.exists()


@pytest.mark.parametrize("attack", ["pickled inputs", "an expression", "guards", "a name with code"])
def test_the_attacks_are_attacks(program: Members, tmp_path: Path, marker: Path, attack: str) -> None:
    path = craft(ATTACKS[attack](program), tmp_path / "crafted.pt2")
    with suppress(Exception):  # whatever it does after it ran
        load_source(str(path), trust_pickle=True).model(torch.ones(2, 3, 2, 2))
    assert marker.exists()


def test_an_honest_program_is_read(program: Members, tmp_path: Path) -> None:
    path = craft(program, tmp_path / "honest.pt2")
    x = torch.randn(5, 3, 2, 2)
    assert torch.equal(load_source(str(path)).model(x), torch.export.load(path).module()(x))


FRESH = """
import sys
from pathlib import Path
import brecq
from brecq.deploy.pt2_runtime import read
from brecq.errors import BrecqError
from brecq.sources import load_source
for file in sorted(Path(sys.argv[1]).iterdir()):
    programs = [lambda: load_source(str(file)), lambda: read(file)]
    for load in programs if file.suffix == ".pt2" else [lambda: brecq.load(file)]:
        try:
            load()
        except BrecqError:
            continue
        sys.exit(f"accepted: {file}")
"""


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_nothing_runs_in_a_fresh_process(program: Members, tmp_path: Path, marker: Path) -> None:
    folder = tmp_path / "crafted"
    folder.mkdir()
    for number, (name, attack) in enumerate(ATTACKS.items()):
        if name not in HARMLESS:
            craft(attack(program), folder / f"{number}.pt2")
    (folder / "result").mkdir()
    craft(ATTACKS["pickled inputs"](program), folder / "result" / "model.pt2")
    manifest = {"format": "brecq", "format_version": 1, "versions": {}, "files": {}, "tensors": {}}
    (folder / "result" / "manifest.json").write_text(json.dumps(manifest))
    done = subprocess.run([sys.executable, "-c", FRESH, str(folder)], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert not marker.exists()


def test_the_message_says_what_and_what_to_do(program: Members, tmp_path: Path) -> None:
    path = craft(ATTACKS["pickled inputs"](program), tmp_path / "crafted.pt2")
    with pytest.raises(SourceError, match=r"holds pickled objects .*sample_inputs.*pass trust_pickle if you trust"):
        load_source(str(path))
