from __future__ import annotations

import pytest
from hypothesis import settings

from brecq.quant.fusion import backend

# The first example of a test pays for imports and thread pools: a deadline would only measure the machine.
settings.register_profile("quant", deadline=None)
settings.load_profile("quant")


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skips where kernels cannot be compiled."""
    monkeypatch.delenv("BRECQ_KERNELS", raising=False)
    if backend() != "compiled":
        pytest.skip(f"kernels run {backend()}")
