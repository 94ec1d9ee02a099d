from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor
from torch.fx import GraphModule

from brecq.checkpoint import Checkpoint, PackedWeight, collect_tensors, read, write
from brecq.errors import CheckpointError
from brecq.storage import files
from brecq.storage.files import sha256
from brecq.storage.sealed import seal

FILES = ["manifest.json", "program.json", "report.json", "timing.json", "weights.safetensors"]
MANIFEST = {"config": {"weights": 2}, "seed": 7, "data_digest": "abc", "metadata": {"source": "timm:resnet18"}}


def save(path: Path, converted: GraphModule, images: Tensor, manifest: dict[str, object] | None = None) -> Path:
    return write(
        path, converted, (images,), collect_tensors(converted), manifest or MANIFEST, {"samples": 8}, {"seconds": 1.5}
    )


@pytest.fixture
def folder(tmp_path: Path, converted: GraphModule, images: Tensor) -> Path:
    return save(tmp_path / "new" / "out", converted, images)


def test_a_reload_is_bit_identical(folder: Path, converted: GraphModule, images: Tensor) -> None:
    result = read(folder)
    assert isinstance(result, Checkpoint)
    module = result.graph
    for batch in (images, images[:1], torch.randn(9, 3, 8, 8)):
        assert torch.equal(module(batch), converted(batch))
    assert sorted(file.name for file in folder.iterdir()) == FILES
    assert (result.report["samples"], result.timing["seconds"]) == (8, 1.5)
    assert [(x.shape, x.dtype) for x in result.example_inputs] == [((2, 3, 8, 8), torch.float32)]
    assert {key: result.manifest[key] for key in MANIFEST} == MANIFEST
    assert torch.__version__.startswith(result.manifest["versions"]["torch"])
    for name, value in collect_tensors(converted).items():
        expected = value if isinstance(value, Tensor) else value.dequantize()
        found = result.tensors[name]
        assert torch.equal(found if isinstance(found, Tensor) else found.dequantize(), expected)


def test_a_reload_can_be_saved_again(folder: Path, tmp_path: Path, images: Tensor) -> None:
    again = save(tmp_path / "again", read(folder).graph, images)
    for name in FILES:
        assert (again / name).read_bytes() == (folder / name).read_bytes(), name


def test_weights_take_their_bit_width_on_disk(folder: Path) -> None:
    arrays, table = load_file(folder / "weights.safetensors"), read(folder).manifest["tensors"]
    packed = {name: entry for name, entry in table.items() if entry["kind"] == "packed"}
    assert len(packed) == 4
    ideal = sum(np.prod(entry["shape"]) * entry["bits"] / 8 for entry in packed.values())
    scales = sum(arrays[entry["scale"]].nbytes for entry in packed.values())
    parts = [entry[key] for entry in packed.values() for key in ("codes", "scale", "zero_point") if entry[key]]
    assert sum(arrays[key].nbytes for key in parts) <= 1.02 * ideal + scales
    assert sum(arrays[entry["codes"]].nbytes for entry in packed.values()) - ideal < len(packed)
    assert arrays["head.bias.codes"].dtype == np.int32


def test_activations_are_listed(folder: Path) -> None:
    result = read(folder)
    assert result.manifest["activations"] == [
        {
            "node": "x",
            "role": "input",
            "module": None,
            "operator": None,
            "read_by": ["stem"],
            "scale": 0.03125,
            "zero_point": 128,
            "low": 0,
            "high": 255,
        }
    ]


def test_the_documented_reader(folder: Path) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
    snippet = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(snippet) == 1
    names: dict[str, object] = {}
    exec(snippet[0], names)
    weights = {name: value for name, value in read(folder).tensors.items() if isinstance(value, PackedWeight)}
    assert len(weights) == 4
    for name, weight in weights.items():
        found = names["read_packed"](folder, name)  # type: ignore[operator]
        assert found.dtype == np.float32
        assert np.array_equal(found, weight.dequantize().numpy())


def test_the_program_holds_no_paths(folder: Path) -> None:
    assert str(Path.cwd()).encode() not in (folder / "program.json").read_bytes()


def test_numbers_that_json_lacks_become_null(tmp_path: Path, converted: GraphModule, images: Tensor) -> None:
    manifest = {"metadata": {"sqnr": [float("inf"), float("nan"), 1.0]}}
    assert read(save(tmp_path, converted, images, manifest)).manifest["metadata"]["sqnr"] == [None, None, 1.0]


def test_writing_again_replaces_the_result_only(folder: Path, converted: GraphModule, images: Tensor) -> None:
    (folder / "blocks").mkdir()
    save(folder, converted, images, {"seed": 8})
    assert read(folder).manifest["seed"] == 8
    assert sorted(file.name for file in folder.iterdir()) == ["blocks", *FILES]


@pytest.mark.parametrize("failing", FILES)
def test_an_interrupted_write_never_reads_as_complete(
    folder: Path, converted: GraphModule, images: Tensor, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def broken(source: Path, target: Path) -> None:
        if Path(target).name == failing:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", broken)
    (converted.get_buffer("head.bias")).add_(1)  # another result
    with pytest.raises(KeyboardInterrupt):
        save(folder, converted, images, {"seed": 8})
    if failing == "weights.safetensors":  # the first: nothing is changed yet
        assert read(folder).manifest["seed"] == 7
    else:
        with pytest.raises(CheckpointError, match="was changed or damaged"):
            read(folder)
    assert not list(folder.glob(".tmp*"))
    monkeypatch.undo()
    assert read(save(folder, converted, images, {"seed": 8})).manifest["seed"] == 8


@pytest.mark.parametrize("name", FILES)
def test_files_of_somebody_else_are_not_replaced(
    tmp_path: Path, converted: GraphModule, images: Tensor, name: str
) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)} is not brecq's and is not replaced"):
        save(tmp_path, converted, images)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(name, "{}")]


