"""The quantization scope says for every operator what is quantized, or why it is not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brecq.capture.export import capture
from brecq.config import LayerRule, QuantConfig
from brecq.partition.cut import partition
from brecq.placement.prepare import prepare
from brecq.placement.quantizer import BrecqQuantizer
from brecq.placement.scope import float_weights, scope
from brecq.report import ScopeEntry


def entries(captured, name: str, **changes: object) -> dict[str, ScopeEntry]:
    config = QuantConfig(**{"weights": 4, "activations": 4, **changes})
    graph = prepare(captured(name), BrecqQuantizer(config))
    found = scope(graph, partition(graph))
    assert len({entry.op for entry in found}) == len(found)
    return {entry.layer if entry.weights else entry.op: entry for entry in found}


def test_layers(captured) -> None:
    found = entries(captured, "ResNet")
    entry = found["layer1.0.conv1"]
    assert (entry.kind, entry.block, entry.reason) == ("conv2d", "layer1.0", "")
    assert entry.weights.startswith("4 bit asymmetric")
    assert entry.inputs.startswith("8 bit asymmetric")  # what the first layer puts out
    assert found["layer1.0.conv2"].inputs.startswith("4 bit asymmetric")
    assert found["conv1"].weights.startswith("8 bit symmetric")
    assert found["conv1"].inputs.startswith("8 bit asymmetric")
    assert found["fc"].output == "float"  # the network's output
    assert [entry.layer for entry in found.values() if entry.weights] == [
        "conv1", "layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1", "layer1.1.conv2", "layer2.0.conv1",
        "layer2.0.conv2", "layer2.0.downsample.0", "fc",
    ]  # fmt: skip


def test_other_operators_and_reasons(captured) -> None:
    found = entries(captured, "ViT")
    attention = found["scaled_dot_product_attention"]
    assert (attention.weights, attention.block) == ("", "blocks.0")
    assert attention.inputs.startswith("4 bit")
    assert attention.reason == "a product of two activations, no weight"
    assert found["layer_norm"].reason == "normalization"
    assert found["layer_norm"].output.startswith("4 bit")
    assert found["gelu"].reason == "activation function of a layer, quantized behind it"
    assert {e.reason for e in found.values() if e.kind == "add"} == {"a sum that no layer reads as it is"}
    assert found["patch"].reason == "first layer (first_last)"
    assert found["head"].reason == "last layer (first_last)"
    assert "view" not in {entry.kind for entry in found.values()}  # data movement computes nothing


def test_reasons_of_float_layers(captured) -> None:
    rules = (LayerRule.parse("layer1.0.conv1", "float"), LayerRule("layer1.1.conv1", activations=32))
    found = entries(captured, "ResNet", rules=rules)
    float_layer = found["layer1.0.conv1"]
    assert (float_layer.weights, float_layer.reason) == ("float", "32 bits asked for")
    half = found["layer1.1.conv1"]
    assert half.weights.startswith("4 bit")
    assert (half.inputs, half.reason) == ("float", "activations: 32 bits asked for")


class Tokens(nn.Module):
    """A little of everything that stays in float; the embedding's weight is the head's, too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.memory = nn.GRU(8, 8, batch_first=True)
        self.up = nn.Linear(8, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.memory(self.embed(ids))[0]
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        x = x + F.silu(self.up(x)) * (ids > 3).unsqueeze(-1)
        return self.head(F.interpolate(x.transpose(1, 2), scale_factor=2.0, mode="linear").transpose(1, 2))


def test_every_operator_in_float_says_why() -> None:
    model = Tokens().eval()
    graph = prepare(capture(model, (torch.randint(11, (2, 5)),)), BrecqQuantizer(QuantConfig()))
    found = {entry.kind: entry for entry in scope(graph, partition(graph))}
    assert all(entry.reason for entry in found.values() if "float" in (entry.weights, entry.inputs, entry.output))
    assert found["embedding"].reason == "its table is the weight of a layer, and is stored once"
    assert found["gru"].reason == "recurrent, computed in float step by step"
    assert found["mean"].reason == "pooling or reduction, computed in float"
    assert found["rsqrt"].reason == found["pow"].reason == "computed in float, element by element"
    assert found["gt"].reason == "whole numbers or truth values, nothing to quantize"
    assert found["upsample_linear1d"].reason == "interpolation, computed in float"
    assert found["linear"].inputs.startswith("8 bit")  # what the recurrent layer returns is quantized
    counted = sum(entry.parameters for entry in scope(graph, partition(graph)))
    assert counted == sum(parameter.numel() for parameter in model.parameters())  # tied ones once


def test_what_a_concatenation_joins_on_one_grid_stays_on_it(captured) -> None:
    entry = next(entry for entry in entries(captured, "ConcatNet").values() if entry.kind == "cat")
    assert (entry.inputs, entry.output, entry.reason) == ("4 bit asymmetric", "4 bit asymmetric", "")


def test_why_what_joins_quantized_tensors_is_float() -> None:
    class Features(nn.Module):
        """Returns what its last two layers read, joined."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Conv2d(channels, 4, 1) for channels in (3, 4, 4))

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            a = self.layers[0](x).relu()
            b = self.layers[1](a).relu()
            return self.layers[2](b), torch.cat([a, b], 1)

    graph = prepare(capture(Features().eval(), (torch.randn(2, 3, 8, 8),)), BrecqQuantizer(QuantConfig()))
    entry = next(entry for entry in scope(graph, partition(graph)) if entry.kind == "cat")
    assert entry.output == "float"
    assert entry.reason == "what it makes of quantized tensors is read by no layer as it is"


def test_the_statistics_of_a_batch_norm_are_no_parameters() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3)).eval()  # nothing to fold it into
    graph = prepare(capture(model, (torch.randn(2, 3, 8, 8),)), BrecqQuantizer(QuantConfig()))
    found = {entry.kind: entry.parameters for entry in scope(graph, partition(graph))}
    assert found == {"batch_norm": 6, "relu": 0, "conv2d": 4 * 27 + 4}


class Levels(nn.Module):
    """A head over two levels with a batch norm for each."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norms = nn.Conv2d(3, 3, 3, padding=1), nn.ModuleList(nn.BatchNorm2d(3) for _ in range(2))
        self.last = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.last(norm(self.conv(level)).relu()) for norm, level in zip(self.norms, (x, -x), strict=True)]


