"""The configuration of a distillation validates itself."""

from __future__ import annotations

from typing import Any

import pytest

from brecq.errors import ConfigError
from brecq.synthesis.config import DistillConfig


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent": "noise"}, "latent is 'noise'"),
        ({"start": "photographs"}, "start is 'photographs'"),
        ({"latent": "generator"}, "start is 'leaves', but a generator starts from noise; set start=noise"),
        ({"target": "label"}, "target is 'label'"),
        ({"steps": -1}, "steps is -1"),
        ({"steps": 0, "start": "noise"}, "steps is 0, which leaves noise as it is; set start=leaves, or steps"),
        ({"steps": 0, "target": "class"}, "steps is 0, so that target='class' would do nothing; drop it"),
        ({"batch_size": 1}, "batch_size is 1; it must be at least 2"),
        ({"coarse": 1.5}, "coarse is 1.5"),
        ({"lr": 0}, "lr is 0; it must be positive"),
        ({"shift": -1}, "shift is -1"),
        ({"generator_width": 0}, "generator_width is 0"),
        ({"smoothness": float("nan")}, "smoothness is nan"),
    ],
)
def test_bad_values_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DistillConfig(**changes)


def test_presets() -> None:
    assert DistillConfig.preset("fast").name == "fast"
    assert DistillConfig.preset("full").steps > DistillConfig.preset("fast").steps
    with pytest.raises(ConfigError, match="preset is 'slow'; choose one of fast, full, leaves"):
        DistillConfig.preset("slow")


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown distillation setting 'stesp'"):
        DistillConfig().replace(stesp=3)


def test_a_description_says_what_is_done() -> None:
    text = DistillConfig(name="mine", steps=80, coarse=0.5, target="class", seed=7).describe()
    for part in ("mine", "80 steps", "50% of them coarse", "class term", "seed 7"):
        assert part in text
    assert DistillConfig.preset("leaves").replace(seed=3).describe() == (
        "leaves: pictures of dead leaves, drawn without looking at the network, seed 3"
    )
