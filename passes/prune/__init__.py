"""Prune: remove the channels, heads and hidden units that matter least, wherever they occur."""

from graphopt.passes.prune.prune import Prune

__all__ = ["Prune"]
