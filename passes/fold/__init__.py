"""Fold: what can be computed before the model runs. See passes/README.md."""

from graphopt.passes.fold.fold import Fold

__all__ = ["Fold"]
