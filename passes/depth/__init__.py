"""Depth: remove whole residual branches, what is left repaired by a scale and shift a channel."""

from graphopt.passes.depth.depth import Depth

__all__ = ["Depth"]
