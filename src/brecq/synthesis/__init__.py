"""Calibration inputs made from the network itself, where there is no data."""
