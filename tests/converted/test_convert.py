"""The converted program computes what the prepared graph computes, from integer constants alone."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import FakeQuantizeBase
from torchao.quantization.pt2e.observer import HistogramObserver, PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer

from brecq.capture.export import capture as brecq_capture
from brecq.checkpoint import PackedWeight, collect_tensors, read, write
from brecq.config import Placement, QuantConfig
from brecq.converted.convert import convert, to_program
from brecq.errors import BrecqError, CaptureError
from brecq.placement.prepare import fake_quantize_node
from brecq.placement.prepare import prepare as brecq_prepare
from brecq.placement.quantizer import BrecqQuantizer
from brecq.quant.fake_quant import ActivationFakeQuantize, Mode, WeightFakeQuantize, set_mode
from brecq.reconstruct.learnables import learnables

pytestmark = pytest.mark.usefixtures("no_gradients")
aten = torch.ops.aten
decomposed = torch.ops.quantized_decomposed
LAYERS = {
    aten.conv1d.default, aten.conv2d.default, aten.conv_transpose2d.input, aten.linear.default,
}  # fmt: skip
INT32 = torch.iinfo(torch.int32)


class Weights(FakeQuantizeBase):
    """Rounding to nearest on a per-channel grid; every third code is rounded the other way, as learning would."""

    def __init__(self, bits: int, symmetric: bool, axis: int, **spec: object) -> None:
        super().__init__()
        self.dtype, self.qscheme, self.ch_axis, self.is_dynamic = torch.int8, torch.per_channel_affine, axis, False
        self.quant_max = (1 << (bits - 1)) - 1
        self.quant_min = -self.quant_max if symmetric else -self.quant_max - 1
        self.symmetric, self.enabled = symmetric, True
        self.scale = self.zero_point = torch.empty(0)

    def forward(self, weight: Tensor) -> Tensor:
        if not self.enabled:
            return weight
        rows = weight.transpose(0, self.ch_axis).flatten(1)
        low, high = rows.amin(1).clamp(max=0), rows.amax(1).clamp(min=0)
        if self.symmetric:
            self.scale = torch.maximum(high, -low) / self.quant_max
            self.zero_point = torch.zeros_like(low, dtype=torch.int64)
        else:
            self.scale = (high - low) / (self.quant_max - self.quant_min)
            self.zero_point = (self.quant_min - (low / self.scale).round()).long()
        shape = [1] * weight.dim()
        shape[self.ch_axis] = -1
        scale, zero_point = self.scale.view(shape), self.zero_point.view(shape)
        steps = (weight / scale).round()
        steps = steps.contiguous()
        steps.view(-1)[::3] += 1
        codes = (steps + zero_point).clamp(self.quant_min, self.quant_max)
        return (codes - zero_point) * scale

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        return self.scale, self.zero_point


class Inputs(FakeQuantizeBase):
    """Per-tensor unsigned grid, fixed on the first batch; multiplies by float(1 / scale), as the operator does."""

    def __init__(self, bits: int, **spec: object) -> None:
        super().__init__()
        self.dtype, self.qscheme, self.ch_axis, self.is_dynamic = torch.uint8, torch.per_tensor_affine, -1, False
        self.quant_min, self.quant_max, self.enabled = 0, (1 << bits) - 1, True
        self.scale, self.zero_point = torch.ones(1), torch.zeros(1, dtype=torch.int64)
        self.ready = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            return x
        if not self.ready:
            low = x.min().clamp(max=0)
            self.scale = ((x.max() - low) / self.quant_max).reshape(1)
            self.zero_point = (-low / self.scale).round().long()
            self.ready = True
        scale, zero_point = float(self.scale), int(self.zero_point)
        codes = (torch.round(x * (1.0 / scale)) + zero_point).clamp(self.quant_min, self.quant_max)
        return (codes - zero_point) * scale

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        return self.scale, self.zero_point


class Biases(FakeQuantizeBase):
    """int32 with step s_x·s_w."""

    def __init__(self, inputs: Inputs, weights: Weights) -> None:
        super().__init__()
        self.dtype, self.qscheme, self.ch_axis, self.is_dynamic = torch.int32, torch.per_channel_affine, 0, False
        self.quant_min, self.quant_max, self.enabled = INT32.min, INT32.max, True
        self.sources = [inputs, weights]  # a list: not registered twice

    def forward(self, bias: Tensor) -> Tensor:
        scale, _ = self.calculate_qparams()
        return (bias / scale).round().clamp(self.quant_min, self.quant_max) * scale if self.enabled else bias

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        inputs, weights = self.sources
        scale = inputs.scale * weights.scale
        return scale, torch.zeros_like(scale, dtype=torch.int64)


class TinyQuantizer(Quantizer):
    def __init__(self, bits: int, activations: int, symmetric: bool) -> None:
        self.bits, self.activations, self.symmetric = bits, activations, symmetric

    def annotate(self, model: GraphModule) -> GraphModule:
        for node in model.graph.nodes:
            if node.target not in LAYERS:
                continue
            axis = 1 if node.target is aten.conv_transpose2d.input else 0
            weights = QuantizationSpec(
                dtype=torch.int8,
                observer_or_fake_quant_ctr=Weights.with_args(bits=self.bits, symmetric=self.symmetric, axis=axis),
            )
            inputs = QuantizationSpec(
                dtype=torch.uint8, observer_or_fake_quant_ctr=Inputs.with_args(bits=self.activations)
            )
            node.meta["quantization_annotation"] = QuantizationAnnotation(
                input_qspec_map={node.args[0]: inputs, node.args[1]: weights}, _annotated=True
            )
        return model

    def validate(self, model: GraphModule) -> None:
        pass


def capture(net: nn.Module, x: Tensor) -> GraphModule:
    program = torch.export.export(net.eval(), (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    module = program.run_decompositions({}).module()
    for node in list(module.graph.nodes):
        if node.op == "call_module":  # the input guards of torch.export
            module.graph.erase_node(node)
    module.delete_all_unused_submodules()
    module.recompile()
    return module


def insert_biases(module: GraphModule) -> None:
    for index, node in enumerate([n for n in module.graph.nodes if n.target in LAYERS]):
        if len(node.args) < 3 or node.args[2] is None:
            continue
        fake_quants = [module.get_submodule(argument.target) for argument in node.args[:2]]
        module.add_submodule(f"bias_{index}", Biases(*fake_quants))
        with module.graph.inserting_before(node):
            bias = module.graph.call_module(f"bias_{index}", (node.args[2],))
        node.args = (*node.args[:2], bias, *node.args[3:])
    module.recompile()


def prepare(net: nn.Module, x: Tensor, *, bits: int = 4, activations: int = 8, symmetric: bool = False) -> GraphModule:
    """A prepared graph, ranges fixed on `x`, biases on the int32 grid."""
    module = prepare_pt2e(capture(net, x), TinyQuantizer(bits, activations, symmetric))
    with torch.no_grad():
        module(x)
    insert_biases(module)
    return module


def dequantize_nodes(module: GraphModule) -> list[Node]:
    return [node for node in module.graph.nodes if "dequantize" in str(node.target)]


def run(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return module(x)


class Images(nn.Module):
    """Convolutions with and without bias, batch norm (PT2E folds it); depthwise, transposed, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8, padding=1)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.head = nn.Linear(6, 5)
        nn.init.uniform_(self.stem[1].running_mean)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(self.depthwise(x)) + x
        return self.head(self.up(x).mean((2, 3)).reshape(-1, 6))


