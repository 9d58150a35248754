"""Batch size of tree ensembles by throughput: how many rows a run should take, by measurement.

A run of ONNX Runtime costs microseconds whatever it computes, and trees take a second thread for
many rows alone: one row at a time gives a fraction of the rows a second that hundreds give. Every
size is timed in a process of its own, in turns, on rows that differ from run to run: of few rows
that come again and again a processor learns all branches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack

import numpy as np
import onnx_ir as ir

from graphopt.backend import Timing
from graphopt.graph.ensembles import DOMAIN, ENSEMBLES
from graphopt.measuring.statistics import Array, compare_times, verdict
from graphopt.measuring.worker import Served, alternate

__all__ = ["MOST", "best_batch", "reads_rows"]

#: Sizes that are tried, at most; and milliseconds that one run may take.
SIZES, LONGEST = (1, 4, 16, 64, 256, 1024, 4096), 100.0
MOST = SIZES[-1]
#: The size that tells how long a row takes.
FIRST = 16


def reads_rows(model: ir.Model) -> bool:
    """Whether trees are in it, and every input and output has a free number of rows."""
    if not any(n.domain == DOMAIN and n.op_type in ENSEMBLES for n in model.graph.all_nodes()):
        return False
    values = [
        *(v for v in model.graph.inputs if v.name not in model.graph.initializers),
        *model.graph.outputs,
    ]
    return all(v.shape is not None and v.shape and not isinstance(v.shape[0], int) for v in values)


def best_batch(
    opened: Callable[[int], AbstractContextManager[Served]], seconds: float
) -> tuple[int, Timing] | None:
    """The fewest rows of a run that give the most rows a second, beside one row at a time.

    Args:
        opened: the model in a process of its own, that takes so many rows a run.
        seconds: bound on the timed part.

    Returns:
        Rows, and milliseconds for each row alone (`a`) and among so many (`b`); None where one at
        a time is as good, or the machine is too noisy to tell.
    """
    with ExitStack() as stack:
        first = stack.enter_context(opened(FIRST))
        row = float(np.median(first.burst())) / FIRST
        sizes = [n for n in SIZES if n <= FIRST or n * row <= LONGEST]
        models = [first if n == FIRST else stack.enter_context(opened(n)) for n in sizes]
        times, _ = alternate(models, seconds)
    return _fewest(times / np.array([*sizes, sizes[0]]), sizes)


def _fewest(each: Array, sizes: Sequence[int]) -> tuple[int, Timing] | None:
    """Of milliseconds for each row, one column a size, the first again at the end."""
    again = each[:, -1]
    beside = [compare_times(each[:, 0], each[:, k], again) for k in range(len(sizes))]
    top = min(range(len(sizes)), key=lambda k: beside[k].ratio)
    if verdict(beside[top]) != "faster":
        return None
    for k in range(top):
        noise = again / each[:, 0]  # of the first size against itself
        timing = compare_times(each[:, top], each[:, k], each[:, top] * noise)
        if verdict(timing) == "same":
            return (sizes[k], beside[k]) if k else None
    return sizes[top], beside[top]
