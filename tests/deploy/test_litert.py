"""LiteRT: files that its interpreter runs code for code as the simulator of its kernels does, at their true bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import brecq
from brecq import QuantConfig, QuantResult
from brecq.deploy.complete import Completed
from brecq.deploy.runtime import traceable
from brecq.deploy.simulate import simulate
from brecq.errors import ConfigError, ExportError

pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert: pip install 'brecq[litert]'")

from brecq.deploy.lite.lower import lower
from brecq.deploy.lite.packing import pack_int4
from brecq.deploy.lite.values import regroup
from brecq.deploy.litert import runtime
from brecq.deploy.litert.flatbuffer import serialize

Quantized = Callable[..., QuantResult]

pytestmark = pytest.mark.filterwarnings("ignore:Warning. Enabling `experimental_preserve_all_tensors`")

NETWORKS: list[tuple[str, int, int, dict[str, Any], dict[str, int]]] = [
    ("ResNet", 4, 8, {"weight_scheme": "symmetric"}, {"int4": 7, "int8": 2}),
    ("ResNet", 4, 8, {}, {"int8": 9}),  # asymmetric: codes minus zero points take more than four bits
    ("MobileNet", 2, 4, {}, {"int4": 9, "int8": 2}),
    ("MobileNet", 3, 4, {"target": "litert"}, {"int4": 9, "int8": 2}),  # its mean has ties
    ("CifarResNet", 3, 8, {"first_last": None}, {"int4": 8}),
    ("ConcatNet", 5, 4, {"placement": "input"}, {"int8": 5}),
    ("SENet", 6, 8, {}, {"int8": 6}),
    ("FPN", 7, 6, {"activation_scheme": "symmetric"}, {"int8": 12}),
    ("UNet", 8, 8, {}, {"int8": 13}),
    ("Spotter", 3, 8, {}, {"int4": 2, "int8": 2}),  # the average of a sequence
    ("ViT", 4, 8, {"weight_scheme": "symmetric"}, {"int4": 8, "int8": 2}),
]


@pytest.mark.parametrize(("name", "weights", "activations", "config", "stored"), NETWORKS)
def test_the_interpreter_computes_the_codes_of_the_simulator(
    networks: ModuleType,
    quantized: Quantized,
    tmp_path: Path,
    name: str,
    weights: int,
    activations: int,
    config: dict[str, Any],
    stored: dict[str, int],
) -> None:
    result = quantized(name, weights, activations, **config)
    exported = brecq.export(result, tmp_path / "m.tflite", "tflite")
    x = networks.inputs(networks.build(getattr(networks, name)), 3, seed=5)
    arrays = [each.numpy() for each in x]
    session, simulator = runtime.load(exported.path), simulate(result, "LiteRT")
    expected = _tensors(simulator(*x))
    for found, ours in zip(session(*arrays), expected, strict=True):
        np.testing.assert_array_equal(found, ours.numpy())
    for part in traceable(session, x):
        _, codes = session.trace(*(each.numpy() for each in part))
        ours = simulator.codes(*part)
        assert codes.keys() == ours.keys()
        for key, value in ours.items():
            np.testing.assert_array_equal(codes[key].reshape(-1), value.reshape(-1).numpy(), err_msg=key)
    kernels = session.kernels()
    assert (kernels.integer, kernels.floating) == (sum(stored.values()), 0)
    assert exported.notes[0] == ", ".join(
        f"{stored[key]} layers at {bits} bits" for key, bits in (("int4", 4), ("int8", 8)) if key in stored
    )


@pytest.mark.parametrize("name", ["ResNet", "SENet", "UNet", "ConcatNet"])
def test_the_reference_kernels_compute_in_fixed_point(
    networks: ModuleType, quantized: Quantized, tmp_path: Path, name: str
) -> None:
    """What CMSIS-NN computes too."""
    result = quantized(name, 4, 8)
    exported = brecq.export(result, tmp_path / "m.tflite", "tflite")
    x = networks.inputs(networks.build(getattr(networks, name)), 1, seed=5)
    session = runtime.Session(exported.path, kernels="reference")
    _, codes = session.trace(*(each.numpy() for each in x))
    given = {key: torch.from_numpy(value) for key, value in codes.items()}
    _, ours, _ = simulate(result, "FixedPoint").follow(x, given)
    linear = {key for key in ours if key.endswith("linear")}  # rounded once there, twice in CMSIS-NN
    for key, value in ours.items():
        difference = np.abs(codes[key].reshape(-1).astype(int) - value.reshape(-1).numpy())
        assert difference.max() <= (key in linear), key


class TokensFirst(nn.Module):
    """Samples lie along the second dimension inside `nn.MultiheadAttention`, beside its heads at times."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.attend(x, x, x, need_weights=False)[0])


