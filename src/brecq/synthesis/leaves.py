"""Dead leaves: pictures of random shapes that hide one another, to start from.

Photographs show objects of all sizes in front of each other. Pictures of nothing but that have their sharp, sparse
edges and much of their spectrum (Lee, Mumford and Huang 2001, "Occlusion models for natural images"); networks even
learn from them (Baradad et al. 2021, "Learning to see by looking at noise"). Edges are what the first layers of a
network answer to, and what noise has none of.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from brecq.synthesis.spectrum import pink

Quantity = TypeVar("Quantity", Tensor, NDArray[Any])

SHAPES = 600
"""In a picture."""

RADII = (0.01, 0.5)
"""Smallest and largest, in sides. Their density falls as r⁻³, which makes pictures look the same at every scale."""

SCENE, CHROMA, TEXTURE = 0.4, 0.4, 0.15
"""Deviations that all shapes of a picture share, that colors add to brightness, and of a texture on everything, each
as a share of the whole deviation."""

OVERSAMPLING = 2
"""Pictures are drawn so many times larger, and averaged."""

CONTRAST = 40.0
"""Levels out of 256 in one deviation, while drawing."""


def dead_leaves(count: int, height: int, width: int, seed: int) -> Tensor:
    """Pictures float32 [count, 3, height, width], every channel of mean 0 and deviation 1 over all of them."""
    rng = np.random.default_rng(seed)
    drawn = np.stack([_draw(height, width, rng) for _ in range(count)])
    leaves = (torch.from_numpy(drawn).permute(0, 3, 1, 2) - 128) / CONTRAST
    texture = pink(torch.randn(leaves.shape, generator=torch.Generator().manual_seed(seed)))
    pictures = _mix(leaves, texture, TEXTURE)
    variance, mean = torch.var_mean(pictures, (0, 2, 3), keepdim=True)
    return ((pictures - mean) / (variance + 1e-10).sqrt()).contiguous()


def _draw(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """One picture [height, width, 3], levels from 0 to 255."""
    size = (width * OVERSAMPLING, height * OVERSAMPLING)
    scene, own = _colors(1, rng), _colors(SHAPES + 1, rng)
    levels = np.clip(128 + CONTRAST * _mix(own, scene, SCENE), 0, 255).astype(int)
    background, *fills = (tuple(color) for color in levels.tolist())
    picture = Image.new("RGB", size, background)
    canvas = ImageDraw.Draw(picture)
    smallest, largest = (max(size) * radius for radius in RADII)
    spread = 1 / smallest**2 - 1 / largest**2
    radii = 1 / np.sqrt(1 / largest**2 + rng.random(SHAPES) * spread)  # the inverse of the distribution function
    centers = rng.random((SHAPES, 2)) * size
    for (x, y), radius, fill in zip(centers, radii, fills, strict=True):
        if rng.random() < 1 / 3:
            canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
        else:
            corners = rng.integers(3, 7)
            angles = 2 * math.pi * np.sort(rng.random(corners))
            reach = radius * rng.uniform(0.6, 1.2, corners)
            edge = np.stack([x + reach * np.cos(angles), y + reach * np.sin(angles)], 1)
            canvas.polygon([(float(a), float(b)) for a, b in edge], fill=fill)
    return np.asarray(picture.resize((width, height), Image.Resampling.BOX), dtype=np.float32)


def _colors(count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Colors [count, 3] of mean 0 and deviation 1, mostly gray."""
    return _mix(rng.standard_normal((count, 1)), rng.standard_normal((count, 3)), CHROMA)


def _mix(first: Quantity, second: Quantity, share: float) -> Quantity:
    """Two independent quantities of deviation 1 make one, with `share` of its deviation from the second."""
    return math.sqrt(1 - share**2) * first + share * second
