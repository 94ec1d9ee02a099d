"""timm, torchvision and transformers, without the network: weights come from files written here."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from brecq.data import Preprocessing, load_data
from brecq.errors import SourceError
from brecq.evaluation import evaluate
from brecq.sources import load_source


@pytest.fixture(scope="module")
def timm() -> Any:
    return pytest.importorskip("timm")


@pytest.fixture(scope="module")
def torchvision() -> Any:
    return pytest.importorskip("torchvision")


def save_state(model: torch.nn.Module, path: Path) -> Path:
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    return path


def test_timm(timm: Any, tmp_path: Path) -> None:
    trained = timm.create_model("mobilenetv2_050").eval()
    source = load_source("timm:mobilenetv2_050", save_state(trained, tmp_path / "w.safetensors"))
    (x,) = source.example_inputs
    assert x.shape == (2, 3, 224, 224)
    assert not source.model.training
    assert torch.equal(source.model(x), trained(x))
    assert (source.name, source.spec) == ("mobilenetv2_050", "timm:mobilenetv2_050")
    assert source.preprocessing is not None
    assert (source.preprocessing.size, source.preprocessing.resize) == ((224, 224), 256)
    assert source.preprocessing.interpolation == "bicubic"


def test_timm_with_another_number_of_classes(timm: Any, tmp_path: Path) -> None:
    trained = timm.create_model("resnet10t", num_classes=7)
    torch.save({"state_dict": {f"module.{k}": v for k, v in trained.state_dict().items()}}, tmp_path / "w.pth")
    source = load_source("timm:resnet10t", tmp_path / "w.pth")
    assert source.model(source.example_inputs[0]).shape == (2, 7)


@pytest.mark.parametrize("mode", ["center", "squash"])
def test_timm_metadata_becomes_preprocessing(timm: Any, mode: str) -> None:
    from brecq.sources.timm_models import timm_preprocessing

    config = {"input_size": (3, 288, 288), "interpolation": "bilinear", "mean": (0.5,) * 3, "std": (0.5,) * 3,
              "crop_pct": 0.95, "crop_mode": mode}  # fmt: skip
    resize = 303 if mode == "center" else (303, 303)
    assert timm_preprocessing(config) == Preprocessing((0.5,), (0.5,), (288, 288), resize)
    assert timm_preprocessing(config | {"crop_mode": "squash", "crop_pct": 1.0}).resize is None  # type: ignore[union-attr]
    assert timm_preprocessing(config | {"input_size": (1, 28, 28)}) is None
    with pytest.warns(UserWarning, match="borders"):
        timm_preprocessing(config | {"crop_mode": "border"})
    with pytest.warns(UserWarning, match="give your own: interpolation is 'lanczos'"):
        assert timm_preprocessing(config | {"interpolation": "lanczos"}) is None


def test_torchvision(torchvision: Any, tmp_path: Path) -> None:
    trained = torchvision.models.get_model("shufflenet_v2_x0_5", weights=None, num_classes=10).eval()
    source = load_source("torchvision:shufflenet_v2_x0_5", save_state(trained, tmp_path / "w.safetensors"))
    (x,) = source.example_inputs
    assert torch.equal(source.model(x), trained(x))
    assert source.preprocessing == Preprocessing.imagenet(224)


def test_torchvision_segmentation_with_and_without_auxiliary_head(torchvision: Any, tmp_path: Path) -> None:
    for auxiliary in (True, False):
        trained = torchvision.models.get_model(
            "deeplabv3_mobilenet_v3_large", weights=None, weights_backbone=None, aux_loss=auxiliary
        ).eval()
        path = save_state(trained, tmp_path / f"{auxiliary}.safetensors")
        source = load_source("torchvision:deeplabv3_mobilenet_v3_large", path)
        assert (source.model.aux_classifier is not None) == auxiliary
    assert source.preprocessing is not None
    assert source.preprocessing.size == (520, 520)


def test_torchvision_detectors_are_known_as_such(torchvision: Any) -> None:
    source = load_source("torchvision:ssdlite320_mobilenet_v3_large", pretrained=False)
    assert (source.task, source.submodules) == ("detection", ("backbone", "head"))
    assert load_source("torchvision:shufflenet_v2_x0_5", pretrained=False).task is None


@pytest.mark.parametrize("name", ["fasterrcnn_mobilenet_v3_large_320_fpn", "ssdlite320_mobilenet_v3_large"])
def test_torchvision_detector_of_other_classes(torchvision: Any, tmp_path: Path, name: str) -> None:
    """A channel for each class, or several: coordinates, anchors. Frozen norms, as fine-tuning leaves them, count
    nothing."""
    trained = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=3)
    state = {key: value for key, value in trained.state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "w.pth")
    found = load_source(f"torchvision:{name}", tmp_path / "w.pth").model.state_dict()
    assert all(torch.equal(found[key], value) for key, value in state.items())


@pytest.mark.parametrize(
    ("file", "frozen", "eps", "doubt"),
    [
        ("retinanet_resnet50_fpn_coco-eeacb38b.pth", True, 0.0, False),  # as torchvision names it
        ("published.pth", True, 0.0, False),  # known by its digest
        ("mine.pth", True, 1e-5, True),
        ("mine.pth", False, 1e-5, False),
    ],
)
def test_torchvision_detectors_whose_published_weights_were_trained_without_eps(
    torchvision: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, frozen: bool, eps: float, doubt: bool
) -> None:
    trained = torchvision.models.get_model("retinanet_resnet50_fpn", weights=None, weights_backbone=None).eval()
    for module in trained.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = eps
            module.running_var.uniform_(1e-6, 1e-4)
    counted = "num_batches_tracked"
    state = {key: value for key, value in trained.state_dict().items() if not (frozen and key.endswith(counted))}
    torch.save(state, tmp_path / file)
    if file == "published.pth":
        digest = hashlib.sha256((tmp_path / file).read_bytes()).hexdigest()
        published = torchvision.models.detection.RetinaNet_ResNet50_FPN_Weights.COCO_V1.value
        monkeypatch.setattr(published, "url", f"https://example.org/retinanet-{digest[:8]}.pth")
    warned = pytest.warns(UserWarning, match="were frozen.*what eps") if doubt else nullcontext()
    with warned:
        source = load_source("torchvision:retinanet_resnet50_fpn", tmp_path / file)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(source.model.backbone.body.layer1(source.model.backbone.body.conv1(x)),
                           trained.backbone.body.layer1(trained.backbone.body.conv1(x)))  # fmt: skip


def test_torchvision_metadata(torchvision: Any) -> None:
    from brecq.sources.torchvision_models import torchvision_preprocessing

    models = torchvision.models
    resnet50 = torchvision_preprocessing(models.ResNet50_Weights.IMAGENET1K_V2.transforms(), "")
    assert resnet50.resize == 232
    vit = torchvision_preprocessing(models.ViT_H_14_Weights.DEFAULT.transforms(), "")
    assert (vit.size, vit.resize, vit.interpolation) == ((518, 518), 518, "bicubic")
    detector = torchvision_preprocessing(models.detection.RetinaNet_ResNet50_FPN_Weights.DEFAULT.transforms(), "")
    assert (detector.mean, detector.std) == ((0.0,) * 3, (1.0,) * 3)


def test_every_torchvision_model_has_metadata_or_a_clear_error(torchvision: Any) -> None:
    from brecq.sources.torchvision_models import torchvision_preprocessing

    refused = set()
    for name in torchvision.models.list_models():
        transform = torchvision.models.get_model_weights(name).DEFAULT.transforms()
        try:
            torchvision_preprocessing(transform, name)
        except SourceError:
            refused.add(type(transform).__name__)
    assert refused == {"VideoClassification", "OpticalFlow"}


@pytest.mark.parametrize("model_type", ["resnet", "vit"])
def test_huggingface_folder(tmp_path: Path, model_type: str) -> None:
    transformers = pytest.importorskip("transformers")
    if model_type == "resnet":
        config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=4)
        processor = transformers.ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=0.875)
    else:
        config = transformers.ViTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=64,
            num_labels=4,
        )
        processor = transformers.ViTImageProcessor(size={"height": 64, "width": 64})
    trained = transformers.AutoModelForImageClassification.from_config(config).eval()
    trained.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    source = load_source(f"hf:{tmp_path / 'model'}")
    (x,) = source.example_inputs
    assert x.shape == (2, 3, 64, 64)
    assert source.preprocessing is not None
    assert source.preprocessing.resize == (73 if model_type == "resnet" else None)
    torch.testing.assert_close(source.model(x), trained(pixel_values=x).logits)
    assert source.name == "model"

    other = transformers.AutoModelForImageClassification.from_config(config).eval()
    path = save_state(other, tmp_path / "w.safetensors")
    torch.testing.assert_close(load_source(f"hf:{tmp_path / 'model'}", path).model(x), other(pixel_values=x).logits)


def test_huggingface_folder_of_a_network_for_segmentation(tmp_path: Path) -> None:
    """The class that the folder was saved of, not a classifier with the same body and an untrained head."""
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(
        num_labels=5, depths=[1, 1], num_encoder_blocks=2, hidden_sizes=[8, 16], num_attention_heads=[1, 2],
        sr_ratios=[2, 1], patch_sizes=[7, 3], strides=[4, 2], mlp_ratios=[2, 2], decoder_hidden_size=16,
    )  # fmt: skip
    trained = transformers.SegformerForSemanticSegmentation(config).eval()
    trained.save_pretrained(tmp_path / "model")
    transformers.SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "model")
    source = load_source(f"hf:{tmp_path / 'model'}")
    (x,) = source.example_inputs
    assert source.task == "segmentation"
    assert source.model(x).shape == (2, 5, 16, 16)
    torch.testing.assert_close(source.model(x), trained(pixel_values=x).logits)


def yolos(transformers: Any, **more: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.YolosConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=[64, 64],
        num_detection_tokens=6, **more,
    )  # fmt: skip
    return transformers.YolosForObjectDetection(config).eval()


def rt_detr(transformers: Any, **more: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "out_features": ["stage2", "stage3", "stage4"]}
    body = transformers.RTDetrResNetConfig(embedding_size=8, layer_type="basic", **sizes)
    config = transformers.RTDetrConfig(
        backbone_config=body, encoder_hidden_dim=16, encoder_in_channels=[8] * 3, encoder_ffn_dim=16, d_model=16,
        num_queries=6, decoder_in_channels=[16] * 3, decoder_ffn_dim=16, decoder_layers=1, decoder_attention_heads=2,
        encoder_attention_heads=2, hidden_expansion=0.5, **more,
    )  # fmt: skip
    return transformers.RTDetrForObjectDetection(config).eval()


@pytest.mark.parametrize("build", [yolos, rt_detr])
def test_huggingface_folder_of_a_detector(tmp_path: Path, build: Callable[..., Any]) -> None:
    """Boxes and scores are those of its image processor, categories that stand for nothing left out."""
    transformers = pytest.importorskip("transformers")
    trained = build(transformers, id2label={0: "N/A", 1: "cat", 2: "N/A", 3: "dog"})
    processor = transformers.YolosImageProcessor(size={"shortest_edge": 64, "longest_edge": 100})
    if build is rt_detr:
        processor = transformers.RTDetrImageProcessor(size={"height": 64, "width": 64})
    for each in (trained, processor):
        each.save_pretrained(tmp_path / "model")
    source = load_source(f"hf:{tmp_path / 'model'}")
    (x,) = source.example_inputs
    assert (source.task, x.shape) == ("detection", (2, 3, 64, 64))
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        (boxes, scores), given = source.model(x), trained(pixel_values=x)
    assert scores.shape == (2, 6, 2)
    expected = processor.post_process_object_detection(given, threshold=0.0, target_sizes=[(64, 96)] * 2)
    for mine, score, theirs in zip(boxes, scores, expected, strict=True):
        for box, value, label in zip(theirs["boxes"], theirs["scores"], theirs["labels"], strict=True):
            if label not in (1, 3):
                continue
            at = (mine - box).abs().sum(1).argmin()
            torch.testing.assert_close(mine[at], box, rtol=1e-4, atol=1e-3)
            torch.testing.assert_close(score[at, label // 2], value)


def test_huggingface_failures(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    transformers.ResNetModel(config).save_pretrained(tmp_path / "headless")
    with pytest.raises(SourceError, match=r"no trained weights for classifier.*image classification"):
        load_source(f"hf:{tmp_path / 'headless'}")
    with pytest.raises(
        SourceError,
        match="image classifier, a network for semantic segmentation or a detector of the hub, or a folder",
    ):
        load_source(f"hf:{tmp_path}")
    transformers.GPT2Config().save_pretrained(tmp_path / "text")
    with pytest.raises(
        SourceError, match=r"Unrecognized configuration class.*others come from a function of your own"
    ):
        load_source(f"hf:{tmp_path / 'text'}", tmp_path / "w.pt")
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path / "bare")
    with pytest.warns(UserWarning, match="without an image processor"):
        source = load_source(f"hf:{tmp_path / 'bare'}")
    assert (source.preprocessing, source.example_inputs) == (None, ())


USUAL = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224},
             "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 2} | USUAL,
            Preprocessing((0.5,), (0.25,), (224, 224), 256),
        ),
        (
            {"size": {"shortest_edge": 384}, "crop_pct": 0.875, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
             "resample": 3} | USUAL,
            Preprocessing((0.5,), (0.5,), (384, 384), None, "bicubic"),
        ),
        (
            {"size": {"height": 256, "width": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224},
             "do_rescale": True, "rescale_factor": 1 / 255, "do_flip_channel_order": True, "resample": 0},
            Preprocessing((0.0,), (1.0,), (224, 224), (256, 256), "nearest", "BGR"),
        ),
    ],
)  # fmt: skip
def test_huggingface_metadata(settings: dict[str, Any], expected: Preprocessing) -> None:
    from brecq.sources.huggingface import hf_preprocessing

    assert hf_preprocessing(settings) == expected


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("EfficientNetImageProcessor", {"size": {"height": 64, "width": 64}}),
        ("EfficientNetImageProcessor", {"size": {"height": 64, "width": 64}, "rescale_factor": 1 / 127.5,
                                        "rescale_offset": True, "include_top": False}),
        ("MobileViTImageProcessor", {"size": {"shortest_edge": 288}}),
        ("DeiTImageProcessor", {}),
        ("BitImageProcessor", {}),
        ("PoolFormerImageProcessor", {}),
        ("MobileNetV2ImageProcessor", {}),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 224}}),
    ],
)  # fmt: skip
def test_huggingface_processors_agree_on_a_picture(name: str, options: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    from brecq.sources.huggingface import check_agreement, hf_preprocessing

    processor = getattr(transformers, name)(**options)
    check_agreement(processor, hf_preprocessing(processor.to_dict()))


def test_huggingface_processor_that_does_more_than_it_says_is_noticed() -> None:
    transformers = pytest.importorskip("transformers")
    from brecq.errors import ConfigError
    from brecq.sources.huggingface import check_agreement, hf_preprocessing

    processor = transformers.LevitImageProcessor()
    with pytest.raises(ConfigError, match="differs by"):
        check_agreement(processor, hf_preprocessing(processor.to_dict()))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("timm:resnet1888", "there is no model 'resnet1888'; did you mean resnet"),
        ("timm:zzzzzzzzzz", r"see timm.list_models\(\)"),
        ("torchvision:resnet19", "did you mean .*resnet18"),
        ("torchvision:quantized_resnet18", "quantized already; take torchvision:resnet18"),
        ("torchvision:r3d_18", "takes videos"),
        ("torchvision:raft_small", "takes several pictures"),
        ("keras:resnet18", "cannot read the model 'keras:resnet18'; give timm:NAME"),
        ("timm:", "cannot read the model"),
        ("resnet18", "cannot read the model"),
        ("", "cannot read the model"),
        ("net.py", "net.py:function"),
    ],
)
def test_bad_specs(spec: str, message: str, timm: Any, torchvision: Any) -> None:
    with pytest.raises(SourceError, match=message):
        load_source(spec)


@pytest.mark.parametrize(("library", "extra"), [("timm", "vision"), ("torchvision", "vision"), ("hf", "hf")])
def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, library: str, extra: str) -> None:
    monkeypatch.setitem(sys.modules, {"hf": "transformers"}.get(library, library), None)
    with pytest.raises(SourceError, match=rf"pip install 'brecq\[{extra}\]'"):
        load_source(f"{library}:resnet18")


def test_weights_of_another_model(timm: Any, tmp_path: Path) -> None:
    path = save_state(timm.create_model("resnet10t"), tmp_path / "w.safetensors")
    with pytest.raises(SourceError, match=r"does not fit EfficientNet: \d+ missing .*, \.\.\."):
        load_source("timm:mobilenetv2_050", path)


def test_failed_download_says_so(timm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **options: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr("brecq.sources.timm_models.asked", lambda: nullcontext(""))
    with pytest.raises(SourceError, match=r"cannot be had \(OSError: no network\); give the weights as a file"):
        load_source("timm:resnet18")


def test_squeezenet_reaches_its_accuracy(torchvision: Any, shared_data: Path) -> None:
    source = load_source("torchvision:squeezenet1_1", shared_data / "weights/imagenet_squeezenet1_1.safetensors")
    data = load_data(shared_data / "imagenet_val", source.preprocessing, 100, 0)
    assert (evaluate(source.model, data).top1 or 0) > 60


def test_with_preprocessing_follows_the_size(timm: Any, tmp_path: Path) -> None:
    path = save_state(timm.create_model("resnet10t"), tmp_path / "w.safetensors")
    source = load_source("timm:resnet10t", path)
    assert source.preprocessing is not None
    smaller = source.with_preprocessing(source.preprocessing.replace(size=(96, 64)))
    assert smaller.example_inputs[0].shape == (2, 3, 96, 64)
    assert source.with_preprocessing(source.preprocessing.replace(mean=(0.0,))).example_inputs is source.example_inputs
