"""Trees: ensembles without what no row reaches, nothing tells apart, or is there twice."""

from graphopt.passes.trees.trees import Trees

__all__ = ["Trees"]
