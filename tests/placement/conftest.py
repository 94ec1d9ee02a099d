"""Graphs are worked on without gradients."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _no_gradients(no_gradients: None) -> None:
    """In every test here."""
