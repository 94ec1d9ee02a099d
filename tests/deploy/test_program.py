"""What files and simulators begin with: exported once a result, and again for what was changed."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

import brecq
from brecq import QuantResult
from brecq.deploy import program
from brecq.deploy.complete import complete
from brecq.deploy.floats import float_graph

Quantized = Callable[..., QuantResult]


@pytest.fixture
def result(quantized: Quantized) -> QuantResult:
    """One of its own."""
    return copy.deepcopy(quantized("ConcatNet"))


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The programs that were exported since."""
    found: list[object] = []
    export = program.to_program
    monkeypatch.setattr(program, "to_program", lambda *given: (found.append(given[0]), export(*given))[1])
    return found


def test_a_program_is_exported_once_for_all_that_begins_with_it(result: QuantResult, exports: list[object]) -> None:
    first, again = complete(result), complete(result)
    brecq.simulate(result)
    float_graph(result)  # which takes the quantizers out of its own graph
    last = complete(result)
    assert exports == [result.converted]
    x = torch.randn(2, *result.example_inputs[0].shape[1:])
    assert torch.equal(first.graph(x), again.graph(x))
    assert torch.equal(first.graph(x), last.graph(x))
    assert first.graph.code == last.graph.code


def test_what_was_changed_since_is_exported_anew(result: QuantResult, exports: list[object]) -> None:
    x = torch.randn(2, *result.example_inputs[0].shape[1:])
    before = brecq.simulate(result)(x)
    name, scale = next((n, b) for n, b in result.converted.named_buffers() if n.endswith("weight_scale"))
    scale.mul_(2)  # in its place: the program reads it there
    doubled = brecq.simulate(result)(x)
    assert not torch.equal(before, doubled)
    assert len(exports) == 1
    owner, _, last = name.rpartition(".")
    setattr(result.converted.get_submodule(owner), last, scale / 2)
    assert torch.equal(brecq.simulate(result)(x), before)
    assert len(exports) == 2
    graph = result.converted.graph
    head = next(node for node in graph.nodes if node.target is torch.ops.aten.linear.default)
    with graph.inserting_after(head):
        negative = graph.call_function(torch.ops.aten.neg.default, (head,))
    head.replace_all_uses_with(negative, delete_user_cb=lambda user: user is not negative)
    result.converted.recompile()
    assert torch.equal(program.program_of(result)(x), result.converted(x))
    assert len(exports) == 3
