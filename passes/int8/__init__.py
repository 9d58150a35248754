"""Int8: 8-bit integers where the target computes with them faster, placed by calibration."""

from graphopt.passes.int8.int8 import Int8

__all__ = ["Int8"]
