from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor
from torch._inductor import config

from brecq.errors import ConfigError
from brecq.quant import fusion
from brecq.quant.fusion import Fused, backend, dense, flat, like

SMALL = fusion.SMALL["cpu"]


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BRECQ_KERNELS", raising=False)
    monkeypatch.setattr(fusion, "_failures", {})


def double(x: Tensor) -> Tensor:
    return 2 * x


def test_the_environment_forces_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRECQ_KERNELS", "eager")
    assert backend() == "eager (BRECQ_KERNELS=eager)"
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiled although eager is forced"))
    assert Fused(double)(torch.ones(SMALL)).sum() == 2 * SMALL
    monkeypatch.setenv("BRECQ_KERNELS", "compiled")
    assert backend() == "compiled"
    monkeypatch.setenv("BRECQ_KERNELS", "fast")
    with pytest.raises(ConfigError, match="'fast'; set it to eager or compiled"):
        backend()


def test_without_a_compiler_the_report_says_so() -> None:
    with config.patch({"cpp.cxx": (None, "no-such-compiler")}):
        assert backend() == "eager (no C++ compiler found)"
        assert Fused(double)(torch.ones(SMALL)).sum() == 2 * SMALL


def test_a_device_without_a_compiler() -> None:
    assert backend("meta") == "eager (no compiler for meta)"


def test_small_tensors_do_not_wait_for_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiled for a small tensor"))
    assert Fused(double)(torch.ones(SMALL - 1)).sum() == 2 * (SMALL - 1)


def broken_compile(function: object, **_: object) -> object:
    def fail(*_: Tensor) -> Tensor:
        raise RuntimeError("\nbackend raised:\n  linker exploded\nthird line")

    return fail


def test_a_failing_compiler_is_reported_once_and_replaced(monkeypatch: pytest.MonkeyPatch, compiler: None) -> None:
    monkeypatch.setattr(torch, "compile", broken_compile)
    x = torch.ones(SMALL)
    fused = Fused(double)
    with pytest.warns(RuntimeWarning, match="eagerly on cpu.*linker exploded"):
        assert torch.equal(fused(x), 2 * x)
    assert backend() == "eager (compilation failed: backend raised: linker exploded)"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(fused(x), 2 * x)


def test_a_failing_compiler_is_an_error_when_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", broken_compile)
    monkeypatch.setenv("BRECQ_KERNELS", "compiled")
    with pytest.raises(RuntimeError, match="linker exploded"):
        Fused(double)(torch.ones(4))


def test_memory_views() -> None:
    x = torch.arange(24.0).view(2, 3, 4)
    for view in (x, x.permute(2, 0, 1), x[:, :1, :1], x[1]):
        filled = dense(view)
        assert torch.equal(filled, view)
        assert sorted(flat(filled).tolist()) == sorted(view.flatten().tolist())
    assert dense(x.permute(2, 0, 1)).data_ptr() == x.data_ptr()
    assert dense(x[:, :2]).is_contiguous()
    assert flat(x.permute(2, 0, 1)).tolist() == list(range(24))
    model = torch.empty(4, 3, 2).permute(2, 1, 0)
    assert like(x, model).stride() == model.stride()
    assert torch.equal(like(x, model), x)


@pytest.mark.parametrize("size", [10, SMALL + 1])
def test_terms_are_added_up_and_the_other_is_given(size: int) -> None:
    x = torch.randn(size, generator=torch.Generator().manual_seed(0))
    total, other = fusion.FusedSum(lambda x: (x * x, x + 1))(x)
    assert total.shape == ()
    assert torch.allclose(total, x.square().sum(), rtol=1e-5)
    assert torch.equal(other, x + 1)
