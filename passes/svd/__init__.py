"""Svd: write layers as two or three thinner ones where that is cheaper on the target."""

from graphopt.passes.svd.svd import Svd

__all__ = ["Svd"]
