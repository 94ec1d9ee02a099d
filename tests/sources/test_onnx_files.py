"""ONNX files as sources: what they compute, the names they keep, what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import brecq
import brecq.data
from brecq.capture.export import capture
from brecq.errors import SourceError
from brecq.sources import load_source

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
ORT = pytest.importorskip("onnxruntime")
operators = pytest.importorskip("brecq.sources.onnx_files.operators")


def export(model: nn.Module, inputs: tuple[Tensor, ...], path: Path, *, dynamic: bool = True, **options: Any) -> Path:
    shapes = tuple({0: torch.export.Dim("batch")} for _ in inputs) if dynamic else None
    torch.onnx.export(model.eval(), inputs, path, dynamo=True, dynamic_shapes=shapes, verbose=False, **options)
    return path


def by_hand(nodes: list[Any], constants: dict[str, np.ndarray], shape: list[Any], path: Path, opset: int = 17) -> Path:
    """A file with the input `x` of this shape and the output `y`."""
    helper = onnx.helper
    value = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes, "graph", [helper.make_tensor_value_info("x", value, shape)],
        [helper.make_tensor_value_info("y", value, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]), path)
    return path


@pytest.fixture(scope="module")
def resnet(networks: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    model = networks.build(networks.ResNet)
    return model, export(model, networks.inputs(model), tmp_path_factory.mktemp("onnx") / "model.onnx")


def test_networks_come_back_with_their_names(resnet: tuple[nn.Module, Path]) -> None:
    model, path = resnet
    source = load_source(str(path))
    x = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(source.model(x), model(x), rtol=1e-4, atol=1e-4)
        graph = capture(source.model, (x,))
        torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-4)
    weights = {key for key, value in source.model.named_parameters() if value.dim() > 1}
    assert weights == {key for key, value in model.named_parameters() if value.dim() > 1}


def test_a_batch_that_stands_in_the_file_is_any_batch(tmp_path: Path) -> None:
    class Flattens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(144, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv(x).reshape(1, 4, -1).reshape(1, 144)).softmax(-1)

    model = Flattens()
    source = load_source(str(export(model, (torch.randn(1, 3, 8, 8),), tmp_path / "one.onnx", dynamic=False)))
    x = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(source.model(x), torch.cat([model(each[None]) for each in x]))
    assert source.example_inputs[0].shape == (2, 3, 8, 8)


def test_shapes_computed_in_the_file_follow_the_batch(tmp_path: Path) -> None:
    make = onnx.helper.make_node
    nodes = [
        make("Conv", ["x", "stem.weight"], ["c"], name="/stem/Conv"),
        make("Shape", ["c"], ["s"]),
        make("Slice", ["s", "zero", "one", "zero"], ["n"]),
        make("Concat", ["n", "rest"], ["shape"], axis=0),
        make("Reshape", ["c", "shape"], ["r"]),
        make("MatMul", ["r", "w"], ["m"], name="/head/MatMul"),
        make("Add", ["b", "m"], ["y"]),
    ]
    constants = {
        "stem.weight": np.random.rand(4, 3, 3, 3).astype(np.float32), "zero": np.array([0]), "one": np.array([1]),
        "rest": np.array([-1]), "w": np.random.rand(144, 5).astype(np.float32),
        "b": np.random.rand(5).astype(np.float32),
    }  # fmt: skip
    path = by_hand(nodes, constants, ["N", 3, 8, 8], tmp_path / "model.onnx")
    source = load_source(str(path))
    x = torch.randn(3, 3, 8, 8)
    (expected,) = ORT.InferenceSession(str(path)).run(None, {"x": x.numpy()})
    graph = capture(source.model, (x[:2],))
    with torch.no_grad():
        torch.testing.assert_close(graph(x), torch.from_numpy(expected), rtol=1e-4, atol=1e-4)
    scope = brecq.inspect(source.model, (x,)).scope
    assert [entry.layer for entry in scope if entry.weights] == ["stem", "w"]


def test_quantized_from_the_file_to_the_folder(resnet: tuple[nn.Module, Path], tmp_path: Path) -> None:
    model, path = resnet
    source = load_source(str(path))
    x = torch.randn(8, 3, 16, 16)
    result = brecq.quantize(source.model, x, brecq.QuantConfig(weights=8, method="rtn"))
    assert {block.name for block in result.report.blocks} >= {"layer1.0", "layer1.1", "layer2.0"}
    loaded = brecq.load(result.save(tmp_path / "out"))
    with torch.no_grad():
        assert torch.equal(loaded.model(x), result.model(x))
        assert brecq.evaluate(result.model, x, reference=model).sqnr > 20


def test_outputs_of_ones_own(tmp_path: Path) -> None:
    make = onnx.helper.make_node
    nodes = [
        make("Conv", ["x", "w"], ["c"]), make("Relu", ["c"], ["r"]), make("NonMaxSuppression", ["r", "r"], ["y"]),
    ]  # fmt: skip
    path = by_hand(nodes, {"w": np.ones((2, 3, 1, 1), np.float32)}, [1, 3, 4, 4], tmp_path / "model.onnx")
    with pytest.raises(SourceError, match=r"NonMaxSuppression \(1\); export without them, or end .*model.onnx:r,r"):
        load_source(str(path))
    found = load_source(f"{path}:c,r").model(torch.ones(2, 3, 4, 4))
    assert list(found) == ["c", "r"]
    with pytest.raises(SourceError, match=r"has no tensor 'z'; its last ones are c, r, y"):
        load_source(f"{path}:z")


def test_what_is_refused(tmp_path: Path) -> None:
    make = onnx.helper.make_node
    quantized = [make("DequantizeLinear", ["q", "s"], ["w"]), make("Conv", ["x", "w"], ["y"])]
    constants = {"q": np.ones((2, 3, 1, 1), np.int8), "s": np.array(0.1, np.float32)}
    path = by_hand(quantized, constants, [1, 3, 4, 4], tmp_path / "q.onnx")
    with pytest.raises(SourceError, match=r"is quantized already \(it holds DequantizeLinear\)"):
        load_source(str(path))
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(SourceError, match=r"not a readable ONNX file"):
        load_source(str(tmp_path / "text.onnx"))
    with pytest.raises(SourceError, match=r"there is no file"):
        load_source(str(tmp_path / "none.onnx"))
    with pytest.raises(SourceError, match=r"leave out"):
        load_source(str(path), tmp_path / "weights.pt")


@pytest.mark.slow
def test_operators_compute_what_onnx_says_or_are_refused() -> None:
    """Against the examples of the standard: a value that differs is a fault, whatever else is refused."""
    import tempfile
    import warnings

    from brecq.sources.onnx_files.reader import read

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        cases = collect_testcases(None)
    checked, wrong = 0, []
    for case in cases:
        nodes = case.model.graph.node
        if len(nodes) != 1 or nodes[0].op_type not in operators.OPERATORS or not case.data_sets:
            continue
        given, expected = case.data_sets[0]
        arrays = [*given, *expected]
        plain = all(isinstance(v, np.ndarray) and v.dtype.kind in "fib" and v.size for v in arrays)
        if not plain or "same_values" in case.name or any(v.dtype == np.float64 for v in arrays):
            continue  # equal values have no order; double is read as float
        names = [each.name for each in case.model.graph.input]
        for name, value in list(zip(names, given, strict=False))[1:]:
            case.model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            onnx.save(case.model, path)
            try:
                module, _ = read(path)
                with torch.no_grad():
                    found = module(torch.from_numpy(np.array(given[0])))
            except SourceError:
                continue
        values = list(found.values()) if isinstance(found, dict) else [found]
        checked += 1
        for ours, theirs in zip(values, expected, strict=False):
            value = operators.as_tensor(ours).numpy()
            same = value.shape == theirs.shape and np.allclose(value, theirs, rtol=2e-3, atol=2e-3, equal_nan=True)
            wrong += [] if same else [case.name]
    assert not wrong
    assert checked > 450


def test_a_batch_size_inside_of_shapes_is_named(tmp_path: Path) -> None:
    """Heads of attention folded into the batch: two samples do not fit where one was exported."""
    nodes = [onnx.helper.make_node("Reshape", ["x", "shape"], ["y"])]
    path = by_hand(nodes, {"shape": np.array([6, 2, 8])}, [1, 6, 16], tmp_path / "model.onnx")
    with pytest.raises(SourceError, match=r"does not run on 2 samples; export it with a dynamic batch \(shape"):
        load_source(str(path))


def test_what_onnx_runtime_does_not_take_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("no kernel for it\nmore")

    path = by_hand([onnx.helper.make_node("Relu", ["x"], ["y"])], {}, [1, 4], tmp_path / "model.onnx")
    monkeypatch.setattr(ORT, "InferenceSession", refuse)
    with pytest.raises(SourceError, match=r"ONNX Runtime does not take it \(no kernel for it\)$"):
        load_source(str(path))


def test_inputs_of_several_names_and_types_go_to_their_places(tmp_path: Path) -> None:
    nodes = [
        onnx.helper.make_node("Gather", ["table", "token.ids"], ["words"], axis=0),
        onnx.helper.make_node("Where", ["mask", "words", "zero"], ["shown"]),
        onnx.helper.make_node("Add", ["shown", "words:0"], ["sum"]),
        onnx.helper.make_node("MatMul", ["sum", "weight"], ["y"]),
    ]
    rng = np.random.default_rng(0)
    constants = {
        "table": rng.normal(size=(10, 4)).astype(np.float32),
        "weight": rng.normal(size=(4, 3)).astype(np.float32),
        "zero": np.zeros((), np.float32),
    }
    kinds = {"token.ids": (7, 6), "mask": (9, (6, 1)), "words:0": (1, (6, 4))}
    sides = {name: [side] if isinstance(side, int) else list(side) for name, (_, side) in kinds.items()}
    graph = onnx.helper.make_graph(
        nodes, "g",
        [onnx.helper.make_tensor_value_info(name, kind, ["N", *sides[name]]) for name, (kind, _) in kinds.items()],
        [onnx.helper.make_tensor_value_info("y", 1, ["N", 6, 3])],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    path = tmp_path / "several.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
    ids, mask = rng.integers(0, 10, (8, 6)), rng.random((8, 6, 1)) > 0.4
    words = rng.normal(size=(8, 6, 4)).astype(np.float32)
    expected = (np.where(mask, constants["table"][ids], 0) + words) @ constants["weight"]

    source = load_source(str(path))
    np.savez(tmp_path / "calib.npz", words_0=words, mask=mask, token_ids=ids)  # in another order than the file's
    data = brecq.data.load_data(tmp_path / "calib.npz", None, None, 0)
    given = {"token.ids": ids, "words:0": words, "mask": mask}  # as the file has them
    np.savez(tmp_path / "own.npz", **given, x=np.zeros(8))  # type: ignore[arg-type]
    own = brecq.data.load_data(tmp_path / "own.npz", None, None, 0, form=brecq.data.Form(model=source.model))
    named = brecq.data.load_data(f"{tmp_path / 'own.npz'}:token.ids,words:0,mask", None, None, 0)
    right = brecq.data.collect(data, None, model=source.model).digest()
    for each in (own, named, given):
        assert brecq.data.collect(each, None, model=source.model).digest() == right
    told = r"holds 'token.ids', 'words', 'mask', and .*\(token_ids, mask, words_0\) takes no 'words'"
    with pytest.raises(brecq.BrecqError, match=told):
        brecq.quantize(source.model, [{"token.ids": ids, "words": words, "mask": mask}])
    result = brecq.quantize(source.model, data, brecq.QuantConfig(weights=8, activations=32, method="rtn"))
    named = {name: torch.from_numpy(value) for name, value in (("mask", mask), ("token_ids", ids), ("words_0", words))}
    for model, tolerance in ((source.model, 1e-5), (copy.deepcopy(source.model), 1e-5), (result.model, 0.05)):
        assert torch.allclose(model(**named), torch.from_numpy(expected), atol=tolerance)
    measured = brecq.evaluate(result.model, data, reference=source.model)
    assert measured.sqnr is not None
    assert measured.sqnr > 35
