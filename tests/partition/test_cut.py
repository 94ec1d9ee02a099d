"""Partition: the blocks found in networks that people use, by name, and blocks that users name."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from brecq.capture.export import capture
from brecq.config import QuantConfig
from brecq.errors import PartitionError
from brecq.graph import ops
from brecq.graph.dataflow import Dataflow
from brecq.partition.blocks import extract
from brecq.partition.cut import BlockSpec, partition
from brecq.partition.tree import MAX_CHAIN
from brecq.placement.prepare import prepare
from brecq.placement.quantizer import BrecqQuantizer

# Block names; `layer{1,2}.{0..3}` stands for layer1.0, layer1.1, ... layer2.3.
SMALL = {
    "ResNet": (["conv1", "layer1.0", "layer1.1", "layer2.0", "fc"], ["conv1", "layer1", "layer2.0", "fc"]),
    "MobileNet": (["features.{0..3}", "classifier"], ["features.0-1", "features.2-3", "classifier"]),
    "ViT": (["patch", "blocks.0", "blocks.1", "head"], ["patch", "blocks", "head"]),
    "UNet": (["enc1", "enc2", "mid", "up2", "dec2", "up1", "dec1", "out"],) * 2,
    "Functional": (["w0", "a1..a2", "b1..b2", "fc"],) * 2,
    "TwoBranch": (["left", "right", "head"],) * 2,
    "ConcatNet": (["stem", "left..right", "fuse", "head"],) * 2,
    "FPN": (
        ["body.{0..2}", "lateral.{0..2}", "smooth.0", "head", "smooth.1", "head#2", "smooth.2", "head#3"],
    ) * 2,
    "Recurrent": (["stem", "step", "head"],) * 2,
    "Flat": (
        ["modules_list.{0..1}", "modules_list.2-3", "modules_list.5-6", "modules_list.8", "modules_list.9-10",
         "modules_list.12-13", "modules_list.15-22", "modules_list.25-28"],
        ["modules_list.0", "modules_list.1-6", "modules_list.8-28"],
    ),
    "Split": (["stem", "small", "nested", "large.enter", "large.inner.{0..3}", "large.leave", "maps", "boxes"],
              ["stem", "small", "nested", "large.enter", "large.inner", "large.leave", "maps", "boxes"]),
    "Signal": (["down", "depthwise", "up", "out"],) * 2,
}  # fmt: skip


def timm(name: str, size: int = 64, **options: Any) -> Callable[[], tuple[nn.Module, int]]:
    return lambda: (pytest.importorskip("timm").create_model(name, pretrained=False, **options), size)


def torchvision(name: str, size: int = 64) -> Callable[[], tuple[nn.Module, int]]:
    return lambda: (pytest.importorskip("torchvision").models.get_model(name, weights=None), size)


_EFFICIENT = ["conv_stem", "blocks.{0..6}", "conv_head", "classifier"]

# network: (how to build it, weighted operators, blocks, stages)
LARGE: dict[str, tuple[Callable[[], tuple[nn.Module, int]], int, list[str], list[str]]] = {
    "resnet18": (
        timm("resnet18", 32), 21,
        ["conv1", "layer1.{0..1}", "layer2.{0..1}", "layer3.{0..1}", "layer4.{0..1}", "fc"],
        ["conv1", "layer1", "layer2", "layer3", "layer4", "fc"],
    ),
    "resnet50": (
        timm("resnet50", 32), 54,
        ["conv1", "layer1.{0..2}", "layer2.{0..3}", "layer3.{0..5}", "layer4.{0..2}", "fc"],
        ["conv1", "layer1", "layer2", "layer3", "layer4", "fc"],
    ),
    "mobilenetv2": (
        timm("mobilenetv2_100"), 53,
        ["conv_stem", "blocks.0.0", "blocks.1.{0..1}", "blocks.2.{0..2}", "blocks.3.{0..3}", "blocks.4.{0..2}",
         "blocks.5.{0..2}", "blocks.6.0", "conv_head", "classifier"],
        ["conv_stem", "blocks.0.0", "blocks.{1..5}", "blocks.6.0", "conv_head", "classifier"],
    ),
    "regnetx_600mf": (
        timm("regnetx_006"), 54,
        ["stem", "s1.b1", "s2.b{1..3}", "s3.b{1..5}", "s4.b{1..7}", "head"],
        ["stem", "s1.b1", "s2", "s3", "s4", "head"],
    ),
    "regnetx_3.2gf": (
        timm("regnetx_032"), 81,
        ["stem", "s1.b{1..2}", "s2.b{1..6}", "s3.b{1..15}", "s4.b{1..2}", "head"],
        ["stem", "s1", "s2", "s3", "s4", "head"],
    ),
    "mnasnet": (
        timm("mnasnet_100"), 53,
        ["conv_stem", "blocks.0.0", "blocks.1.{0..2}", "blocks.2.{0..2}", "blocks.3.{0..2}", "blocks.4.{0..1}",
         "blocks.5.{0..3}", "blocks.6.0", "conv_head", "classifier"],
        ["conv_stem", "blocks.0.0", "blocks.{1..5}", "blocks.6.0", "conv_head", "classifier"],
    ),
    "efficientnet_lite0": (
        timm("tf_efficientnet_lite0"), 50,
        ["conv_stem", "blocks.0.0", "blocks.1.{0..1}", "blocks.2.{0..1}", "blocks.3.{0..2}", "blocks.4.{0..2}",
         "blocks.5.{0..3}", "blocks.6.0", "conv_head", "classifier"],
        ["conv_stem", "blocks.0.0", "blocks.{1..5}", "blocks.6.0", "conv_head", "classifier"],
    ),
    "mobilenetv3": (  # squeeze-and-excitation inside the blocks
        timm("mobilenetv3_small_100"), 54,
        ["conv_stem", "blocks.0.0", "blocks.1.{0..1}", "blocks.2.{0..2}", "blocks.3.{0..1}", "blocks.4.{0..2}",
         "blocks.5.0", "conv_head", "classifier"],
        ["conv_stem", "blocks.0.0", "blocks.{1..4}", "blocks.5.0", "conv_head", "classifier"],
    ),
    "convnext": (
        timm("convnext_atto"), 41,
        ["stem", "stages.0.blocks.{0..1}", "stages.1.downsample", "stages.1.blocks.{0..1}", "stages.2.downsample",
         "stages.2.blocks.{0..5}", "stages.3.downsample", "stages.3.blocks.{0..1}", "head"],
        ["stem", "stages.0.blocks", "stages.1.downsample", "stages.1.blocks", "stages.2.downsample",
         "stages.2.blocks", "stages.3.downsample", "stages.3.blocks", "head"],
    ),
    "densenet": (  # a shallow one: the depth changes the number of layers only
        timm("densenet121", 32, block_config=(3, 4, 2)), 22,
        ["features.conv0", "features.denseblock1.denselayer{1..3}", "features.transition1",
         "features.denseblock2.denselayer{1..4}", "features.transition2", "features.denseblock3.denselayer{1..2}",
         "classifier"],
        ["features.conv0", "features.denseblock1", "features.transition1", "features.denseblock2",
         "features.transition2", "features.denseblock3", "classifier"],
    ),
    "inception_v3": (
        timm("inception_v3", 80), 95,
        ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "Mixed_5b", "Mixed_5c",
         "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e", "Mixed_7a", "Mixed_7b", "Mixed_7c",
         "fc"],
        ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "Mixed_5b", "Mixed_5c",
         "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e", "Mixed_7a", "Mixed_7b", "Mixed_7c",
         "fc"],
    ),
    "shufflenet_v2": (
        torchvision("shufflenet_v2_x0_5"), 57,
        ["conv1", "stage2.{0..3}", "stage3.{0..7}", "stage4.{0..3}", "conv5", "fc"],
        ["conv1", "stage2", "stage3", "stage4", "conv5", "fc"],
    ),
    "repvgg": (
        timm("repvgg_a0", 32), 45,
        ["stem", "stages.0.{0..1}", "stages.1.{0..3}", "stages.2.{0..13}", "stages.3.0", "head"],
        ["stem", "stages.{0..2}", "stages.3.0", "head"],
    ),
    "vit": (
        timm("vit_tiny_patch16_224", img_size=64, depth=3), 14,
        ["patch_embed", "blocks.{0..2}", "head"], ["patch_embed", "blocks", "head"],
    ),
    "swin": (
        timm("swin_tiny_patch4_window7_224", 32, img_size=32, window_size=2, depths=(2, 2), num_heads=(3, 6)), 19,
        ["patch_embed", "layers.0.blocks.{0..1}", "layers.1.downsample", "layers.1.blocks.{0..1}", "head"],
        ["patch_embed", "layers.0.blocks", "layers.1.downsample", "layers.1.blocks", "head"],
    ),
}  # fmt: skip

RELATED = ("resnet50", "regnetx_3.2gf", "mnasnet", "efficientnet_lite0", "repvgg")
"""Built like another one of them."""


def expand(patterns: list[str]) -> list[str]:
    names = []
    for pattern in patterns:
        head, brace, rest = pattern.partition("{")
        if brace:
            span, _, tail = rest.partition("}")
            first, last = span.split("..")
            names += [f"{head}{i}{tail}" for i in range(int(first), int(last) + 1)]
        else:
            names.append(pattern)
    return names


def names(graph: GraphModule, granularity: Any = "block", named: Any = None) -> list[str]:
    return [spec.name for spec in partition(graph, granularity, named)]


def check_cover(graph: GraphModule, specs: list[BlockSpec]) -> None:
    """Contiguous, complete, each with a name of its own and a layer in it."""
    flow = Dataflow(graph)
    assert [spec.start for spec in specs] == [0, *[spec.stop for spec in specs[:-1]]]
    assert specs[-1].stop == len(flow.ops)
    assert len({spec.name for spec in specs}) == len(specs)
    assert all(flow.weighted(spec.start, spec.stop) for spec in specs)


@pytest.mark.parametrize("name", SMALL)
def test_blocks_and_stages_of_small_networks(captured, name: str) -> None:
    graph = captured(name)
    blocks, stages = SMALL[name]
    layers = [layer for layer in Dataflow(graph).layers if layer]
    assert names(graph) == expand(blocks)
    assert names(graph, "stage") == expand(stages)
    assert names(graph, "layer") == layers
    assert names(graph, "net") == ["net"]
    for granularity in ("layer", "block", "stage", "net"):
        check_cover(graph, partition(graph, granularity))


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in RELATED else []) for n in LARGE])
def test_blocks_of_networks_that_people_use(name: str) -> None:
    build, weighted, blocks, stages = LARGE[name]
    torch.manual_seed(0)
    model, size = build()
    graph = capture(model.eval(), (torch.randn(2, 3, size, size),))
    assert names(graph) == expand(blocks)
    assert names(graph, "stage") == expand(stages)

    prepared = prepare(graph, BrecqQuantizer(QuantConfig()))
    layers = [node for node in prepared.graph.nodes if ops.kind(node)]
    assert len(layers) == weighted
    x = torch.randn(3, 3, size, size)
    expected = prepared(x)
    for granularity, count in {"layer": None, "block": len(expand(blocks)), "stage": None, "net": 1}.items():
        specs = partition(prepared, granularity)
        check_cover(prepared, specs)
        network = extract(prepared, specs)
        assert count in (None, len(network.blocks))
        assert sum(len(block.layers) for block in network.blocks) == weighted
        values = {network.inputs[0]: x}
        for block in network.blocks:
            values.update(block(values))
        assert torch.equal(network.output(values), expected), granularity


def test_blocks_named_by_the_user(captured) -> None:
    graph = captured("ResNet")
    assert names(graph, named={"stem": ["conv1", "layer1.0"]}) == ["stem", "layer1.1", "layer2.0", "fc"]
    assert names(graph, named={"body": ["layer?.*"]}) == ["conv1", "body", "fc"]
    assert names(graph, "layer", {"first": ["layer1.0.*"]})[:3] == ["conv1", "first", "layer1.1.conv1"]
    assert names(graph, "net", {"tail": ["fc"]}) == ["net", "tail"]
    assert names(graph, "stage", {"early": ["layer1.0"]}) == ["conv1", "early", "layer1.1", "layer2.0", "fc"]
    functional = captured("Functional")
    assert names(functional, named={"both": ["a?", "b?"]}) == ["w0", "both", "fc"]
    inside = {"convs": ["layer1.0.conv?"]}  # what is left of layer1.0, its addition, goes to them
    assert names(graph, named=inside) == ["conv1", "convs", "layer1.1", "layer2.0", "fc"]
    for found, named in (
        (graph, {"stem": ["conv1", "layer1.0"]}),
        (graph, inside),
        (functional, {"both": ["a?", "b?"]}),
    ):
        check_cover(found, partition(found, "block", named))


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"body": ["layer9"]}, "block 'body': 'layer9' matches no module or layer; there are conv1, fc, layer1"),
        ({"none": ["relu"]}, "'none': relu holds no layer"),
        ({"ends": ["conv1", "fc"]}, r"'ends' is not contiguous: layer 'layer1\.0\.conv1' runs between its members"),
    ],
)
def test_errors_of_named_blocks(captured, named: dict[str, list[str]], message: str) -> None:
    with pytest.raises(PartitionError, match=message):
        partition(captured("ResNet"), "block", named)


def test_a_graph_without_operators_is_an_error() -> None:
    with pytest.raises(PartitionError, match="no operator"):
        partition(capture(nn.Identity(), (torch.randn(2, 3),)))


def test_routes_to_the_next_scale_pass_residual_blocks_by(networks: ModuleType) -> None:
    """The last stage of such a network lies between two ends of a route; its blocks are blocks all the same."""

    class Deep(networks.Flat):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            route, tail, plan = 14, list(self.modules_list)[16:], self.plan[16:]
            self.modules_list, self.plan = self.modules_list[:16], self.plan[:16]
            for _ in range(4):
                self._conv(64, 32, 1)
                self._conv(32, 64)
                self._add("short")
            assert self.plan[route] == ("short",)
            for (kind, *where), module in zip(plan, tail, strict=True):
                self.plan.append((kind, *where))
                self.modules_list.append(module)

    model = networks.build(Deep)
    names = [spec.name for spec in partition(capture(model, networks.inputs(model)))]
    assert names[7:] == [
        "modules_list.15", "modules_list.16-17", "modules_list.19-20", "modules_list.22-23", "modules_list.25-26",
        "modules_list.28-31", "modules_list.32", "modules_list.34", "modules_list.37-40",
    ]  # fmt: skip


class Levels(nn.Module):
    """A backbone that returns two levels, one of them normalized as SSD does: a join without a layer."""

    def __init__(self) -> None:
        super().__init__()
        layers = [part for _ in range(MAX_CHAIN + 1) for part in (nn.Conv2d(4, 4, 3, 1, 1), nn.ReLU())]
        self.features = nn.Sequential(*layers)
        self.extra = nn.ModuleList(
            nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1)) for _ in "ab"
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = self.features(x)
        found = [x / x.norm(dim=1, keepdim=True)]
        for extra in self.extra:
            x = extra(x).relu()
            found.append(x)
        return found


class Shared(nn.Module):
    """A head of three layers for three levels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.scores, self.boxes = (nn.Conv2d(4, 4, 1) for _ in range(3))

    def forward(self, *levels: torch.Tensor) -> list[torch.Tensor]:
        found = [self.conv(level).relu() for level in levels]
        return [layer(level) for level in found for layer in (self.scores, self.boxes)]


class Within(nn.Module):
    """As a part of a network is captured: under its path."""

    def __init__(self, path: str, module: nn.Module) -> None:
        super().__init__()
        setattr(self, path, module)
        self.path = path

    def forward(self, *inputs: torch.Tensor) -> Any:
        return getattr(self, self.path)(*inputs)


def test_parts_that_return_levels_or_run_once_a_level() -> None:
    x = torch.randn(2, 4, 8, 8)
    backbone = capture(Within("backbone", Levels()), (x,))
    expected = [f"backbone.features.{2 * i}" for i in range(MAX_CHAIN + 1)] + ["backbone.extra.0", "backbone.extra.1"]
    assert names(backbone) == expected
    assert names(capture(Within("head", Shared()), (x, x, x))) == ["head"]
    small = capture(Within("box_head", nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))), (x,))
    assert names(small) == ["box_head.0", "box_head.2"]
    assert [spec.name for spec in partition(small, part=True)] == ["box_head"]
