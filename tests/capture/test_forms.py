"""The forms in which networks come: outputs, wrappers, number types, modes, and what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import brecq
from brecq import QuantConfig, Recipe
from brecq.capture.export import capture
from brecq.errors import CaptureError
from brecq.graph import ops

CONFIG = QuantConfig(
    weights=6, recipe=Recipe.preset("fast").replace(steps=2, batch_size=4, range_candidates=5, tuning=1.0)
)


def build(network: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return network().eval()


class Named(NamedTuple):
    logits: Tensor
    features: Tensor


@dataclasses.dataclass
class Record:
    logits: Tensor
    features: Tensor
    loss: Tensor | None = None


class Net(nn.Module):
    """Returns what it is told to, made from its logits and features."""

    def __init__(self, result: Any = lambda m, logits, features: logits) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 5)
        self.register_buffer("buffer", torch.ones(3))
        self.result = result

    def forward(self, x: Tensor) -> Any:
        features = F.relu(self.conv(x)).mean((2, 3))
        return self.result(self, self.head(features), features)


RESULTS = {
    "named tuple": lambda m, logits, f: Named(logits, f),
    "data class": lambda m, logits, f: Record(logits, f),
    "constants": lambda m, logits, f: (logits, m.buffer, m.head.bias, torch.arange(4), 3, 0.5, True, None),
    "sizes": lambda m, logits, f: {"logits": logits, "count": logits.shape[0], "zeros": torch.zeros(f.shape[0])},
    "scalar": lambda m, logits, f: [logits, logits.mean(), f.sum(0)],
    "indices": lambda m, logits, f: (logits.argmax(1), f),
    "indices only": lambda m, logits, f: logits.argmax(1),
    "scalar only": lambda m, logits, f: logits.mean(),
}


@pytest.mark.parametrize("kind", RESULTS)
def test_every_output_passes_through_learning_and_saving(kind: str, tmp_path: Any) -> None:
    model, x = build(lambda: Net(RESULTS[kind])), torch.randn(8, 3, 8, 8)
    result = brecq.quantize(model, x, CONFIG)
    expected, found = model(x), result.model(x)
    expected = dataclasses.asdict(expected) if dataclasses.is_dataclass(expected) else expected
    leaves = [leaf for leaf in pytree.tree_leaves(expected) if kind != "data class" or leaf is not None]
    assert len(pytree.tree_leaves(found)) == len(leaves)
    for ours, theirs in zip(pytree.tree_leaves(found), leaves, strict=True):
        if isinstance(theirs, Tensor) and theirs.is_floating_point():
            torch.testing.assert_close(ours, theirs, rtol=0.2, atol=0.2)
        elif not isinstance(theirs, Tensor):
            assert ours == theirs
    loaded = brecq.load(result.save(tmp_path / "result")).model(x)
    for ours, theirs in zip(pytree.tree_leaves(loaded), pytree.tree_leaves(found), strict=True):
        assert torch.equal(ours, theirs) if isinstance(theirs, Tensor) else ours == theirs


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda m, logits, f: (logits, "text"), "returns 'text', which no file can hold"),
        (lambda m, logits, f: (logits, object()), "returns a object, which no file can hold"),
        (lambda m, logits, f: {logits.shape[1] / 2: logits}, "a dictionary with the key 2.5"),
        (lambda m, logits, f: None, "Net returns None, no tensor"),
    ],
)
def test_what_cannot_be_saved_is_refused_at_once(result: Any, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        capture(Net(result).eval(), [torch.randn(2, 3, 8, 8)])


class Adapter(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.base = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.base(*args, **kwargs)


@pytest.mark.parametrize("wrap", [Adapter, nn.DataParallel, torch.compile, lambda m: Adapter(torch.compile(m))])
def test_wrapped_networks(wrap: Any) -> None:
    model, x = build(Net), torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(capture(wrap(model), [x[:2]])(x), model(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_number_types_are_quantized_in_float32(dtype: torch.dtype) -> None:
    model = build(Net)
    model.conv.to(dtype)
    mixed = sum(parameter.dtype == dtype for parameter in model.parameters())
    result = brecq.quantize(model, torch.randn(8, 3, 8, 8).to(dtype), CONFIG)
    name = str(dtype).removeprefix("torch.")
    assert f"the network holds {mixed} {name} tensors of 5: a float32 copy of it was quantized" in result.report.notes
    assert next(model.parameters()).dtype == dtype
    assert result.model(torch.randn(2, 3, 8, 8)).dtype == torch.float32


def test_quantize_in_any_mode_gives_the_same_network() -> None:
    x, probe = torch.randn(8, 3, 8, 8), torch.randn(2, 3, 8, 8)
    expected = brecq.quantize(build(Net), x, CONFIG).model(probe)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = brecq.quantize(build(Net), x.clone(), CONFIG).model(probe)
        assert torch.equal(found, expected), mode
    with torch.inference_mode():
        model = build(Net)  # its parameters are inference tensors
    assert torch.equal(brecq.quantize(model, x, CONFIG).model(probe), expected)
    with torch.autocast("cpu", torch.bfloat16):
        result = brecq.quantize(build(Net), x, CONFIG)
    assert torch.equal(result.model(probe), expected)
    torch.set_default_dtype(torch.float64)
    try:
        assert brecq.quantize(build(Net), x, CONFIG).model(probe).dtype == torch.float32
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_two_images_stacked_and_split() -> None:
    class Stacked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(16, 5)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            a, b = F.relu(self.encoder(torch.cat([x, y]))).mean((2, 3)).chunk(2)
            return self.head(torch.cat([a, b], 1))

    model, x, y = build(Stacked), torch.randn(5, 3, 8, 8), torch.randn(5, 3, 8, 8)
    graph = capture(model, [x[:2], y[:2]])
    for count in (1, 2, 5):
        torch.testing.assert_close(graph(x[:count], y[:count]), model(x[:count], y[:count]))


def test_one_tensor_given_twice_stays_two_inputs() -> None:
    class Difference(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.layer(x) - y

    model, x, y = Difference(), torch.randn(2, 4), torch.randn(2, 4)
    torch.testing.assert_close(capture(model, [x, x])(x, y), model(x, y))


def test_networks_for_single_samples_are_told_so() -> None:
    class Single(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.conv(x)).mean((2, 3)).view(1, 8))

    with pytest.raises(CaptureError, match=r"takes one sample at a time: with 2 it fails .*x\.shape\[0\]"):
        capture(Single().eval(), [torch.randn(2, 3, 8, 8)])


def test_the_part_that_depends_on_data_is_named() -> None:
    class Filter(nn.Module):  # without parameters, and called with more than tensors
        def forward(self, values: dict[str, Tensor], threshold: float) -> Tensor:
            if values["scores"].max() > threshold:
                return values["scores"] * 2
            return values["scores"]

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.post = Net(), nn.ModuleDict({"filter": Filter()})

        def forward(self, x: Tensor) -> Tensor:
            return self.post["filter"]({"scores": self.body(x)}, 0.5)

    with pytest.raises(CaptureError, match=r"submodule 'post\.filter' \(Filter\)"):
        capture(Detector().eval(), [torch.randn(2, 3, 8, 8)])


def test_tied_layers_have_the_names_of_their_modules() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.body, self.head = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 9, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(F.relu(self.body(self.embed(tokens))))

    model, tokens = build(Tied), torch.arange(8).view(4, 2)
    for name in ("head", "embed"):
        rule = brecq.LayerRule(name, weights=3)
        found = brecq.inspect(model, (tokens,), QuantConfig(weights=4, first_last=None, rules=(rule,)))
        assert {e.layer: e.weights.split()[0] for e in found.scope if e.kind == "linear"} == {"body": "4", "head": "3"}


@pytest.mark.parametrize("core", [False, True])
def test_exported_programs_also_for_other_batch_sizes_than_theirs(core: bool) -> None:
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(True), nn.Flatten(), nn.Linear(32, 5))
    model = build(lambda: nn.Sequential(*layers))
    sizes = ({0: torch.export.Dim("n", min=2, max=8)},)
    program = torch.export.export(model, (torch.randn(2, 3, 4, 4),), dynamic_shapes=sizes)
    program = program.run_decompositions() if core else program
    graph = capture(program.module(), [torch.randn(2, 3, 4, 4)])
    assert [ops.kind(node) for node in graph.graph.nodes if ops.kind(node)] == ["conv2d", "linear"]
    for count in (1, 12):
        x = torch.randn(count, 3, 4, 4)
        torch.testing.assert_close(graph(x), model(x))
