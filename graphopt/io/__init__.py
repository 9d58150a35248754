"""Models in and out: mapped reading, streamed writing."""

from graphopt.io.reading import Source, load, source_of
from graphopt.io.writing import save, size_of, skeleton_of

__all__ = ["Source", "load", "save", "size_of", "skeleton_of", "source_of"]
