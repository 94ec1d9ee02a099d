"""Several submodules of one network in one run: recorded, quantized in order, put back, saved, exported."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import brecq
from brecq import (
    BrecqError,
    CheckpointError,
    CompositeResult,
    ConfigError,
    DataError,
    ExportError,
    QuantConfig,
    Recipe,
)
from brecq.capture.export import capture, example_batch
from brecq.data import Dataset
from brecq.page.compare import compare_page
from brecq.page.record import Record
from brecq.page.render import page
from brecq.progress import Progress
from brecq.submodules import parts

FAST = QuantConfig(recipe=Recipe.preset("fast").replace(steps=4, batch_size=4, range_samples=8, range_candidates=10))
NEAREST = dataclasses.replace(FAST, weights=8, method="rtn")
FASTER = ["backbone", "rpn.head", "roi_heads.box_head", "roi_heads.box_predictor"]


class Two(nn.Module):
    """A backbone that returns a list and a head that takes it with a flag, with arithmetic of its own in between."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = Levels(), Head()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": self.head(self.backbone(x), True) * self.scale}


class Levels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = self.conv1(x).relu()
        return [fine, self.conv2(fine).relu()]


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 4, 1)

    def forward(self, features: list[Tensor], pooled: bool) -> Tensor:
        found = [self.conv(each) for each in features]
        return torch.cat([each.mean((2, 3)) for each in found], 1) if pooled else found[0]


@pytest.fixture(scope="module")
def two() -> nn.Module:
    torch.manual_seed(0)
    return Two().eval()


@pytest.fixture(scope="module")
def batches() -> Tensor:
    return torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def floats(model: nn.Module, names: list[str], calls: list[Any]) -> nn.Module:
    """The model with the captured graphs, nothing quantized, in the place of its submodules."""
    found = {}
    for part in parts.record(model, names, calls):
        flat = parts.Flat(part.name, model.get_submodule(part.name), part.interface)
        found[part.name] = (capture(flat, example_batch(part.inputs), any_size=True), part.interface)
    return parts.put_back(model, found)