def test_a_batch_norm_in_float_is_no_activation_function() -> None:
    graph = prepare(capture(Levels().eval(), (torch.randn(2, 3, 8, 8),)), BrecqQuantizer(QuantConfig()))
    found = {entry.kind: entry for entry in scope(graph, partition(graph))}
    norm, relu = found["batch_norm"], found["relu"]
    assert (norm.layer, norm.parameters) == ("norms.1", 6)
    assert norm.reason == (
        "batch norm, not folded: its layer is also called with other batch norms; a copy of the layer for each would "
        "be folded"
    )
    assert relu.reason == "activation function of a layer, quantized behind it"


def test_attention_says_what_is_fixed_in_it() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.queries = nn.Linear(8, 8), nn.Parameter(torch.randn(1, 4, 8))
            self.register_buffer("mask", torch.zeros(1, 1, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            attend, queries = torch.nn.functional.scaled_dot_product_attention, self.queries.expand(len(x), -1, -1)
            x = self.layer(x) + attend(queries, queries, queries)
            return attend(x, x, x, self.mask.expand(len(x), 4, 4))

    graph = prepare(capture(Net().eval(), [torch.randn(2, 4, 8)]), BrecqQuantizer(QuantConfig()))
    found = [entry.reason for entry in scope(graph, partition(graph, "net")) if "attention" in entry.kind]
    assert found == [
        "attention of learned queries, the same for all inputs",
        "a product of two activations, no weight",
    ]


def test_weights_left_in_float_are_listed_with_their_true_reasons() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.layer = nn.Embedding(50, 8), nn.Linear(8, 8)
            self.recurrent = nn.GRU(8, 8, batch_first=True)
            self.heads, self.mixed = nn.Parameter(torch.randn(2, 4, 4)), nn.Linear(8, 8 * 8)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            x = self.layer(self.recurrent(self.embed(tokens))[0])
            heads = torch.einsum("bthi,hio->btho", x.view(*x.shape[:2], 2, 4), self.heads).flatten(2)
            matrix = self.mixed(x[0]).mean(0).view(8, 8)
            return torch.nn.functional.linear(heads, matrix)

    graph = prepare(capture(Net().eval(), [torch.zeros(2, 3, dtype=torch.long)]), BrecqQuantizer(QuantConfig()))
    entries = scope(graph, partition(graph, "net"))
    reasons = {entry.kind: entry.reason for entry in entries if entry.weights in ("", "float") and entry.reason}
    assert reasons["einsum"] == "a product with a weight for each head, expert or sample: no linear layer"
    assert reasons["gru"] == "recurrent, computed in float step by step"
    assert reasons["linear"] == "its weight is computed from activations"
    total = sum(entry.parameters for entry in entries)
    assert total == sum(parameter.numel() for parameter in Net().parameters())
    listed = float_weights(entries)
    assert listed.startswith(
        f"recurrent {100 * 432 / total:.1f} % (recurrent, computed in float step by step); embed "
    )


class LastTwice(nn.Module):
    """Its last layer reads a weight that a layer in the middle reads too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.middle = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(self.middle(self.shared(self.stem(x).relu()).relu()).relu())


def test_a_layer_that_shares_the_last_one_s_weight_says_why_it_has_its_bits() -> None:
    config = QuantConfig(weights=4, activations=4)
    graph = prepare(capture(LastTwice().eval(), (torch.randn(2, 3, 8, 8),)), BrecqQuantizer(config))
    found = {entry.layer: entry for entry in scope(graph, partition(graph)) if entry.layer}
    assert found["shared"].weights.startswith("8 bit")
    assert found["shared"].reason == "shares its weight with the last layer (first_last)"
    assert found["middle"].weights.startswith("4 bit")


class Crossing(nn.Module):
    """Reference points of as many samples as there are, made in steps that each read the one before twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.start = nn.Conv2d(3, 4, 3, padding=1), nn.Parameter(torch.ones(1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        points = self.start.expand(x.shape[0], -1, -1, -1)
        for _ in range(40):
            points = points * 0.5 + points / 2
        return self.conv(x) + points


def test_what_a_constant_is_computed_from_is_looked_at_once() -> None:
    graph = prepare(capture(Crossing().eval(), (torch.randn(2, 3, 4, 4),)), BrecqQuantizer(QuantConfig()))
    entries = scope(graph, partition(graph))
    assert [(entry.kind, entry.parameters) for entry in entries] == [("conv2d", 112), ("add", 1)]


def test_what_stands_between_a_layer_and_its_quantizer_is_not_said_to_be_quantized() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)).eval()
    graph = prepare(capture(net, (torch.randn(2, 3, 8, 8),)), BrecqQuantizer(QuantConfig(8, 8)))
    relu = next(entry for entry in scope(graph, partition(graph)) if entry.kind == "relu")
    assert relu.output == "float"
    assert relu.reason == "part of a layer's activation function, quantized behind the last of these operators"
