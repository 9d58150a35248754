"""Weights stored in 16-bit floats, computing in float32."""

from graphopt.passes.half.half import Half

__all__ = ["Half"]
