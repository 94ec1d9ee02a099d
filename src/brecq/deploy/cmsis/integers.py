"""A channels-last program that starts and ends with int8 codes, with nothing in float between."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from brecq.deploy.lite.padding import VALID
from brecq.deploy.lite.program import Operator, Program, Tensor
from brecq.errors import ExportError

_ELSEWHERE = "export to tflite, ONNX or OpenVINO"
_ADVICE = f"quantize with --target cmsis-nn, or {_ELSEWHERE}"


@dataclass
class Integers:
    """Operators on int8 tensors; `inputs` and `outputs` are codes."""

    operators: list[Operator]
    inputs: list[Tensor]
    outputs: list[Tensor]


def integers(program: Program, *, targeted: bool = False) -> Integers:
    """The program without the quantizers at its ends.

    Raises:
        ExportError: something computes in float; the message names the operators and their modules.
    """
    advice = _ELSEWHERE if targeted else _ADVICE
    inputs = [_entrance(program, tensor, advice) for tensor in program.inputs]
    outputs = [_exit(program, tensor, advice) for tensor in program.outputs]
    ends = {id(each) for each in program.operators if each.outputs[0] in inputs and each.kind == "QUANTIZE"}
    operators = [each for each in program.operators if id(each) not in ends and not _is_exit(each, program)]
    floats = [each for each in operators if each.outputs[0].dtype != "int8"]
    if floats:
        named = dict.fromkeys(f"{each.kind} (in {each.layer or each.outputs[0].name})" for each in floats[:40])
        first, more = list(named)[:3], len(named) - 3
        raise ExportError(
            f"CMSIS-NN computes on integers alone, and this network computes in float: {', '.join(first)}"
            f"{f' and {more} more' if more > 0 else ''}; {advice}"
        )
    return Integers(operators, inputs, outputs)


def fold_pads(found: Integers) -> None:
    """Let convolutions and poolings pad, as CMSIS-NN does by any number above and to the left: what is missing on the
    other sides follows from the size of the output."""
    makers = {each.outputs[0]: each for each in found.operators}
    readers = Counter(tensor for each in found.operators for tensor in each.inputs)
    for each in found.operators:
        source = each.inputs[0]
        pad = makers.get(source) if source is not None else None
        pads_codes = pad is not None and pad.kind == ("PADV2" if each.kind == "MAX_POOL_2D" else "PAD")
        if pad is None or not pads_codes or each.kind not in ("CONV_2D", "DEPTHWISE_CONV_2D", "MAX_POOL_2D"):
            continue
        if each.options["padding"] != VALID or readers[source] > 1 or source in found.outputs:
            continue
        sides = pad.inputs[1]
        assert sides is not None
        assert sides.data is not None
        if not sides.data[[0, 3]].any():
            each.inputs[0] = pad.inputs[0]
            each.options["pads"] = sides.data[1:3, 0].tolist()
            found.operators = [other for other in found.operators if other is not pad]


def _entrance(program: Program, tensor: Tensor, advice: str) -> Tensor:
    """The codes that an input becomes right away."""
    readers = [each for each in program.operators if tensor in each.inputs]
    if len(readers) != 1 or readers[0].kind != "QUANTIZE":
        raise ExportError(
            f"the input {tensor.name} is read by {', '.join(each.kind for each in readers) or 'nobody'}, not "
            f"quantized once; leave it out of what forward returns, if it is there, or {advice}"
        )
    return readers[0].outputs[0]


def _exit(program: Program, tensor: Tensor, advice: str) -> Tensor:
    """The codes that an output is made of."""
    maker = next((each for each in program.operators if tensor in each.outputs), None)
    if maker is None:
        raise ExportError(
            f"the output {tensor.name} is a constant in float, where C puts out codes; leave it out of what forward "
            f"returns, or {_ELSEWHERE}"
        )
    first = maker.inputs[0]
    if maker.kind == "RESHAPE" and first in program.outputs and first.shape == tensor.shape:
        raise ExportError(f"the output {tensor.name} is {first.name} again; return it once, or {_ELSEWHERE}")
    if maker.kind != "DEQUANTIZE":
        raise ExportError(f"the output {tensor.name} is computed in float, by {maker.kind}; {advice}")
    source = maker.inputs[0]
    assert source is not None
    return source


def _is_exit(operator: Operator, program: Program) -> bool:
    return operator.kind == "DEQUANTIZE" and operator.outputs[0] in program.outputs
