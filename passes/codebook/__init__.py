"""Weights as indices into a codebook found by k-means."""

from graphopt.passes.codebook.codebook import Codebook

__all__ = ["Codebook"]