def test_files_may_be_read_by_whom_the_umask_says(folder: Path) -> None:
    before = os.umask(0)
    os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o666 & ~before}


def test_a_failure_before_the_end_leaves_the_old_result(folder: Path, converted: GraphModule, images: Tensor) -> None:
    with pytest.raises(CheckpointError, match=r"manifest\.json cannot hold a value"):
        save(folder, converted, images, {"metadata": object()})
    assert read(folder).manifest["seed"] == 7
    assert sorted(file.name for file in folder.iterdir()) == FILES


def test_reserved_fields(tmp_path: Path, converted: GraphModule, images: Tensor) -> None:
    with pytest.raises(CheckpointError, match="'tensors' is reserved"):
        save(tmp_path, converted, images, {"tensors": {}})


def test_a_file_in_the_way(tmp_path: Path, converted: GraphModule, images: Tensor) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(CheckpointError, match="choose another place"):
        save(tmp_path / "out", converted, images)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)} is missing"):
        read(folder)


@pytest.mark.parametrize("name", ["program.json", "report.json", "timing.json", "weights.safetensors"])
def test_a_changed_file_is_named(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)} was changed or damaged"):
        read(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "does not describe a brecq result"),
        ({"format_version": 99}, "format version 99, this brecq reads 2"),
        ({"files": {}}, r"files is '\{\}', not an object with the sha256"),
        ({"tensors": None}, "tensors is 'None', not an object"),
        ({"seed": 7.5}, "seed is '7.5', not an integer"),
        ({"metadata": []}, r"metadata is '\[\]', not an object"),
        ({"seed": 8}, "was changed or damaged: its content has the SHA-256"),
        ({"sha256": None}, "has no 'sha256'"),
    ],
)
def test_a_manifest_of_another_kind(folder: Path, change: dict[str, object], message: str) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | change))
    with pytest.raises(CheckpointError, match=message):
        read(folder)


def test_a_damaged_manifest(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text[: len(text) // 2])
    with pytest.raises(CheckpointError, match="not valid JSON"):
        read(folder)


def forge(folder: Path, change: Callable[[dict[str, Any]], object], **fields: Any) -> None:
    """Change the program, and make the manifest vouch for it."""
    described = json.loads((folder / "program.json").read_text())
    change(described)
    (folder / "program.json").write_text(json.dumps(described))
    manifest = json.loads((folder / "manifest.json").read_text()) | fields
    manifest["files"]["program.json"]["sha256"] = sha256(folder / "program.json")
    del manifest["sha256"]
    (folder / "manifest.json").write_text(seal(manifest))


def test_a_program_that_cannot_be_read_names_the_versions(folder: Path) -> None:
    forge(folder, lambda described: described.update(version=2), versions={"torch": "1.2.3"})
    with pytest.raises(CheckpointError, match=r"version is 2.*written with.* torch 1\.2\.3, this is"):
        read(folder)


def first(described: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(node for node in described["nodes"] if kind in node)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: first(d, "operator").update(operator="os.system"), "operator is 'os.system', which no program may"),
        (lambda d: first(d, "operator").update(operator="torch.os.system"), "which no program may call"),
        (lambda d: first(d, "operator").update(operator="operator.methodcaller"), "which no program may call"),
        (lambda d: first(d, "operator").update(operator="aten.from_file.default"), "which no program may call"),
        (lambda d: first(d, "operator").update(operator="aten.__class__.mro"), "which no program may call"),
        (lambda d: first(d, "operator").update(name="x):\n import os#"), "is no name"),
        (lambda d: first(d, "input").update(input="x=print(1)"), "is no name"),
        (lambda d: first(d, "operator").update(kwargs={"a=print(1), b": 1}), "is no name"),
        (lambda d: first(d, "operator").update(args=[{"dtype": "os"}]), "is no value of a program"),
        (lambda d: first(d, "operator").update(args=[{"node": "nowhere"}]), "is no value of a program"),
        (lambda d: first(d, "operator").update(args=[]), "does not run"),
        (lambda d: d["constants"].update({'x"]); print("': {}}), "constants: .*no part of a tensor"),
        (lambda d: d["constants"].update({"forward": next(iter(d["constants"].values()))}), "'forward' is no name"),
        (lambda d: first(d, "constant").update(constant="__class__"), "there is no constant '__class__'"),
        (lambda d: d.update(output={"namedtuple": "a b", "fields": {}}), "is no name"),
        (lambda d: d.update(nodes={}), "nodes is '{}', not a list"),
        (lambda d: d["inputs"].clear(), "describes 0 of the program's inputs"),
        (lambda d: d["inputs"][0].update(shape=["batch", -1]), "the shape is"),
    ],
)
def test_a_crafted_program_is_refused(folder: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    forge(folder, change)
    with pytest.raises(CheckpointError, match=message):
        read(folder)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a folder"):
        read(tmp_path / "nowhere")
