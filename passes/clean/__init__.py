"""Clean: what does nothing, is never used, or is there twice. See passes/README.md."""

from graphopt.passes.clean.clean import Clean

__all__ = ["Clean"]