def equal(found: list[dict[str, Tensor]], expected: list[dict[str, Tensor]]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            torch.testing.assert_close(ours[key], theirs[key], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("build", "names"), [("retinanet", ["backbone", "head"]), ("faster_rcnn", FASTER)])
def test_detectors_with_captured_parts_find_the_same_at_every_size(
    detectors: ModuleType, build: str, names: list[str]
) -> None:
    model = getattr(detectors, build)()
    drop_in = floats(model, names, detectors.pictures()[:1])
    for sizes in ([(60, 70)], [(50, 90), (80, 80), (96, 40)]):
        found = [torch.rand(3, *size, generator=torch.Generator().manual_seed(3)) for size in sizes]
        with torch.no_grad():
            equal(drop_in(found), model(found))


def test_a_detector_in_one_run(detectors: ModuleType, tmp_path: Path) -> None:
    model, calls = detectors.faster_rcnn(), detectors.pictures()
    result = brecq.quantize(model, calls, NEAREST, submodules=FASTER)
    assert isinstance(result, CompositeResult)
    assert list(result.parts) == FASTER
    with torch.no_grad():
        ours, theirs = result.model(calls[0]), model(calls[0])
    assert [found.keys() for found in ours] == [found.keys() for found in theirs]
    scope = {entry.op: entry for entry in result.report.scope}
    assert "NMS" in scope["rpn"].reason
    assert "anchors" in scope["rpn.anchor_generator"].reason
    assert "pooling of regions" in scope["roi_heads.box_roi_pool"].reason
    assert scope["roi_heads"].weights == ""
    layers = [layer for block in result.report.blocks for layer in block.layers]
    assert {layer.split("#")[0] for layer in layers} == {
        name.removesuffix(".weight") for name, value in model.named_parameters() if value.dim() > 1
    }
    loaded = brecq.load(result.save(tmp_path / "out"))
    assert isinstance(loaded, CompositeResult)
    assert loaded.report.scope == result.report.scope
    assert loaded.digest() == result.digest()
    with pytest.raises(ConfigError, match=r"put_into\(model\)"):
        _ = loaded.model
    with torch.no_grad():
        for found, expected in zip(loaded.put_into(model)(calls[1]), result.model(calls[1]), strict=True):
            assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_masks_and_keypoints_come_through(detectors: ModuleType, tmp_path: Path) -> None:
    from brecq.sources.torchvision_models import detector_parts

    model, calls = detectors.mask_and_keypoint_rcnn(), detectors.pictures()
    names = list(detector_parts(model))
    result = brecq.quantize(model, calls, NEAREST, submodules=names)
    blocks = [block.name for block in result.report.blocks]
    assert [name for name in blocks if "heads" in name or "rpn" in name] == names[1:]  # each a block, however small
    layers = {layer.split("#")[0] for block in result.report.blocks for layer in block.layers}
    assert layers == {name.removesuffix(".weight") for name, value in model.named_parameters() if value.dim() > 1}
    loaded: Any = brecq.load(result.save(tmp_path / "out"))
    with torch.no_grad():
        found, again = result.model(calls[1]), loaded.put_into(model)(calls[1])
    for one, other in zip(found, again, strict=True):
        count = len(one["boxes"])
        assert count > 0
        assert (one["masks"].shape[0], one["keypoints"].shape) == (count, (count, 2, 3))
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_heads_side_by_side_are_blocks(detectors: ModuleType) -> None:
    (inputs,) = (torch.stack([picture[:, :60, :60] for picture in calls]) for calls in detectors.pictures(2))
    found = brecq.inspect(detectors.retinanet(), (inputs,), submodules=["backbone", "head"])
    assert [block.name for block in found.blocks][-2:] == ["head.classification_head", "head.regression_head"]


def test_each_learns_behind_the_quantized_ones_before_it(two: nn.Module, batches: Tensor) -> None:
    result = brecq.quantize(two, batches, FAST, submodules=["head", "backbone"])
    assert list(result.parts) == ["backbone", "head"]  # in the order they are called in
    assert [block.stage for block in result.report.blocks].count("tuning") == 2
    again = brecq.quantize(two, batches, FAST, submodules=["backbone", "head"])
    assert again.digest() == result.digest()
    x = torch.randn(2, 3, 24, 20)  # another size than that of the calibration
    with torch.no_grad():
        exact, ours = two(x)["y"], result.model(x)["y"]
    assert (ours - exact).square().sum() < 0.1 * exact.square().sum()
    entry = next(entry for entry in result.report.scope if entry.op == "forward")
    assert entry.parameters == 1
    assert "naming it" in entry.reason


def test_the_noise_of_a_part_holds_that_of_the_parts_before_it(two: nn.Module, batches: Tensor) -> None:
    """The output is what the whole quantized network gives."""
    config = dataclasses.replace(NEAREST, weights=4, activations=4)
    result = brecq.quantize(two, batches, config, submodules=["backbone", "head"])
    with torch.no_grad():
        exact, ours = two(batches)["y"].double(), result.model(batches)["y"].double()
    last = result.report.outputs[-1]
    assert last.name == "head"
    assert last.signal == pytest.approx(exact.square().sum().item(), rel=1e-5)
    assert last.noise == pytest.approx((exact - ours).square().sum().item(), rel=1e-3)
    assert result.report.behind == {"head": ["backbone"]} == result.parts["head"].report.behind
    assert result.report.alone(list(result.parts)) == []


def test_parts_that_receive_other_regions_are_measured_alone(detectors: ModuleType) -> None:
    result = brecq.quantize(detectors.faster_rcnn(), detectors.pictures(), NEAREST, submodules=FASTER)
    assert result.report.behind == {"rpn.head": ["backbone"]}
    assert result.report.alone(list(result.parts)) == FASTER[2:]
    text = page(result, Record())
    assert "What rpn.head loses includes what backbone lost before it." in text
    assert "roi_heads.box_head, roi_heads.box_predictor: each part alone (hollow points)" in text
    assert text.count("SQNR of the output, of its part alone") == 4  # fc6, fc7, cls_score, bbox_pred
    assert "(part alone)" in compare_page([("a", result, Record()), ("b", result, Record())])


def test_ends_are_those_of_the_whole_network(two: nn.Module, batches: Tensor) -> None:
    result = brecq.quantize(two, batches, dataclasses.replace(NEAREST, weights=4), submodules=["backbone", "head"])
    bits = {entry.layer: entry.weights.split()[0] for entry in result.report.scope if entry.weights}
    assert bits == {"backbone.conv1": "8", "backbone.conv2": "4", "head.conv": "8", "head.conv#2": "8"}


def test_rules_and_blocks_name_layers_of_the_whole_network(two: nn.Module, batches: Tensor) -> None:
    rule = brecq.LayerRule("head.*", weights=3)
    config = dataclasses.replace(NEAREST, rules=(rule,), blocks={"mine": ["backbone.conv*"]})
    result = brecq.quantize(two, batches, config, submodules=["backbone", "head"])
    assert result.report.blocks[0].name == "mine"
    assert any(e.layer == "head.conv" and e.weights.startswith("3 bit") for e in result.report.scope)
    wrong = dataclasses.replace(NEAREST, rules=(brecq.LayerRule("neck.*", weights=3),))
    with pytest.raises(ConfigError, match=r"no layer matches 'neck\.\*'"):
        brecq.quantize(two, batches, wrong, submodules=["backbone", "head"])
    unmatched = dataclasses.replace(NEAREST, blocks={"mine": ["neck"]})
    with pytest.raises(BrecqError, match=r"'mine': neck matches no layer of any submodule"):
        brecq.quantize(two, batches, unmatched, submodules=["backbone", "head"])


def test_rules_that_leave_everything_in_float_are_refused(two: nn.Module, batches: Tensor) -> None:
    everything = brecq.QuantConfig(rules=(brecq.LayerRule("*", weights=32, activations=32),))
    with pytest.raises(ConfigError, match="nothing to quantize: weights and"):
        brecq.quantize(two, batches, everything, submodules=["backbone", "head"])


def test_a_killed_run_resumes_in_the_second_part(two: nn.Module, batches: Tensor, tmp_path: Path) -> None:
    class Killed(Progress):
        def block_done(self, report: Any) -> None:
            if report.name.startswith("head"):
                raise KeyboardInterrupt

    names = ["backbone", "head"]
    with pytest.raises(KeyboardInterrupt):
        brecq.quantize(two, batches, FAST, submodules=names, run_dir=tmp_path, progress=Killed())
    resumed = brecq.quantize(two, batches, FAST, submodules=names, run_dir=tmp_path, resume=True)
    assert [block.resumed for block in resumed.report.blocks] == [True] * (len(resumed.report.blocks) - 1) + [False]
    assert resumed.digest() == brecq.quantize(two, batches, FAST, submodules=names).digest()
    resumed.save(tmp_path)
    assert not (tmp_path / "blocks").exists()


def test_one_file_for_each(two: nn.Module, batches: Tensor, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    result = brecq.quantize(two, batches, NEAREST, submodules=["backbone", "head"])
    exported = brecq.export(result, tmp_path / "files")
    assert [file.name for file in exported.files] == ["backbone.onnx", "head.onnx"]
    received = parts.record(two, ["head"], [(batches,)])[0].inputs
    assert brecq.verify(result.parts["head"], exported.files[1], [received]).as_expected


def test_a_part_with_16_bits_is_refused_as_a_whole_network_is(two: nn.Module, batches: Tensor, tmp_path: Path) -> None:
    config = dataclasses.replace(NEAREST, activations=16)
    result = brecq.quantize(two, batches, config, submodules=["backbone", "head"])
    with pytest.raises(ExportError, match="format onnx takes activations of at most 8 bits"):
        brecq.export(result, tmp_path / "files")
    assert not (tmp_path / "files").exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["backbone", "neck"], r"no submodule 'neck'"),
        (["backbone", "backbone.conv1"], r"'backbone.conv1' is inside 'backbone'"),
        (["head", "head"], r"'head' is named twice"),
        (["head.conv"], r"'head.conv' is called 2 times per forward pass"),
        ([], r"submodules is \[\]"),
        ("head", r"submodules is 'head'"),
    ],
)
def test_names_that_do_not_fit(two: nn.Module, batches: Tensor, names: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        brecq.quantize(two, batches, NEAREST, submodules=names)


def test_called_otherwise_than_recorded(two: nn.Module, batches: Tensor) -> None:
    result = brecq.quantize(two, batches, NEAREST, submodules=["head"])
    with pytest.raises(ConfigError, match=r"'head' is called with a tensor, a tensor, false"):
        result.model.head([torch.randn(1, 8, 4, 4)] * 2, False)
    with pytest.raises(ConfigError, match=r"another network"):
        result.put_into(nn.Linear(2, 2))  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"result.parts"):
        _ = result.converted


