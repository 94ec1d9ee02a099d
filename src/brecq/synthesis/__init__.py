"""Calibration inputs made from the network itself, where there is no data."""

DISTILLED = "distilled.npz"
"""A folder with this file was written by `brecq distill`: it is the data, the pictures beside it are not."""
