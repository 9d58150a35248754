"""Models in and out: mapped reading, streamed writing, raising the opset.

`raise_opset` lives in `graphopt.io.opset`, as it needs more of graphopt than reading does.
"""

from graphopt.io.reading import Source, examples_of, load, source_of
from graphopt.io.weights import warnings_of
from graphopt.io.writing import save, size_of, skeleton_of

__all__ = [
    "Source",
    "examples_of",
    "load",
    "save",
    "size_of",
    "skeleton_of",
    "source_of",
    "warnings_of",
]
