"""Quantizers: affine arithmetic, range initialization, learned rounding and learned step sizes."""

from __future__ import annotations