@pytest.mark.parametrize("batch", [1, 2])
def test_codes_of_tensors_without_samples_in_front_are_compared(tmp_path: Path, batch: int) -> None:
    """Put together along the first dimension, the codes of five samples were no tensor of the network's."""
    torch.manual_seed(0)
    result = brecq.quantize(
        TokensFirst().eval(), torch.randn(32, 5, 6), QuantConfig(8, 8, method="rtn", target="litert")
    )
    file = brecq.export(result, tmp_path / "m.tflite", batch=batch).path
    found = brecq.verify(result, file, torch.randn(5, 5, 6), bisect=True)
    assert found.as_expected, found.failures
    inside = {each.tensor: each for each in found.tensors}
    assert len(inside) > 4
    assert all(each.differing <= 1 for each in inside.values())
    with pytest.raises(ConfigError, match=f"takes {batch} samples, got 5"):
        runtime.load(file).trace(np.zeros((5, 5, 6), np.float32))


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


class Odd(nn.Module):
    """Odd numbers of channels everywhere: halves of bytes, and other kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 7, 3, stride=2)
        self.d = nn.Conv2d(7, 7, 3, padding=2, dilation=2, groups=7)
        self.e, self.f = nn.Conv2d(7, 9, (1, 3), padding=(0, 1)), nn.Linear(9, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.f(F.relu(self.e(F.relu(self.d(F.relu6(self.b(F.relu(self.a(x)))))))).mean((2, 3)))


def test_odd_numbers_of_channels(networks: ModuleType, tmp_path: Path) -> None:
    x = torch.randn(64, 3, 9, 11, generator=torch.Generator().manual_seed(0))
    config = brecq.QuantConfig(4, 8, method="rtn", weight_scheme="symmetric", first_last=None)
    result = brecq.quantize(networks.build(Odd), [x[:16]], config)
    exported = brecq.export(result, tmp_path / "m.tflite", "tflite")
    assert exported.notes[0] == "5 layers at 4 bits"
    np.testing.assert_array_equal(runtime.load(exported.path)(x.numpy())[0], simulate(result, "LiteRT")(x).numpy())
    brecq.export(result, tmp_path / "c", "cmsis-nn")
    source = (tmp_path / "c" / "network.c").read_text()
    assert "arm_depthwise_conv_wrapper_s8(" in source  # its s4 kernel reads odd many dilated channels wrongly
    assert source.count("arm_convolve_wrapper_s4(") == 4


def test_verify_asks_for_every_code_and_benchmark_runs_the_float_network_there_too(
    networks: ModuleType, quantized: Quantized, tmp_path: Path
) -> None:
    result = quantized("ResNet")
    x = networks.inputs(networks.build(networks.ResNet), 5)[0]
    brecq.export(result, tmp_path / "m.tflite", "tflite", batch=2)  # five samples: the last batch is half empty
    found = brecq.verify(result, tmp_path / "m.tflite", x, bisect=True)
    assert (found.runtime, found.exact, found.as_expected, found.samples) == ("LiteRT", True, True, 5)
    assert found.simulator.identical == 100
    assert len(found.tensors) == 14
    assert not any(tensor.differing for tensor in found.tensors)
    measured = brecq.benchmark(result, tmp_path / "m.tflite", batches=(1,), runs=2)
    assert measured.floating
    assert measured.size == (tmp_path / "m.tflite").stat().st_size


def test_files_hold_weights_at_their_bits_and_little_else(quantized: Quantized, tmp_path: Path) -> None:
    sizes = {}
    for bits in (4, 8):
        result = quantized("UNet", bits, 8, weight_scheme="symmetric", first_last=None)
        sizes[bits] = brecq.export(result, tmp_path / f"{bits}.tflite", "tflite").size
        spent = sizes[bits] - result.weight_bytes()
        assert spent < 13 * 650, "about 600 bytes a layer: its operators, tensors, scales and biases"
    weights = 8 * quantized("UNet", 8, 8, weight_scheme="symmetric", first_last=None).weight_bytes() / 8
    saved = sizes[8] - sizes[4]
    assert 0.4 * weights < saved < 0.5 * weights  # transposed convolutions stay at 8 bits


def test_what_litert_cannot_run_is_refused_in_a_line(quantized: Quantized, tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    with pytest.raises(ExportError, match=r"LiteRT: conv2d in conv1 has asymmetric 8-bit.*--weight-scheme symmetric"):
        brecq.export(quantized("ResNet", 8, 8, weight_scheme="asymmetric"), path, "tflite")
    with pytest.raises(ExportError, match=r"leaves them in float; quantize with --activation-bits 8"):
        brecq.export(quantized("ViT", 4, 32), path, "tflite")
    with pytest.raises(ExportError, match=r"LiteRT: conv_transpose1d in up is transposed in 2 groups; export to"):
        brecq.export(quantized("Signal"), path, "tflite")
    with pytest.raises(ConfigError, match="batch is 0; choose 1 or more"):
        brecq.export(quantized("ResNet"), path, "tflite", batch=0)
    assert not list(tmp_path.iterdir())
    path.write_bytes(b"not a FlatBuffer at all")
    with pytest.raises(ExportError, match=r"not a \.tflite file"):
        runtime.load(path)


def test_an_operator_without_a_form_is_named_with_its_module() -> None:
    class Sorts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cumsum(x, 1)

    with pytest.raises(ExportError, match=r"LiteRT has no operator here for cumsum \(in cumsum\); export to ONNX"):
        lower(_completed(Sorts(), torch.randn(2, 3)), 1, runtime.LITERT)


def test_a_file_says_what_it_was_exported_from(quantized: Quantized, tmp_path: Path) -> None:
    result = quantized("ResNet")
    brecq.export(result, tmp_path / "m.tflite", "tflite")
    content = (tmp_path / "m.tflite").read_bytes()
    assert content[4:8] == b"TFL3"
    assert runtime.load(tmp_path / "m.tflite").digest == result.digest()
    brecq.export(result, tmp_path / "again.tflite", "tflite")
    assert (tmp_path / "again.tflite").read_bytes() == content


def _completed(module: nn.Module, *inputs: Tensor) -> Completed:
    graph: Any = torch.export.export(module.eval(), inputs).module()
    from brecq.graph.fold import drop_guards

    drop_guards(graph)
    return Completed(graph, (), inputs, ())


def _run(module: nn.Module, *inputs: Tensor) -> list[np.ndarray]:
    """A float network in the interpreter."""
    program = lower(_completed(module, *inputs), len(inputs[0]), runtime.LITERT)
    return runtime.Session(serialize(program, "", {}))(*(each.numpy() for each in inputs))


class Net(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


OPERATORS: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "activations": (lambda x: F.silu(x) + F.gelu(x) + F.hardswish(x) + F.hardsigmoid(x) + F.elu(x), (2, 3, 4, 5)),
    "clamps": (lambda x: F.relu(x) + F.relu6(3 * x) + x.clamp(-0.5, 0.25) + x.clamp(min=0.1) + x.clamp(max=2), (2, 7)),
    "more": (lambda x: F.leaky_relu(x, 0.2) + x.sigmoid() * x.tanh() + F.gelu(x, approximate="tanh"), (2, 5)),
    "powers": (lambda x: x.abs().sqrt() + (x * x + 1).rsqrt() + x**2 + (x.abs() + 1).reciprocal() + x.exp(), (2, 5)),
    "scalars": (lambda x: 1 - x / 3 + torch.add(x, x, alpha=2) - torch.sub(x, 1), (2, 3, 4, 5)),
    "broadcast": (lambda x: x * x.mean((2, 3), keepdim=True) + x[:, :1] + torch.arange(5.0), (2, 3, 4, 5)),
    "softmax": (lambda x: x.softmax(1) + x.softmax(-1), (2, 3, 4, 5)),
    "layer norm": (lambda x: F.layer_norm(x, (5,), torch.arange(5.0), torch.ones(5)), (2, 3, 5)),
    "layer norm of channels": (lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (3,)).permute(0, 3, 1, 2), (2, 3, 4, 5)),
    "group norm": (lambda x: F.group_norm(x, 2, torch.arange(6.0), torch.ones(6)), (2, 6, 4, 5)),
    "batch norm": (lambda x: F.batch_norm(x, torch.ones(3), torch.full((3,), 2.0), torch.arange(3.0)), (2, 3, 4, 5)),
    "attention": (lambda x: F.scaled_dot_product_attention(x, x.flip(2), x * 2), (2, 3, 4, 5)),
    "products": (lambda x: x @ x.transpose(1, 2) @ x, (2, 4, 5)),
    "flatten": (lambda x: x.flatten(1), (2, 3, 4, 5)),
    "view": (lambda x: x.view(2, 2, 3, 4, 5).transpose(1, 2).reshape(x.shape), (2, 6, 4, 5)),
    "shuffle": (lambda x: F.channel_shuffle(x, 3), (2, 6, 4, 5)),
    "functions": (lambda x: (x.abs() + 1).log() + x.sin() + x.cos() + x.floor() + x.ceil() - x.abs() - (-x), (2, 5)),
    "pixels": (lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 4), (2, 12, 4, 6)),
    "slices": (lambda x: torch.cat([x[:, 1:], x[:, ::2], x.flip(3)[:, -1:]], 1)[:, :, 1:3, :-1], (2, 4, 5, 6)),
    "parts": (lambda x: torch.stack([*x.chunk(2, 1), x.split([1, 3], 1)[0].repeat(1, 2, 1, 1)], 2), (2, 4, 5, 3)),
    "select": (lambda x: x[:, 1].unsqueeze(1).expand(-1, 3, -1, -1) + x.unbind(1)[0].unsqueeze(1), (2, 4, 5, 3)),
    "roll": (lambda x: x.roll((1, -2), (2, 3)), (2, 4, 5, 6)),
    "pads": (lambda x: F.pad(F.pad(x, (1, 2, 0, 1)), (-1, 0)), (2, 3, 4, 5)),
    "resize": (lambda x: F.interpolate(x, scale_factor=2) + F.interpolate(x, (8, 10), mode="bilinear"), (2, 3, 4, 5)),
    "corners": (lambda x: F.interpolate(x, (7, 9), mode="bilinear", align_corners=True), (2, 3, 4, 5)),
    "means": (lambda x: (x.mean((2, 3)), x.mean(1), x.sum(3), x.amax((1, 2)), x.amin(3)), (2, 3, 4, 5)),
    "maxima": (lambda x: (F.max_pool2d(x, 3, 2, 1), F.max_pool2d(x, 3, 2, ceil_mode=True)), (2, 3, 8, 7)),
    "norm": (lambda x: x / torch.linalg.vector_norm(x, 2, [-1], True).expand_as(x).reshape_as(x), (2, 3, 8)),
    "inner averages": (
        lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False) + F.avg_pool2d(x, 1, ceil_mode=True), (2, 3, 8, 8),
    ),
    "averages": (lambda x: F.avg_pool2d(x, 3, 2, 1) + F.adaptive_avg_pool2d(x, (4, 4)), (2, 3, 8, 8)),
    "signals": (lambda x: F.max_pool1d(F.conv1d(x, torch.ones(4, 3, 5), padding=2, stride=2), 2), (2, 3, 16)),
    "same": (lambda x: F.conv2d(x, torch.ones(4, 3, 4, 3), padding="same", dilation=(1, 2)), (2, 3, 9, 8)),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_float_operators_compute_what_pytorch_computes(name: str) -> None:
    function, shape = OPERATORS[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for found, expected in zip(_run(Net(function), x), _tensors(function(x)), strict=True):
        np.testing.assert_allclose(found, expected.numpy(), atol=2e-5, rtol=2e-5)


@settings(max_examples=40)
@given(
    st.integers(1, 5), st.integers(1, 3), st.integers(0, 3), st.integers(1, 2), st.sampled_from([1, 2, 6]),
    st.tuples(st.integers(9, 13), st.integers(9, 13)), st.tuples(st.integers(0, 2), st.integers(0, 2)),
)  # fmt: skip
def test_every_geometry_of_convolutions(
    taps: int, stride: int, padding: int, dilation: int, groups: int, size: tuple[int, int], around: tuple[int, int]
) -> None:
    layer = nn.Conv2d(6, 12, taps, stride, padding, dilation, groups, bias=groups == 2)
    x = torch.randn(1, 6, *size)
    network = Net(lambda x: layer(F.pad(x, (around[0], around[1], around[1], around[0]))))
    with torch.no_grad():
        np.testing.assert_allclose(_run(network, x)[0], network(x).numpy(), atol=1e-4)


@settings(max_examples=30)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 2), st.integers(0, 1), st.booleans())
def test_every_geometry_of_transposed_convolutions(
    taps: int, stride: int, padding: int, more: int, bias: bool
) -> None:
    if padding >= taps or more >= stride:
        return
    layer = nn.ConvTranspose2d(3, 5, taps, stride, padding, more, bias=bias)
    x = torch.randn(1, 3, 6, 7)
    if more > padding:
        with pytest.raises(ExportError, match="more output padding than padding"):
            _run(Net(layer), x)
        return
    with torch.no_grad():
        np.testing.assert_allclose(_run(Net(layer), x)[0], layer(x).numpy(), atol=1e-4)


@given(st.permutations(range(4)), st.lists(st.sampled_from([1, 2, 3]), min_size=4, max_size=4), st.data())
def test_a_reshaping_stays_in_place_where_it_moves_nothing(order: list[int], shape: list[int], data: Any) -> None:
    splits = [(1, n) if n < 3 and data.draw(st.booleans()) else (n,) for n in shape]
    after = [n for split in splits for n in split]
    if data.draw(st.booleans()) and len(after) > 1:
        after[:2] = [after[0] * after[1]]
    x = np.arange(np.prod(shape)).reshape(shape)
    found = regroup(shape, after, tuple(order))
    if order == list(range(4)):
        assert found is not None
    if found is not None:
        memory = x.transpose(order).reshape([after[dim] for dim in found])
        np.testing.assert_array_equal(memory.transpose(np.argsort(found)), x.reshape(after))


def test_transposes_are_few(networks: ModuleType) -> None:
    """Convolutions and pooling stay channels last, a shuffle of channels takes one transpose."""

    def network(x: Tensor) -> Tensor:
        y = F.channel_shuffle(F.conv2d(x, torch.ones(6, 3, 3, 3)), 2)
        return F.conv2d(F.max_pool2d(y, 2), torch.ones(4, 6, 1, 1)).mean((2, 3))

    program = lower(_completed(Net(network), torch.randn(1, 3, 8, 8)), 1, runtime.LITERT)
    assert [each.kind for each in program.operators].count("TRANSPOSE") == 1


def test_four_bit_codes_are_packed_low_half_first() -> None:
    assert pack_int4(np.array([1, -1, -8], np.int8)) == bytes([0xF1, 0x08])


FUNCTIONS = {
    "LOGISTIC": nn.Sigmoid(), "TANH": nn.Tanh(), "GELU": nn.GELU(), "ELU": nn.ELU(), "LEAKY_RELU": nn.LeakyReLU(0.1),
}  # fmt: skip


class Functions(nn.Module):
    """A convolution behind each of some activation functions, and a sum of what they write."""

    def __init__(self, functions: list[nn.Module]) -> None:
        super().__init__()
        self.functions = nn.ModuleList(functions)
        self.stem = nn.ModuleList(nn.Conv2d(3, 16, 3) for _ in functions)
        self.ends = nn.ModuleList(nn.Conv2d(16, 4, 1) for _ in functions)

    def forward(self, x: Tensor) -> Tensor:
        parts = [end(act(stem(x))) for stem, act, end in zip(self.stem, self.functions, self.ends, strict=True)]
        return torch.stack([part.mean((2, 3)) for part in parts], 1).sum(1)


@pytest.mark.parametrize("target", ["litert", None])
def test_functions_of_one_code_are_kernels_of_int8(target: str | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, x = Functions(list(FUNCTIONS.values())).eval(), 3 * torch.randn(32, 3, 12, 12)
    result = brecq.quantize(network, x, brecq.QuantConfig(8, 8, method="rtn", target=target))
    brecq.export(result, tmp_path / "m.tflite")
    found = brecq.verify(result, tmp_path / "m.tflite", x[:8], bisect=True)
    assert found.as_expected, found.failures
    assert not any(tensor.differing for tensor in found.tensors)
    assert found.quantized.mean < 1
    kernels = found.kernels.operators  # type: ignore[union-attr]
    assert all(kernels[name] == 1 for name in FUNCTIONS)
    floats = next(note for note in found.notes if note.startswith("computed in float"))
    assert "gelu" not in floats
    assert "leaky_relu" not in floats
    assert ("sigmoid" in floats, "tanh" in floats) == (target is None,) * 2  # their kernels prescribe a grid


def test_every_code_of_a_leaky_relu() -> None:
    from brecq.converted.grids import Grid
    from brecq.deploy.lite.program import Operator, Program, Quantization
    from brecq.deploy.lite.program import Tensor as Named
    from brecq.deploy.simulate.arithmetic import LiteRT

    random, codes = np.random.default_rng(0), torch.arange(-128, 128)
    for slope in (0.1, 0.3):
        for _ in range(10):
            scale, zero = np.float32(random.uniform(0.01, 0.08)), int(random.integers(-100, 101))
            out, low = np.float32(scale * random.uniform(0.4, 1.2)), int(random.integers(-128, 1))
            tensors = [Named(each, (1, 256), "float32") for each in ("x", "y")]
            held = [
                Named(f"c{zero}", (1, 256), "int8", Quantization(np.array([step]), at))
                for step, at in ((scale, zero), (out, low))
            ]
            operators = [
                Operator("QUANTIZE", [tensors[0]], [held[0]]),
                Operator("LEAKY_RELU", [held[0]], [held[1]], {"alpha": slope}),
                Operator("DEQUANTIZE", [held[1]], [tensors[1]]),
            ]  # fmt: skip
            program = Program(operators, [tensors[0]], [tensors[1]])
            session = runtime.Session(serialize(program, "test", {}))
            found = session(((codes - zero).numpy().astype(np.float32) * scale)[None])[0][0]
            grids = [Grid(float(step), at, -128, 127, torch.int8) for step, at in ((scale, zero), (out, low))]
            expected = LiteRT().function("leaky_relu", codes, grids[0], slope, grids[1])
            assert expected is not None
            np.testing.assert_array_equal(np.round(found / out) + low, expected.numpy(), str((slope, scale, zero)))
