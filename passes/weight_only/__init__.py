"""Weight-only quantization: matrices in 4 or 8 bits, products in floating point."""

from graphopt.passes.weight_only.weight_only import WeightOnly

__all__ = ["WeightOnly"]
