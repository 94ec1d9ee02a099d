"""What to quantize, how finely, and how to learn it: configurations that validate themselves."""

from brecq.config.quantization import ActivationScheme, Granularity, Outputs, Placement, QuantConfig
from brecq.config.recipe import Recipe
from brecq.config.rules import FLOAT, WIDE, LayerRule, check_activation_bits, check_bits

__all__ = [
    "FLOAT", "WIDE", "ActivationScheme", "Granularity", "LayerRule", "Outputs", "Placement", "QuantConfig", "Recipe",
    "check_activation_bits", "check_bits",
]  # fmt: skip
