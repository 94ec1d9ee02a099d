from __future__ import annotations

from contextlib import suppress
from types import ModuleType

import pytest
import torch.fx.config

from brecq.capture.export import capture
from brecq.graph.locations import without_locations


@pytest.mark.skipif(not hasattr(torch.fx.config, "do_not_emit_stack_traces"), reason="this PyTorch always looks")
def test_nobody_looks_for_lines_of_the_source(networks: ModuleType) -> None:
    model = networks.build(networks.ConcatNet)
    assert not any("stack_trace" in node.meta for node in capture(model, networks.inputs(model, 2)).graph.nodes)
    assert torch.fx.config.do_not_emit_stack_traces is False


@pytest.mark.parametrize("before", [True, False])
def test_the_setting_of_others_comes_back(before: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.fx.config, "do_not_emit_stack_traces", before, raising=False)
    with suppress(KeyError), without_locations():
        assert torch.fx.config.do_not_emit_stack_traces is True
        raise KeyError
    assert torch.fx.config.do_not_emit_stack_traces is before


def test_a_pytorch_without_the_setting_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.fx.config, "do_not_emit_stack_traces", raising=False)
    with without_locations():
        assert not hasattr(torch.fx.config, "do_not_emit_stack_traces")
