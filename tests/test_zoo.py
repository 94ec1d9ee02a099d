"""A tenth of the zoo, chosen for variety: every step from capture to a running ONNX file holds for it.

`benchmarks/zoo.py` runs the whole list; docs/zoo.md is its table.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("benchmarks/ is not part of the source distribution", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))
architectures = pytest.importorskip("architectures")
zoo = pytest.importorskip("zoo")

LONGEST = ("xcit_nano_12_p16_224", "shufflenet_v2_x0_5")
FAST = [name for name, architecture in architectures.ZOO.items() if architecture.fast]


def test_a_tenth_of_the_zoo_is_tested() -> None:
    assert len(architectures.ZOO) >= 100
    assert {architectures.ZOO[name].source for name in FAST} == {"timm", "torchvision", "transformers", "by hand"}
    assert len(FAST) >= len(architectures.ZOO) // 12


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in LONGEST else []) for n in FAST])
def test_architecture(name: str) -> None:
    architecture = architectures.ZOO[name]
    if architecture.source != "by hand":
        pytest.importorskip(architecture.source)
    found = zoo.examine(name, export=name in ("products", "coordinates", "clip_vision"))
    assert found["loaded equal"]
    assert found["quantized"] == found["layers"] > 1
    assert found["sqnr"] > 8
