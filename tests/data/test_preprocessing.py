from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from brecq.data import Preprocessing
from brecq.data.preprocessing import Placed
from brecq.errors import ConfigError


def picture(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@settings(max_examples=25, deadline=None)
@given(height=st.integers(20, 90), width=st.integers(20, 90), resize=st.integers(32, 48))
def test_equals_torchvision_bit_for_bit(height: int, width: int, resize: int) -> None:
    transforms = pytest.importorskip("torchvision.transforms._presets")
    theirs = transforms.ImageClassification(crop_size=32, resize_size=resize)(picture(height, width))
    ours = Preprocessing.imagenet(32).replace(resize=resize)(picture(height, width))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize("crop_pct", [0.875, 0.95, 1.0])
def test_equals_timm_bit_for_bit(mode: str, crop_pct: float) -> None:
    timm_data = pytest.importorskip("timm.data")
    from brecq.sources.timm_models import timm_preprocessing

    config = {
        "input_size": (3, 64, 64), "interpolation": "bicubic", "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4),
        "crop_pct": crop_pct, "crop_mode": mode,
    }  # fmt: skip
    preprocessing = timm_preprocessing(config)
    assert preprocessing is not None
    theirs = timm_data.create_transform(**config)(picture(75, 101))
    assert torch.equal(preprocessing(picture(75, 101)), theirs)


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 70), width=st.integers(1, 70), size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    extra=st.integers(0, 9),
)  # fmt: skip
def test_scaled_picture_always_covers_the_crop(height: int, width: int, size: tuple[int, int], extra: int) -> None:
    preprocessing = Preprocessing((0.0,), (1.0,), size, min(size) + extra)
    white = Image.new("RGB", (width, height), "white")
    assert torch.equal(preprocessing(white), torch.ones(3, *size))  # padding would show as black


def test_bgr_reverses_channels_before_normalizing() -> None:
    pixel = Image.new("RGB", (1, 1), (255, 0, 51))
    output = Preprocessing((0.1, 0.2, 0.3), (1.0,), (1, 1), None, color="BGR")(pixel)
    torch.testing.assert_close(output.flatten(), torch.tensor([0.2 - 0.1, 0.0 - 0.2, 1.0 - 0.3]))


def test_gray_is_the_luma_in_one_channel() -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    preprocessing = Preprocessing((0.5,), (0.25,), (40, 30), None, color="GRAY", fit="corner")
    assert (preprocessing.mean, preprocessing.fill, preprocessing.channels) == ((0.5,), (114 / 255,), 1)
    theirs = transforms.ToTensor()(picture(40, 30).convert("L"))
    assert torch.equal(preprocessing(picture(40, 30)), (theirs - 0.5) / 0.25)
    padded = preprocessing(picture(40, 20))
    assert padded.shape == preprocessing.example().shape[1:] == (1, 40, 30)
    torch.testing.assert_close(padded[0, :, 20:], torch.full((40, 10), (114 / 255 - 0.5) / 0.25))
    pixels = preprocessing.to_pixels(padded[None])
    assert pixels.shape == (1, 40, 30, 3)
    assert (pixels[..., 0] == pixels[..., 2]).all()
    assert preprocessing.crop(picture(40, 20)).size == (30, 40)
    assert Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict()))) == preprocessing
    assert preprocessing.replace(color="RGB").mean == (0.5,) * 3
    with pytest.raises(ConfigError, match="gray inputs have one channel; give one number"):
        Preprocessing.imagenet().replace(color="GRAY")


def test_single_numbers_stand_for_all_channels() -> None:
    preprocessing = Preprocessing(0.5, 0.25, 32, None)  # type: ignore[arg-type]
    assert (preprocessing.mean, preprocessing.std, preprocessing.size) == ((0.5,) * 3, (0.25,) * 3, (32, 32))


def test_new_size_keeps_the_share_of_the_picture() -> None:
    assert Preprocessing.imagenet().replace(size=(112, 112)).resize == 128
    assert Preprocessing.imagenet().replace(size=112, resize=112).resize == 112
    assert Preprocessing((0.0,), (1.0,), (64, 32), (128, 64)).replace(size=(32, 32)).resize == (64, 64)


