"""From a picture to a network input: resize, crop or pad, normalize."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from brecq.errors import ConfigError, DataError
from brecq.settings import MOST
from brecq.text import shown

Interpolation = Literal["bilinear", "bicubic", "nearest"]
Color = Literal["RGB", "BGR", "GRAY"]
Fit = Literal["crop", "letterbox", "corner", "original", "own"]

MOST_SIDE = 16_384
MOST_PIXELS = 2**27

GRAY = 114 / 255
"""What detectors of the YOLO family are padded with."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}


@dataclass(frozen=True)
class Placed:
    """Where a picture is in the network's input: a point (x, y) is at (x·scale_x + left, y·scale_y + top) there."""

    scale_x: float
    scale_y: float
    left: float
    top: float


@dataclass(frozen=True)
class _Frame:
    """A picture scaled to `height` and `width`, its corner at `left` and `top` of the input, which may be outside."""

    height: int
    width: int
    left: int
    top: int


@dataclass(frozen=True)
class Preprocessing:
    """How pictures become network inputs. Bit-identical to torchvision's and timm's evaluation transforms.

    Attributes:
        mean, std: per channel, of pixels scaled to [0, 1], in the order of the network's channels. One number
            stands for three equal ones; of gray inputs there is one.
        size: height and width of the network input.
        resize: length that the short side is scaled to (aspect ratio kept) before the center crop; for a crop that
            is not square, the picture is scaled to cover `size` times resize / min(size). A pair is the (height,
            width) to scale to without keeping the aspect ratio; `None` scales straight to `size` that way.
        interpolation: all of them antialiased, except `nearest`.
        color: order of the network's input channels; `GRAY` is one channel, the luma of ITU-R 601.
        fit: what becomes of pictures with another aspect ratio than `size`: `crop` cuts off what sticks out (or, with
            `resize=None`, distorts them); `letterbox` scales them until they fit and pads both sides alike, `corner`
            pads at the right and the bottom; `original` leaves the scale alone: larger pictures are cropped in the
            middle, smaller ones padded at the right and the bottom; `own` leaves each picture as large as it is, for
            detectors that take a list of pictures and resize them themselves: `size` is that of `example` alone.
        fill: what is padded with, per channel (red, green, blue) of pixels in [0, 1].
        multiple: `size` is rounded up to a multiple of it, as networks with several scales need (32 is common).
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]
    resize: int | tuple[int, int] | None
    interpolation: Interpolation = "bilinear"
    color: Color = "RGB"
    fit: Fit = "crop"
    fill: tuple[float, ...] = (GRAY, GRAY, GRAY)
    multiple: int = 1

    def __post_init__(self) -> None:
        for name in ("mean", "std", "fill"):
            object.__setattr__(self, name, _channels(name, getattr(self, name), self.channels))
        if min(self.std) <= 0:
            raise ConfigError(f"std is {self.std}; every value must be positive (pixels are scaled to [0, 1])")
        _positive("multiple", self.multiple)
        height, width = (-(-side // self.multiple) * self.multiple for side in _pair("size", self.size))
        object.__setattr__(self, "size", (height, width))
        if self.fit != "crop" and self.resize is not None:
            raise ConfigError(f"resize is {shown(self.resize)}, and {self.fit} scales to the size; leave it at none")
        if isinstance(self.resize, int):
            _positive("resize", self.resize)
            if self.resize < min(self.size):
                raise ConfigError(
                    f"resize is {self.resize}, smaller than the crop {self.size[0]}x{self.size[1]}; "
                    f"give at least {min(self.size)}, or lower size"
                )
        elif self.resize is not None:
            object.__setattr__(self, "resize", _pair("resize", self.resize))
            if self.resize[0] < self.size[0] or self.resize[1] < self.size[1]:
                raise ConfigError(
                    f"resize is {self.resize}, smaller than the crop {self.size}; raise it or lower size"
                )
        for name, choices in (("interpolation", Interpolation), ("color", Color), ("fit", Fit)):
            if getattr(self, name) not in get_args(choices):
                raise ConfigError(
                    f"{name} is {shown(getattr(self, name))}; choose one of {', '.join(get_args(choices))}"
                )

    @classmethod
    def imagenet(cls, size: int | tuple[int, int] = 224) -> Preprocessing:
        """The usual ImageNet evaluation: the central 224/256 of the picture at `size`, ImageNet mean and deviation."""
        return cls(IMAGENET_MEAN, IMAGENET_STD, (224, 224), 256).replace(size=size)

    @property
    def channels(self) -> int:
        """Of the network's input."""
        return 1 if self.color == "GRAY" else 3

    def __call__(self, image: Image.Image) -> Tensor:
        """The network input for one picture: float32 [3 or 1, height, width], normalized."""
        part, top, left = self._visible(image if image.mode == "RGB" else image.convert("RGB"))
        return self.normalize(part) if self.fit == "own" else self._on_canvas(self.normalize(part), top, left)

    def crop(self, image: Image.Image) -> Image.Image:
        """Scale, and crop or pad to `size`; the result is an RGB picture of exactly that size (`own`: its own)."""
        part, top, left = self._visible(image if image.mode == "RGB" else image.convert("RGB"))
        if self.fit == "own" or (part.height, part.width) == self.size:
            return part
        fill = tuple(round(255 * value) for value in self.fill) * (3 // self.channels)
        canvas = Image.new("RGB", (self.size[1], self.size[0]), fill)
        canvas.paste(part, (left, top))
        return canvas

    def place_mask(self, mask: Image.Image, outside: int) -> np.ndarray:
        """A mask of class indices (mode L or P) as it lies on the input: uint8 [height, width], nearest pixels."""
        part, top, left = self._visible(mask, Image.Resampling.NEAREST)
        if self.fit == "own":
            return np.array(part)
        pixels = np.full(self.size, outside, dtype=np.uint8)
        pixels[top : top + part.height, left : left + part.width] = np.asarray(part)
        return pixels

    def place(self, height: int, width: int) -> Placed:
        """Where a picture of this height and width is in the input."""
        frame = self._frame(height, width)
        return Placed(frame.width / width, frame.height / height, frame.left, frame.top)

    def _visible(self, image: Image.Image, resampling: Image.Resampling | None = None) -> tuple[Image.Image, int, int]:
        """The part of the scaled picture that lies on the input, and its top and left there."""
        frame = self._frame(image.height, image.width)
        if frame.height * frame.width > MOST_PIXELS:
            raise DataError(
                f"a picture of {image.height}x{image.width} pixels would be scaled to {frame.height}x{frame.width}; "
                "crop it to a usual aspect ratio"
            )
        if resampling is None:  # PIL's NEAREST is 0
            resampling = _RESAMPLING[self.interpolation]
        if (frame.width, frame.height) != image.size:
            image = image.resize((frame.width, frame.height), resampling)
        height, width = (image.height, image.width) if self.fit == "own" else self.size
        left, top = max(-frame.left, 0), max(-frame.top, 0)
        right, bottom = min(frame.width, width - frame.left), min(frame.height, height - frame.top)
        return image.crop((left, top, right, bottom)), max(frame.top, 0), max(frame.left, 0)

    def _on_canvas(self, part: Tensor, top: int, left: int) -> Tensor:
        if part.shape[1:] == self.size:
            return part
        mean, std = self._moments
        fill = torch.tensor(self.fill, dtype=torch.float32).view(-1, 1, 1)
        canvas = (((fill.flip(0) if self.color == "BGR" else fill) - mean) / std).repeat(1, *self.size)
        canvas[:, top : top + part.shape[1], left : left + part.shape[2]] = part
        return canvas

    def _frame(self, height: int, width: int) -> _Frame:
        room_y, room_x = self.size
        if self.fit == "own":
            return _Frame(height, width, 0, 0)
        if self.fit == "crop":
            scaled_height, scaled_width = self._scaled(height, width)
            # Python's round, half to even, is what torchvision's center crop does
            top, left = round((scaled_height - room_y) / 2), round((scaled_width - room_x) / 2)
            return _Frame(scaled_height, scaled_width, -left, -top)
        if self.fit == "original":
            return _Frame(height, width, -max(width - room_x, 0) // 2, -max(height - room_y, 0) // 2)
        ratio = min(room_y / height, room_x / width)
        scaled_height, scaled_width = max(round(height * ratio), 1), max(round(width * ratio), 1)
        middle = self.fit == "letterbox"
        return _Frame(scaled_height, scaled_width, middle * (room_x - scaled_width) // 2,
                      middle * (room_y - scaled_height) // 2)  # fmt: skip

    @property
    def scaled_side(self) -> int | None:
        """Pixels a picture's side is scaled to at most, long sides that are cropped left out; `None` where every
        pixel of the file matters."""
        return max(self._target) if self.fit == "crop" else None

    @property
    def _target(self) -> tuple[int, int]:
        if self.resize is None:
            return self.size
        if isinstance(self.resize, tuple):
            return self.resize
        return self.size[0] * self.resize // min(self.size), self.size[1] * self.resize // min(self.size)

    def _scaled(self, height: int, width: int) -> tuple[int, int]:
        target = self._target
        if not isinstance(self.resize, int):
            return target
        # the side that needs the larger enlargement gets its target exactly; the other follows, truncated
        if height * target[1] <= width * target[0]:
            return target[0], max(int(target[0] * width / height), target[1])
        return max(int(target[1] * height / width), target[0]), target[1]

    def normalize(self, image: Image.Image) -> Tensor:
        """Pixels of an RGB picture as float32 [3 or 1, H, W]: scaled to [0, 1], channels ordered, normalized."""
        return self.normalize_pixels(np.asarray(image)[None])[0]

    def normalize_pixels(self, pixels: np.ndarray) -> Tensor:
        """The same for uint8 [N, H, W, 3] RGB pixels; float32 [N, 3 or 1, H, W], contiguous."""
        if self.color == "GRAY":
            pixels = luma(pixels)
        scaled = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).contiguous().float().div_(255)
        if self.color == "BGR":
            scaled = scaled.flip(1)
        mean, std = self._moments
        return scaled.sub_(mean).div_(std)

    def to_pixels(self, inputs: Tensor) -> np.ndarray:
        """The inverse for inputs [N, 3 or 1, H, W]: uint8 [N, H, W, 3] RGB pixels, clipped to 0 to 255."""
        mean, std = self._moments
        scaled = inputs.detach().cpu().float() * std + mean
        if self.color == "BGR":
            scaled = scaled.flip(1)
        pixels = scaled.mul_(255).round_().clamp_(0, 255).to(torch.uint8).expand(-1, 3, -1, -1)
        return pixels.permute(0, 2, 3, 1).contiguous().numpy()

    @property
    def _moments(self) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (self.mean, self.std))
        return mean, std

    @property
    def valid_range(self) -> tuple[Tensor, Tensor]:
        """What black and white become: float32 [3 or 1, 1, 1] each."""
        mean, std = self._moments
        return -mean / std, (1 - mean) / std

    def example(self, batch: int = 2) -> Tensor:
        """A random input of the right shape, float32 [batch, 3 or 1, height, width]; the same on every call."""
        return torch.randn(batch, self.channels, *self.size, generator=torch.Generator().manual_seed(0))

    def replace(self, **changes: Any) -> Preprocessing:
        """A copy with `changes`; unknown names raise `ConfigError`.

        A new `size` alone also scales `resize`, so that the same share of the picture is seen; of pictures at their
        own sizes it makes ones that are fitted into it and padded at the right and the bottom.
        """
        known = {field.name for field in dataclasses.fields(self)}
        unknown = sorted(set(changes) - known)
        if unknown:
            raise ConfigError(f"unknown preprocessing setting {unknown[0]!r}; choose from {', '.join(sorted(known))}")
        if self.fit == "own" and "fit" not in changes and "size" in changes and changes.get("resize") is None:
            changes = {**changes, "fit": "corner"}
        fit = changes.get("fit", "crop" if changes.get("resize") is not None else self.fit)
        idle = [name for name in ("size", "resize", "interpolation", "fill", "multiple") if name in changes]
        if fit == "own" and idle:
            raise ConfigError(
                f"{idle[0]} is {shown(changes[idle[0]])}, and pictures at their own sizes (fit own) are neither "
                "scaled nor padded; leave it out, or choose another fit, such as corner"
            )
        if changes.get("fit", "crop") != "crop" or (changes.get("resize") is not None and "fit" not in changes):
            # a crop and a fit exclude each other: the one that is asked for wins
            changes = {"resize": None, **changes} if "fit" in changes else {"fit": "crop", **changes}
        if "size" in changes and "resize" not in changes:
            size = _pair("size", changes["size"])
            if isinstance(self.resize, int):
                changes["resize"] = max(round(self.resize * min(size) / min(self.size)), min(size))
            elif self.resize is not None:
                ratios = zip(self.resize, size, self.size, strict=True)
                changes["resize"] = tuple(max(round(r * new / old), new) for r, new, old in ratios)
        return dataclasses.replace(self, **changes)

    def in_one_size(self) -> Preprocessing:
        """The same where all pictures get one size; of pictures at their own sizes one that fits them into `size`."""
        return self.replace(fit="corner") if self.fit == "own" else self

    def describe(self) -> str:
        """One line for people."""
        height, width = self.size
        mean, std = (" ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        if self.fit == "own":
            return f"each picture at its own size, {self.color} in [0, 1], mean {mean}, std {std}"
        if self.fit != "crop":
            how = {"letterbox": "scale to fit into", "corner": "scale to fit into", "original": "no scaling, onto"}
            where = "both sides" if self.fit == "letterbox" else "the right and the bottom"
            fill = " ".join(f"{255 * value:.4g}" for value in dict.fromkeys(self.fill))
            geometry = f"{how[self.fit]} {height}x{width}, {where} padded with {fill}"
        elif self.resize is None:
            geometry = f"scale to {height}x{width}"
        else:
            scale = f"short side to {self.resize}" if isinstance(self.resize, int) else "{}x{}".format(*self.resize)
            geometry = f"scale {scale}, crop {height}x{width}"
        return f"{geometry} ({self.interpolation}), {self.color} in [0, 1], mean {mean}, std {std}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """The inverse of `to_dict`, also after a round trip through JSON."""
        names = [field.name for field in dataclasses.fields(cls)]
        newer = {field.name for field in dataclasses.fields(cls) if field.default is not dataclasses.MISSING}
        if not isinstance(values, Mapping) or not set(names) - newer <= set(values) <= set(names):
            raise ConfigError(f"a preprocessing needs {', '.join(names)}; got {shown(values)}")
        plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**plain)


def luma(pixels: np.ndarray) -> np.ndarray:
    """uint8 [..., 3] RGB pixels as gray [..., 1], rounded as Pillow does (ITU-R 601)."""
    weights = np.array([19_595, 38_470, 7_471], dtype=np.int64)
    return ((pixels.astype(np.int64) @ weights + 32_768) >> 16).astype(np.uint8)[..., None]


def _channels(name: str, values: Any, channels: int) -> tuple[float, ...]:
    numbers = tuple(values) if isinstance(values, (tuple, list)) else (values,)
    plain = all(isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < MOST for v in numbers)
    if len(numbers) not in (1, 3) or not plain:
        raise ConfigError(f"{name} is {shown(values)}; give three numbers, one a channel, or one for all")
    if channels == 1 and len(set(numbers)) > 1:
        raise ConfigError(f"{name} is {shown(values)}, and gray inputs have one channel; give one number")
    return tuple(float(v) for v in numbers[:channels]) * (channels // len(numbers[:channels]))


def _pair(name: str, value: Any) -> tuple[int, int]:
    sides = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(sides) != 2:
        raise ConfigError(f"{name} is {shown(value)}; give height and width, or one number for a square")
    for side in sides:
        _positive(name, side)
    return int(sides[0]), int(sides[1])


def _positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_SIDE:
        raise ConfigError(
            f"{name} is {shown(value)}; it must be a positive whole number of pixels, {MOST_SIDE} at most"
        )