def test_damaged_folders(two: nn.Module, batches: Tensor, tmp_path: Path) -> None:
    result = brecq.quantize(two, batches, NEAREST, submodules=["backbone", "head"])
    folder = result.save(tmp_path / "out")
    part = next((folder / "parts").glob("1-head")) / "manifest.json"
    part.write_text(part.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(CheckpointError, match=r"1-head/manifest.json was changed"):
        brecq.load(folder)
    part.unlink()
    with pytest.raises(CheckpointError, match=r"missing"):
        brecq.load(folder)


def test_pictures_that_do_not_go_together(detectors: ModuleType) -> None:
    wrong = [[torch.rand(3, 60, 60)], [torch.rand(1, 60, 60)]]
    with pytest.raises(DataError, match=r"\[1, 3\] channels"):
        brecq.quantize(detectors.retinanet(), wrong, NEAREST, submodules=["backbone"])


class Difference(nn.Module):
    """Of two sequences [N, T, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        return self.query(query) - self.key(key)


@pytest.mark.parametrize(
    ("model", "names", "count"),
    [(Difference(), ["query", "key"], 2), (nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2)), ["0", "1"], 1)],
)
def test_loaders_of_sequences_are_no_pictures(model: nn.Module, names: list[str], count: int) -> None:
    given = tuple(torch.randn(count, 16, 5, 6, generator=torch.Generator().manual_seed(1)))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*given), 8)
    found = brecq.quantize(model, loader, NEAREST, submodules=names)
    expected = brecq.quantize(model, Dataset(given), NEAREST, submodules=names)
    assert torch.equal(found.model(*given), expected.model(*given))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "retinanet_resnet50_fpn", "fasterrcnn_mobilenet_v3_large_320_fpn", "fcos_resnet50_fpn", "ssd300_vgg16",
        "ssdlite320_mobilenet_v3_large", "maskrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn",
    ],
)  # fmt: skip
def test_detectors_by_name_are_drop_ins_in_float(name: str) -> None:
    models = pytest.importorskip("torchvision").models
    from brecq.sources.torchvision_models import detector_parts

    torch.manual_seed(0)
    model = models.get_model(name, weights=None, weights_backbone=None).eval()
    if not name.startswith("ssd"):
        model.transform.min_size, model.transform.max_size = (128,), 192
    if hasattr(model, "roi_heads"):  # untrained networks are sure of nothing
        model.roi_heads.score_thresh, model.roi_heads.detections_per_img = 0.0, 5
        model.rpn._post_nms_top_n = {"training": 20, "testing": 20}
    else:
        model.score_thresh, model.detections_per_img = 0.0, 10
    generator = torch.Generator().manual_seed(1)
    sizes = [(120, 150), (140, 120), (130, 170)]
    first, second, other = (torch.rand(3, *size, generator=generator) for size in sizes)
    drop_in = floats(model, list(detector_parts(model)), [[first, second]])
    with torch.no_grad():
        equal(drop_in([other]), model([other]))
