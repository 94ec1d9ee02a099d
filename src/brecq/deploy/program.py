"""What `torch.export` makes of a converted program: files, simulators and checks of a result begin with it."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from brecq.converted.convert import to_program
from brecq.devices import on_cpu
from brecq.graph.fold import drop_guards

if TYPE_CHECKING:
    from brecq.result import QuantResult

_exported: WeakKeyDictionary[nn.Module, tuple[object, ExportedProgram]] = WeakKeyDictionary()


def program_of(result: QuantResult) -> GraphModule:
    """A graph of its own over the tensors of the converted program, on the CPU.

    The export takes most of the time of a simulation: it is made once for a program, and again where the program was
    changed or its tensors were replaced.
    """
    converted = on_cpu(result.converted)
    assert isinstance(converted, GraphModule)
    tensors = {name: (value.data_ptr(), value.shape) for name, value in converted.state_dict().items()}
    state = (converted.code, tensors, [value.shape for value in result.example_inputs])
    known, exported = _exported.get(converted, (None, None))
    if exported is None or known != state:
        exported = to_program(converted, result.example_inputs)
        _exported[converted] = (state, exported)
    graph = exported.module()
    assert isinstance(graph, GraphModule)
    drop_guards(graph)
    return graph
