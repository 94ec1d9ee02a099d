"""The C of what computes with codes alone: sums, products, means, maxima, other grids, look-up tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

from brecq.deploy.cmsis.emit.source import Source, braces, call, checked, clamp, dims, leading, plain, tensors
from brecq.deploy.lite.program import Operator, Tensor
from brecq.deploy.simulate.arithmetic import mean_multiplier, multiplier
from brecq.errors import ExportError


def pool(source: Source, operator: Operator) -> None:
    (x,), output = tensors(operator)
    stride = [operator.options["strideH"], operator.options["strideW"]]
    taps = [operator.options["filterHeight"], operator.options["filterWidth"]]
    pads = leading(operator, x.shape, taps, stride, [1, 1])
    call(
        source,
        [
            f"const cmsis_nn_pool_params params = {braces(dims(stride[::-1]), dims(pads[::-1]), '{-128, 127}')};",
            f"const cmsis_nn_dims in = {dims(x.shape)}, filter = {dims([1, *taps, 1])};",
            f"const cmsis_nn_dims out = {dims(output.shape)};",
            checked(
                "arm_max_pool_s8",
                "&context",
                "&params",
                "&in",
                source.pointers[x],
                "&filter",
                "&out",
                source.pointers[output],
            ),
        ],
    )


def _blocks(operator: Operator, a: Tensor, b: Tensor) -> tuple[int, int, int, int]:
    """How often a kernel is called, on how many elements, and how far each operand moves on in between."""
    if a.shape == b.shape:
        return 1, math.prod(a.shape), 0, 0
    whole, part = (a, b) if math.prod(a.shape) >= math.prod(b.shape) else (b, a)
    depth = math.prod(part.shape)
    if part.shape[-1] != depth or whole.shape[-1] != depth:
        raise ExportError(
            f"CMSIS-NN: {operator.kind} in {operator.layer or operator.outputs[0].name} broadcasts "
            f"{part.shape} to {whole.shape}, and only one value a channel is possible; export to tflite or ONNX"
        )
    return math.prod(whole.shape) // depth, depth, depth if whole is a else 0, depth if whole is b else 0


def add(source: Source, operator: Operator) -> None:
    (a, b), output = tensors(operator)
    twice = 2 * max(a.scale, b.scale)
    first, second = multiplier(a.scale / twice), multiplier(b.scale / twice)
    total = multiplier(twice / ((1 << 20) * output.scale))
    offsets = -a.zero_point, *first, -b.zero_point, *second, 20
    _elementwise(source, operator, "arm_elementwise_add_s8", offsets, total)


def multiply(source: Source, operator: Operator) -> None:
    (a, b), output = tensors(operator)
    total = multiplier(a.scale * b.scale / output.scale)
    _elementwise(source, operator, "arm_elementwise_mul_s8", (-a.zero_point, -b.zero_point), total)


def _elementwise(
    source: Source, operator: Operator, kernel: str, offsets: Sequence[int], total: tuple[int, int]
) -> None:
    """A kernel of two operands. `offsets`: its arguments of them; `total`: multiplier and shift of the result."""
    (a, b), output = tensors(operator)
    count, block, step_a, step_b = _blocks(operator, a, b)
    operands = [f"{source.pointers[each]} + i * {step}" for each, step in ((a, step_a), (b, step_b))]
    result = [f"{source.pointers[output]} + i * {block}", output.zero_point, *total, *clamp(operator, output), block]
    loop = f"for (int32_t i = 0; i < {count}; i++)"
    call(source, [loop, f"    {checked(kernel, *operands, *offsets, *result)}"])


def mean(source: Source, operator: Operator) -> None:
    (x, axes), output = tensors(operator)
    assert axes.data is not None
    if axes.data.tolist() != [1, 2] or len(x.shape) != 4:
        raise ExportError(
            f"CMSIS-NN: {operator.layer or output.name} takes a mean over something else than height and width; "
            "export to tflite or ONNX"
        )
    batch, height, width, channels = x.shape
    whole, shift = mean_multiplier(x.scale / output.scale, height * width)
    plain(
        source, "brecq_mean", source.pointers[x], source.pointers[output], batch, height * width, channels,
        x.zero_point, output.zero_point, whole, shift,
    )  # fmt: skip


def requantize(source: Source, operator: Operator) -> None:
    (x,), output = tensors(operator)
    whole, shift = multiplier(x.scale / output.scale)
    ends = source.pointers[x], source.pointers[output]
    plain(source, "brecq_requantize", *ends, math.prod(x.shape), x.zero_point, output.zero_point, whole, shift)


def bound(source: Source, operator: Operator) -> None:
    (x, limit), output = tensors(operator)
    assert limit.data is not None
    bound = int(limit.data.reshape(-1)[0])
    low, high = (bound, 127) if operator.kind == "MAXIMUM" else (-128, bound)
    plain(source, "brecq_clamp", source.pointers[x], source.pointers[output], math.prod(x.shape), low, high)


def look_up(source: Source, operator: Operator) -> None:
    (x, table), output = tensors(operator)
    assert table.data is not None
    values = source.array(f"{output.name}_table", "int8_t", table.data)
    plain(source, "brecq_look_up", source.pointers[x], source.pointers[output], math.prod(x.shape), values)
