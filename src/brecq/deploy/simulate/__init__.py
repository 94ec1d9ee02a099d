"""The integer simulator: what a completed program computes on integer hardware, in PyTorch."""

from brecq.deploy.simulate.model import IntegerModel, simulate

__all__ = ["IntegerModel", "simulate"]