@pytest.mark.parametrize("resize", [256, None, (240, 250)])
def test_round_trip_through_json(resize: int | tuple[int, int] | None) -> None:
    preprocessing = Preprocessing.imagenet().replace(resize=resize, interpolation="bicubic", color="BGR")
    assert Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict()))) == preprocessing


def test_describe_names_every_setting() -> None:
    assert Preprocessing.imagenet().describe() == (
        "scale short side to 256, crop 224x224 (bilinear), RGB in [0, 1], "
        "mean 0.485 0.456 0.406, std 0.229 0.224 0.225"
    )
    assert "scale to 8x9" in Preprocessing((0.0,), (1.0,), (8, 9), None).describe()
    assert "scale 10x12, crop 8x9" in Preprocessing((0.0,), (1.0,), (8, 9), (10, 12)).describe()


def test_example_has_the_input_shape_and_is_repeatable() -> None:
    preprocessing = Preprocessing((0.0,), (1.0,), (8, 9), None)
    assert preprocessing.example(3).shape == (3, 3, 8, 9)
    assert torch.equal(preprocessing.example(), preprocessing.example())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": (0.1, 0.2)}, r"mean is \(0.1, 0.2\); give three numbers"),
        ({"mean": (0.1, float("nan"), 0.2)}, "mean is"),
        ({"std": (0.1, 0.0, 0.2)}, "every value must be positive"),
        ({"size": (224, 0)}, "size is 0"),
        ({"size": (1, 2, 3)}, "give height and width"),
        ({"resize": 100}, "resize is 100, smaller than the crop 224x224"),
        ({"resize": (300, 100)}, "smaller than the crop"),
        ({"interpolation": "box"}, "choose one of bilinear, bicubic, nearest"),
        ({"color": "YUV"}, "choose one of RGB, BGR"),
        ({"crop": 3}, "unknown preprocessing setting 'crop'"),
    ],
)
def test_bad_settings(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Preprocessing.imagenet().replace(**changes)


def test_from_dict_needs_every_setting() -> None:
    with pytest.raises(ConfigError, match="needs mean, std, size, resize, interpolation, color, fit"):
        Preprocessing.from_dict({"mean": [0, 0, 0]})


@pytest.mark.parametrize("color", ["RGB", "BGR"])
def test_pixels_come_back_from_inputs(color: str) -> None:
    preprocessing = Preprocessing(mean=(0.1, 0.5, 0.9), std=(0.2, 0.3, 0.4), size=(5, 4), resize=None, color=color)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 4, 3), dtype=np.uint8)
    inputs = preprocessing.normalize_pixels(pixels)
    assert np.array_equal(preprocessing.to_pixels(inputs), pixels)
    low, high = preprocessing.valid_range
    assert (preprocessing.to_pixels(low.expand(1, 3, 5, 4) - 1) == 0).all()
    assert (preprocessing.to_pixels(high.expand(1, 3, 5, 4) + 1) == 255).all()
    torch.testing.assert_close(inputs.clamp(low, high), inputs)


def test_pictures_at_their_own_sizes() -> None:
    own = Preprocessing((0.0,), (1.0,), 32, None, fit="own")  # type: ignore[arg-type]
    pixels = np.random.default_rng(0).integers(0, 256, (20, 45, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    assert torch.equal(own(picture), torch.from_numpy(pixels).permute(2, 0, 1).float() / 255)
    assert own.crop(picture).size == (45, 20)
    assert own.place(20, 45) == Placed(1, 1, 0, 0)
    assert Preprocessing.from_dict(own.to_dict()) == own
    assert own.describe().startswith("each picture at its own size, RGB")
    assert own.in_one_size().fit == "corner"
    assert (own.replace(size=64).fit, own.replace(size=64).size) == ("corner", (64, 64))
    assert own.replace(resize=64, size=64).fit == "crop"
    assert own.replace(color="BGR").fit == "own"
    for change in ({"multiple": 8}, {"fill": 0.5}, {"interpolation": "nearest"}, {"fit": "own", "size": 64}):
        with pytest.raises(ConfigError, match=r"pictures at their own sizes \(fit own\) are neither"):
            own.replace(**change)
