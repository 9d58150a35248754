"""Fuse: rewrites that leave fewer, larger operators and the same outputs. See passes/README.md."""

from graphopt.passes.fuse.fuse import Fuse

__all__ = ["Fuse"]
