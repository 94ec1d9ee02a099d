"""Tables of targets: complete, of known operators and widths, and what they say of a layer's widths."""

from __future__ import annotations

import pytest

from brecq.config import FLOAT, WIDE, QuantConfig
from brecq.errors import ConfigError
from brecq.graph import integer, ops
from brecq.targets import Kernel, Target, load, names

LAYERS = {*ops.WEIGHTED.values()} | {f"depthwise_{kind}" for kind in ops.WEIGHTED.values() if kind.startswith("conv")}
OPERATORS = {"add", "mul", "average_pool", "concat", *integer._UNARY.values()}


@pytest.mark.parametrize("name", names())
def test_every_table_is_whole(name: str) -> None:
    target = load(name)
    assert target.name == name
    assert target.title
    assert target.version
    assert "." in target.source, "where it is from"
    assert target.operators.keys() <= OPERATORS
    assert target.fixed.keys() <= target.operators.keys()
    assert target.kernels
    for kernel in (*target.kernels, *(() if target.wide is None else target.wide.kernels)):
        assert set(kernel.operators) <= LAYERS
        assert set(kernel.weights) <= {*range(2, 9), FLOAT}
        assert set(kernel.activations) <= {*range(2, 9), WIDE, FLOAT}
        assert all(width in kernel.weights and width < bits <= 8 for width, bits in kernel.stored.items())
    assert QuantConfig(target=name).target == name


def test_an_unknown_target_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"'tensorflow'; choose one of .*onnxruntime.*tensorrt"):
        QuantConfig(target="tensorflow")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "tensorrt", "activation_scheme": "symmetric"}, "zero point 0; leave it at auto"),
        ({"target": "tensorrt", "weight_scheme": "asymmetric"}, "takes symmetric weights of 2, 3"),
        ({"target": "onnxruntime", "placement": "input"}, "leave placement at output"),
    ],
)
def test_what_contradicts_a_target_is_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        QuantConfig(**options)  # type: ignore[arg-type]


def table(*kernels: Kernel) -> Target:
    return Target("t", "t", "1", "s.t", "onnx", kernels, {})


def test_the_nearest_legal_widths_are_the_narrowest_that_hold_what_is_asked_for() -> None:
    target = table(Kernel(("conv2d",), (4, 8), (8,)), Kernel(("linear",), (4,), (8, FLOAT)))
    assert target.nearest("conv2d", 3, 4) == (4, 8)
    assert target.nearest("conv2d", 5, 8) == (8, 8)
    assert target.nearest("conv2d", 4, FLOAT) is None  # no kernel takes float there
    assert target.nearest("linear", 2, FLOAT) == (4, FLOAT)
    assert target.nearest("linear", 8, 8) is None  # rather float than fewer bits than were asked for
    assert target.nearest("conv3d", 4, 8) is None


def test_depthwise_convolutions_have_kernels_of_their_own_where_the_table_says_so() -> None:
    apart = table(Kernel(("conv2d",), (4,), (8,)), Kernel(("depthwise_conv2d",), (8,), (8,)))
    assert apart.nearest("depthwise_conv2d", 4, 8) == (8, 8)
    assert table(Kernel(("conv2d",), (4,), (8,))).nearest("depthwise_conv2d", 4, 8) == (4, 8)
