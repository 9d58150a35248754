"""Sparsity: weights that are zero, stored as sparse tensors."""

from graphopt.passes.sparsify.sparsify import Sparsify

__all__ = ["Sparsify"]
