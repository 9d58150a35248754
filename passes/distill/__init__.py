"""Distill: train what is left of a model until its outputs are those of the original again."""

from graphopt.passes.distill.distill import Distill

__all__ = ["Distill"]