class Signals(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x))


class Shared(nn.Module):
    """One convolution called twice, and one tensor that is also read as float."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.relu(self.conv(x))) + self.conv.weight.abs().sum()


CASES = [(Images, (3, 3, 8, 8)), (Signals, (3, 4, 9)), (Shared, (3, 4, 6, 6))]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("bits", "activations", "symmetric"), [(2, 4, False), (4, 8, False), (8, 8, True), (3, 2, True)]
)
@pytest.mark.parametrize(("net", "shape"), CASES, ids=[net.__name__ for net, _ in CASES])
def test_equals_the_prepared_graph_bit_for_bit(
    net: type[nn.Module], shape: tuple[int, ...], bits: int, activations: int, symmetric: bool
) -> None:
    x = torch.randn(shape)
    prepared = prepare(net(), x, bits=bits, activations=activations, symmetric=symmetric)
    converted = convert(prepared)
    for batch in (x, torch.randn(1, *shape[1:]), 3 * torch.randn(5, *shape[1:])):
        assert torch.equal(run(converted, batch), run(prepared, batch))


def test_state_holds_integers_and_nothing_unread() -> None:
    x = torch.randn(2, 3, 8, 8)
    converted = convert(prepare(Images(), x))
    state = converted.state_dict()
    layers = ("stem.0", "depthwise", "up", "head")
    # PT2E adds the last one when it folds the batch norm.
    biases = ["depthwise.bias", "up.bias", "head.bias", "stem.0.weight_bias"]
    assert all(state[f"{layer}.weight"].dtype == torch.int8 for layer in layers)
    assert all(state[bias].dtype == torch.int32 for bias in biases)
    assert set(state) == {str(node.target) for node in converted.graph.nodes if node.op == "get_attr"}
    floats = {name for name, value in state.items() if value.dtype == torch.float32}
    assert floats == {f"{layer}.weight_scale" for layer in layers} | {f"{bias}_scale" for bias in biases}
    assert state["up.weight_scale"].shape == (6,)


def test_the_prepared_graph_is_left_alone() -> None:
    x = torch.randn(2, 3, 8, 8)
    prepared = prepare(Images(), x)
    before, code, state = run(prepared, x), prepared.code, {k: v.clone() for k, v in prepared.state_dict().items()}
    convert(prepared)
    assert prepared.code == code
    assert torch.equal(run(prepared, x), before)
    assert all(torch.equal(v, state[k]) for k, v in prepared.state_dict().items())
    assert torch.equal(run(convert(prepared), x), before)


def test_biases_are_int32_and_dequantized_by_one_product() -> None:
    x = torch.randn(2, 4, 9)
    prepared = prepare(Signals(), x)
    converted = convert(prepared)
    state = converted.state_dict()
    node = next(n for n in dequantize_nodes(converted) if str(n.args[0].target) == "conv.bias")
    assert node.args[3:] == (0, INT32.min, INT32.max, torch.int32)
    assert not state["conv.bias_zero_point"].any()
    product = state["conv.bias"].float() * state["conv.bias_scale"]
    assert torch.equal(product, run(prepared.get_submodule("bias_0"), prepared.get_parameter("conv.bias")))


@pytest.mark.parametrize("shrink", [1e-2, 1e-5, 1e-8, 1e-11])
def test_biases_of_nearly_dead_channels_keep_their_value(shrink: float) -> None:
    """Beyond 2^23 a float32 quotient misses the code; beyond 2^31 the code saturates and must keep its sign."""
    net = Signals()
    with torch.no_grad():
        net.conv.weight.mul_(shrink)
        net.conv.bias.copy_(torch.tensor([0.9, -0.9, 0.123456789, -1e-3, 1e-6, 0.0]))
    x = torch.randn(2, 4, 9)
    prepared = prepare(net, x, bits=8)
    converted = convert(prepared)
    assert torch.equal(run(converted, x), run(prepared, x))
    codes = converted.state_dict()["conv.bias"]
    assert (codes[:3].sign() == torch.tensor([1, -1, 1])).all()


def test_a_disabled_fake_quantizer_leaves_float() -> None:
    x = torch.randn(2, 3, 8, 8)
    prepared = prepare(Images(), x)
    for node in prepared.graph.nodes:
        if node.target is aten.linear.default:
            for argument in node.args:
                prepared.get_submodule(argument.target).enabled = False
    converted = convert(prepared)
    assert torch.equal(run(converted, x), run(prepared, x))
    assert converted.get_parameter("head.weight").dtype == torch.float32
    linear = next(node for node in converted.graph.nodes if node.target is aten.linear.default)
    assert not any("quantize" in str(argument.target) for argument in linear.args)


def test_one_weight_read_by_two_fake_quantizers_and_in_float() -> None:
    x = torch.randn(2, 4, 6, 6)
    prepared = prepare(Shared(), x)
    second = [node for node in prepared.graph.nodes if node.target is aten.conv2d.default][1]
    prepared.add_submodule("coarse", Weights(2, symmetric=False, axis=0))
    with prepared.graph.inserting_before(second):
        coarse = prepared.graph.call_module("coarse", (second.args[1].args[0],))
    second.args = (second.args[0], coarse, *second.args[2:])
    prepared.recompile()
    converted = convert(prepared)
    assert torch.equal(run(converted, x), run(prepared, x))
    state = converted.state_dict()
    assert torch.equal(state["conv.weight"], prepared.get_parameter("conv.weight"))
    assert [state[name].dtype for name in ("conv.weight_1", "conv.weight_2")] == [torch.int8] * 2
    assert state["conv.weight_2"].unique().tolist() == [-2, -1, 0, 1]
    assert [state[name].dtype for name in ("conv.bias", "conv.bias_1")] == [torch.int32] * 2


def test_one_fake_quantizer_at_two_places_is_one_constant() -> None:
    x = torch.randn(2, 4, 6, 6)
    prepared = prepare(Shared(), x)
    convs = [node for node in prepared.graph.nodes if node.target is aten.conv2d.default]
    for position in (0, 1):
        convs[1].args[position].target = convs[0].args[position].target
    prepared.recompile()
    converted = convert(prepared)
    assert torch.equal(run(converted, x), run(prepared, x))
    assert sum(value.dtype == torch.int8 for value in converted.state_dict().values()) == 1
    grids = {n.args[1:3] for n in converted.graph.nodes if n.target is decomposed.quantize_per_tensor.default}
    assert len(grids) == 1


def test_a_weight_computed_from_a_parameter_is_folded() -> None:
    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 6))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.weight.t())

    x = torch.randn(3, 4)
    prepared = prepare(Transposed(), x)
    converted = convert(prepared)
    assert torch.equal(run(converted, x), run(prepared, x))
    assert {v.dtype for v in converted.state_dict().values()} == {torch.int8, torch.float32, torch.int64}
    assert converted.state_dict()["weight"].shape == (6, 4)


def test_observers_of_other_quantizers_convert_too() -> None:
    class Observed(TinyQuantizer):
        def annotate(self, model: GraphModule) -> GraphModule:
            for node in model.graph.nodes:
                if node.target in LAYERS:
                    inputs = QuantizationSpec(
                        dtype=torch.int8, quant_min=-128, quant_max=127, qscheme=torch.per_tensor_affine,
                        observer_or_fake_quant_ctr=HistogramObserver,
                    )  # fmt: skip
                    weights = QuantizationSpec(
                        dtype=torch.int8, quant_min=-127, quant_max=127, qscheme=torch.per_channel_symmetric,
                        ch_axis=0, observer_or_fake_quant_ctr=PerChannelMinMaxObserver,
                    )  # fmt: skip
                    node.meta["quantization_annotation"] = QuantizationAnnotation(
                        input_qspec_map={node.args[0]: inputs, node.args[1]: weights}, _annotated=True
                    )
            return model

    x = torch.randn(4, 4, 9)
    net = Signals().eval()
    prepared = prepare_pt2e(capture(net, x), Observed(8, 8, True))
    run(prepared, x)
    converted = convert(prepared)
    assert converted.state_dict()["conv.weight"].dtype == torch.int8
    assert (run(converted, x) - net(x)).abs().max() < 0.05 * net(x).abs().max()


def test_a_soft_fake_quantizer_is_refused() -> None:
    x = torch.randn(2, 4, 9)
    prepared = prepare(Signals(), x)
    weights = next(m for m in prepared.modules() if isinstance(m, Weights))
    weights.forward = lambda weight: weight  # type: ignore[method-assign]
    with pytest.raises(BrecqError, match=r"conv\.weight.*hard rounding"):
        convert(prepared)


def test_the_program_has_a_dynamic_batch_and_survives_a_file(tmp_path: Path) -> None:
    x = torch.randn(3, 3, 8, 8)
    converted = convert(prepare(Images(), x))
    program = to_program(converted, (x,))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    assert b"/" + Path(__file__).name.encode() not in buffer.getvalue()
    buffer.seek(0)
    for module in (program.module(), torch.export.load(buffer).module()):
        for batch in (x, torch.randn(1, 3, 8, 8), torch.randn(7, 3, 8, 8)):
            assert torch.equal(run(module, batch), run(converted, batch))


@pytest.mark.parametrize("placement", ["output", "input"])
@pytest.mark.parametrize(("bits", "activations"), [(2, 3), (8, 8)])
def test_brecq_fake_quantizers_convert_exactly(placement: Placement, bits: int, activations: int) -> None:
    x = torch.randn(3, 3, 8, 8)
    config = QuantConfig(weights=bits, activations=activations, placement=placement, first_last=None)
    prepared = brecq_prepare(brecq_capture(Images(), (x,)), BrecqQuantizer(config))
    set_mode(prepared, Mode.OBSERVE)
    run(prepared, x)
    for node in prepared.graph.nodes:
        fake_quant = fake_quantize_node(prepared, node)
        if isinstance(fake_quant, WeightFakeQuantize):
            fake_quant.initialize(prepared.get_parameter(node.args[0].target), 2.4, 10)
        elif isinstance(fake_quant, ActivationFakeQuantize):
            fake_quant.initialize(2.4, 10)
    set_mode(prepared, Mode.HARD)
    converted = convert(prepared)
    assert sum(v.dtype == torch.int8 for v in converted.state_dict().values()) == 4
    assert sum(v.dtype == torch.int32 for v in converted.state_dict().values()) == 4
    for batch in (x, 3 * torch.randn(5, 3, 8, 8)):
        assert torch.equal(run(converted, batch), run(prepared, batch))


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_packed_weights_equal_the_program(bits: int, tmp_path: Path) -> None:
    x = torch.randn(3, 3, 8, 8)
    converted = convert(prepare(Images(), x, bits=bits))
    write(tmp_path, converted, (x,), collect_tensors(converted), {}, {}, {})
    result = read(tmp_path)
    assert torch.equal(run(result.graph, x), run(converted, x))
    values = {name: value for name, value in result.tensors.items() if isinstance(value, PackedWeight)}
    assert sorted(values) == ["depthwise.weight", "head.weight", "stem.0.weight", "up.weight"]
    for node in dequantize_nodes(converted):
        if str(node.args[0].target) in values:
            weight = values[str(node.args[0].target)]
            constants = [converted.get_buffer(argument.target) for argument in node.args[:3]]
            assert torch.equal(weight.dequantize(), node.target(*constants, *node.args[3:]))
            assert weight.packed.numel() == -(-constants[0].numel() * bits // 8)


def test_a_program_can_be_exported_again() -> None:
    x = torch.randn(3, 3, 8, 8)
    converted = convert(prepare(Images(), x))
    again = to_program(to_program(converted, (x,)).module(), (x,))
    assert torch.equal(run(again.module(), x[:1]), run(converted, x[:1]))


def test_eval_and_devices_are_free() -> None:
    x = torch.randn(2, 3, 8, 8)
    converted = convert(prepare(Images(), x))
    assert converted.eval() is converted
    assert not converted.training
    for node in converted.graph.nodes:
        if "quantized_decomposed" in str(node.target):
            assert not any(isinstance(value, torch.device) for value in (*node.args, *node.kwargs.values()))
    meta = converted.to("meta")
    assert run(meta, x.to("meta")).device.type == "meta"


def test_a_batch_of_one_cannot_be_exported() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(2, 12)

    with pytest.raises(CaptureError, match="dynamic batch"):
        to_program(torch.fx.symbolic_trace(Fixed()), (torch.randn(2, 12),))


@pytest.mark.parametrize("activations", [8, 32])
def test_learned_biases_are_in_the_program(activations: int) -> None:
    """Rounded to int32 behind quantized inputs, in float behind others."""
    x = torch.randn(4, 3, 8, 8)
    config = QuantConfig(4, activations, first_last=None)
    prepared = brecq_prepare(brecq_capture(Images(), (x,)), BrecqQuantizer(config))
    set_mode(prepared, Mode.OBSERVE)
    run(prepared, x)
    mine = learnables(prepared)
    assert len(mine.biases) == 4
    for module, weight in mine.weights.values():
        module.initialize(weight, 2.4, 10)
    for activation in mine.activations.values():
        activation.initialize(2.4, 10)
    set_mode(prepared, Mode.HARD)
    before = run(prepared, x)
    for quantizer, bias in mine.biases.values():
        quantizer.restore({"learned": bias + 0.5})
    converted = convert(prepared)
    assert torch.equal(run(converted, x), run(prepared, x))
    assert not torch.equal(run(converted, x), before)
    state = converted.state_dict()
    biases = [str(node.args[0].target) for node in prepared.graph.nodes if node.target in mine.biases]
    for name in biases:  # under the names of those that they replace
        assert state[name].dtype is (torch.int32 if activations == 8 else torch.float32)
