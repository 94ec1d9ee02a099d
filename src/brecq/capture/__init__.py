"""Capture: a network becomes an ATen graph in one spelling, and what cannot is refused with the culprit's name."""
