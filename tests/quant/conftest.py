from __future__ import annotations

import pytest

from brecq.quant.fusion import backend


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skips where kernels cannot be compiled."""
    monkeypatch.delenv("BRECQ_KERNELS", raising=False)
    if backend() != "compiled":
        pytest.skip(f"kernels run {backend()}")
