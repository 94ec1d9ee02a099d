"""What an export would refuse is said before any work: `check` names it, `quantize --target` does not start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import brecq
from brecq import QuantConfig
from brecq.deploy.formats import FORMATS, option_types
from brecq.errors import BrecqError, ExportError
from brecq.progress import Progress
from brecq.targets import load, names


class Between(nn.Module):
    """An operator between two convolutions."""

    def __init__(self, operator: Callable[[Tensor], Tensor], channels: int = 8, dims: int = 2) -> None:
        super().__init__()
        conv = nn.Conv1d if dims == 1 else nn.Conv2d
        self.first, self.operator, self.last = conv(4, 8, 3, padding=1), operator, conv(channels, 4, 1)
        self.example = torch.randn(4, 4, *[8] * dims, generator=torch.Generator().manual_seed(0))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.operator(self.first(x)))


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        found = F.scaled_dot_product_attention(tokens, tokens, tokens)
        return found.transpose(1, 2).reshape(x.shape)


class Normalized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


NETWORKS: dict[str, Callable[[], Between]] = {
    "silu": lambda: Between(nn.SiLU()),
    "hardswish": lambda: Between(nn.Hardswish()),
    "prelu": lambda: Between(nn.PReLU(8)),
    "transposed": lambda: Between(nn.ConvTranspose2d(8, 8, 2, 2)),
    "transposed in groups": lambda: Between(nn.ConvTranspose2d(8, 8, 2, 2, groups=2)),
    "groups": lambda: Between(nn.Conv2d(8, 8, 3, padding=1, groups=2)),
    "nearest": lambda: Between(nn.Upsample(scale_factor=2)),
    "bilinear": lambda: Between(nn.Upsample(scale_factor=2, mode="bilinear")),
    "bicubic": lambda: Between(nn.Upsample(scale_factor=2, mode="bicubic")),
    "pixel shuffle": lambda: Between(nn.PixelShuffle(2), 2),
    "softmax": lambda: Between(nn.Softmax(1)),
    "attention": lambda: Between(Attention()),
    "layer norm": lambda: Between(Normalized()),
    "concatenation": lambda: Between(lambda x: torch.cat([x, x.relu()], 1), 16),
    "mean": lambda: Between(lambda x: x - x.mean((2, 3), keepdim=True)),
    "slices": lambda: Between(lambda x: x[:, ::2, 1:, :-1], 4),
    "cumulative": lambda: Between(lambda x: x.cumsum(1)),
    "one dimension": lambda: Between(nn.ReLU(), dims=1),
}


@pytest.mark.parametrize(
    ("name", "target", "why"),
    [
        ("prelu", "litert", "LiteRT has no operator here for prelu"),
        ("bilinear", "cmsis-nn", "RESIZE_BILINEAR"),
        ("silu", "cmsis-nn", ""),  # a table of 256 codes
    ],
)
def test_refusals_are_known_before_any_work(name: str, target: str, why: str) -> None:
    if target == "litert":
        pytest.importorskip("ai_edge_litert", reason="needs the extra litert")
    model = network(name)
    found = brecq.check(model, (model.example,), QuantConfig(8, 8, target=target)).refused
    assert why in found
    assert bool(found) == bool(why)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_nothing_is_learned_for_a_target_that_refuses() -> None:
    progress, model = Stages(), network("bilinear")
    with pytest.raises(ExportError, match="RESIZE_BILINEAR"):
        brecq.quantize(model, model.example, QuantConfig(8, 8, target="cmsis-nn"), progress=progress)
    assert progress.seen == ["rehearsing the export for cmsis-nn"]


class Stages(Progress):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def stage(self, name: str) -> None:
        self.seen.append(name)


def network(name: str) -> Between:
    torch.manual_seed(0)
    return NETWORKS[name]().eval()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("target", names())
@pytest.mark.parametrize("name", NETWORKS)
def test_check_says_what_the_export_refuses(name: str, target: str, tmp_path: Path) -> None:
    format = FORMATS[load(target).format]
    try:
        option_types(format.name)
    except ExportError as error:
        pytest.skip(str(error))
    model, config = network(name), QuantConfig(8, 8, method="rtn", target=target)
    found = brecq.check(model, (model.example,), config)
    result = brecq.quantize(model, model.example, config)
    if found.refused:
        with pytest.raises(BrecqError) as error:
            brecq.export(result, tmp_path / f"m{format.suffix}", format.name)
        assert found.refused == str(error.value)
    else:
        brecq.export(result, tmp_path / f"m{format.suffix}", format.name)
