"""What is remembered of an activation until its range is chosen."""

from __future__ import annotations

import torch

from brecq.quant.observer import Observer


def test_few_values_are_all_kept() -> None:
    """Drawn with replacement a third of them would be lost, and the range would clip what was seen."""
    observer = Observer()
    observer.begin(3)
    observer.add(torch.arange(448.0).view(64, 7))
    assert torch.equal(observer.samples().sort().values, torch.arange(448.0))
