from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor
from torch.fx import GraphModule

from brecq.checkpoint import Checkpoint, PackedWeight, collect_tensors, directory, read, write
from brecq.errors import CheckpointError
from brecq.graph.convert import to_program

FILES = ["manifest.json", "model.pt2", "report.json", "weights.safetensors"]
MANIFEST = {"config": {"weights": 2}, "seed": 7, "data_digest": "abc", "metadata": {"source": "timm:resnet18"}}


def save(path: Path, converted: GraphModule, images: Tensor, manifest: dict[str, object] | None = None) -> Path:
    return write(
        path, to_program(converted, (images,)), collect_tensors(converted), manifest or MANIFEST, {"seconds": 1.5}
    )


@pytest.fixture
def folder(tmp_path: Path, converted: GraphModule, images: Tensor) -> Path:
    return save(tmp_path / "new" / "out", converted, images)


def test_a_reload_is_bit_identical(folder: Path, converted: GraphModule, images: Tensor) -> None:
    result = read(folder)
    assert isinstance(result, Checkpoint)
    module = result.program.module()
    for batch in (images, images[:1], torch.randn(9, 3, 8, 8)):
        assert torch.equal(module(batch), converted(batch))
    assert sorted(file.name for file in folder.iterdir()) == FILES
    assert result.report == {"seconds": 1.5}
    assert {key: result.manifest[key] for key in MANIFEST} == MANIFEST
    assert torch.__version__.startswith(result.manifest["versions"]["torch"])
    for name, value in collect_tensors(converted).items():
        expected = value if isinstance(value, Tensor) else value.dequantize()
        found = result.tensors[name]
        assert torch.equal(found if isinstance(found, Tensor) else found.dequantize(), expected)


def test_a_reload_can_be_saved_again(folder: Path, tmp_path: Path, images: Tensor) -> None:
    module = read(folder).program.module()
    again = save(tmp_path / "again", module, images)
    assert read(again).manifest["tensors"] == read(folder).manifest["tensors"]
    assert torch.equal(read(again).program.module()(images), module(images))


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
        {"input": "x", "scale": 0.03125, "zero_point": 128, "low": 0, "high": 255}
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


def test_the_program_holds_neither_inputs_nor_paths(folder: Path) -> None:
    assert read(folder).program.example_inputs is None
    assert str(Path.cwd()).encode() not in (folder / "model.pt2").read_bytes()


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

    monkeypatch.setattr(directory.os, "replace", broken)
    with pytest.raises(KeyboardInterrupt):
        save(folder, converted, images, {"seed": 8})
    with pytest.raises(CheckpointError, match=r"manifest\.json is missing"):
        read(folder)
    assert not list(folder.glob(".tmp*"))


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
    with pytest.raises(CheckpointError, match="choose another folder"):
        save(tmp_path / "out", converted, images)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)} is missing"):
        read(folder)


@pytest.mark.parametrize("name", ["model.pt2", "report.json", "weights.safetensors"])
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
        ({"format_version": 99}, "format version 99, this brecq reads 1"),
        ({"files": {}}, "lacks 'model.pt2'"),
        ({"tensors": None}, "lacks 'tensors'"),
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


def test_a_program_that_cannot_be_loaded_names_the_versions(folder: Path) -> None:
    (folder / "model.pt2").write_bytes(b"of another torch")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["model.pt2"]["sha256"] = directory.sha256(folder / "model.pt2")
    manifest["versions"]["torch"] = "1.2.3"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"written with torch 1\.2\.3"):
        read(folder)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a folder"):
        read(tmp_path / "nowhere")
