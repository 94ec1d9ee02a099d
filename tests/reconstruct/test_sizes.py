from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from brecq.capture.export import capture
from brecq.config import Recipe
from brecq.reconstruct.sizes import batch_size

CPU = torch.device("cpu")


class Shrinks(nn.Module):
    """Any number of pictures of any size, added up at the smallest."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3)
        self.pool = nn.AdaptiveAvgPool2d(2)

    def forward(self, *pictures: Tensor) -> Tensor:
        return sum(self.pool(self.conv(picture)) for picture in pictures)


@pytest.mark.parametrize(
    ("sides", "expected"),
    [([32], 32), ([96], 32), ([128], 24), ([160], 15), ([224], 8), ([320], 8), ([128, 128], 12), ([4, 224], 8)],
)
def test_large_samples_are_learned_from_a_few_at_a_time(sides: list[int], expected: int) -> None:
    graph = capture(Shrinks().eval(), tuple(torch.zeros(2, 3, side, side) for side in sides))
    assert batch_size(Recipe.preset("fast"), graph, CPU) == expected
    assert batch_size(Recipe.preset("fast"), graph, torch.device("cuda")) == 32
    assert batch_size(Recipe(batch_size=5), graph, CPU) == 5
    assert {batch_size(Recipe.preset(name), graph, CPU) for name in ("thorough", "paper", "official")} == {32}


def test_text_is_small() -> None:
    graph = capture(nn.Sequential(nn.Embedding(10, 512), nn.Linear(512, 4)).eval(), (torch.zeros(2, 300).long(),))
    assert batch_size(Recipe.preset("fast"), graph, CPU) == 32
