"""Orders to round in: what each product reads on samples, as the calibration of its rounding.

Columns are rounded in turn, each for what the samples multiply it by (Frantar et al., GPTQ, ICLR
2023). Samples go through the model once, stage by stage, and what a product reads is there when its
weight's turn comes.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.weight_only.blocks import Form, order_of
from graphopt.passes.weight_only.writer import Asked

from graphopt.analyses.linear import Linear
from graphopt.calibration.moments import Moments, rows_of
from graphopt.calibration.rounding import Order
from graphopt.context import Context
from graphopt.execution.staged import Staged

__all__ = ["RUNS", "orders_of"]

Array = np.ndarray[Any, Any]
#: Rows of what a product reads, found where they are asked for.
Rows = Callable[[], Array] | None

#: Samples and rows of one run that moments are taken of, and the longest row rounded for them.
RUNS, ROWS, LONGEST = 16, 2048, 4096
#: Rows that accuracy levels are compared on.
SEEN = 64


def orders_of(
    model: ir.Model,
    ctx: Context,
    wanted: Sequence[Linear],
    forms: Mapping[ir.Node, Form],
) -> Generator[tuple[Asked, Rows], None, None]:
    """For each of `wanted` what gives the order to round its weight in, and what it reads.

    Both are known from real samples alone, and found out where they are asked for.
    """
    if ctx.samples is None or ctx.samples.synthetic:
        yield from [(None, None)] * len(wanted)
        return
    with Staged(model.clone(), islice(ctx.samples, RUNS)) as seen:
        values = {v.name: v for v in seen.model.graph.inputs}
        values.update({o.name: o for n in seen.model.graph for o in n.outputs})
        read = [values[op.x.name] for op in wanted]
        order: Order | None = None
        last: tuple[ir.Value, int] | None = None
        for k, (value, op) in enumerate(zip(read, wanted, strict=True)):

            def asked(value: ir.Value = value, op: Linear = op) -> Order | None:
                nonlocal order, last
                block = forms[op.node].size
                if last != (value, block):  # Q, K and V read the same
                    short = op.in_channels <= LONGEST
                    h = _moment(seen, op, value, ctx.seed) if short else None
                    order = None if h is None else order_of(h, block)
                    last = value, block
                return order

            def rows(value: ir.Value = value, op: Linear = op) -> Array:
                (x,) = next(seen.values([value]))
                return rows_of(op, x, SEEN, np.random.default_rng(ctx.seed))

            yield asked, rows
            if last is None or value is not last[0]:  # later ones start from here
                next(seen.values([value]), None)
            seen.forget(read[k + 1 :])


def _moment(seen: Staged, op: Linear, value: ir.Value, seed: int) -> Array | None:
    """E[x x^T] over rows x of what `op` reads on samples; None if a row is not finite."""
    moments = Moments.zero(1, op.in_channels)
    rng = np.random.default_rng(seed)
    for (x,) in seen.values([value]):
        moments.add(rows_of(op, x, ROWS, rng)[None])
    (second,) = moments.second
    return second if np.isfinite(second).all() else None
