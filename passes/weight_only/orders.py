"""Orders to round in: what each product reads on samples, as the calibration of its rounding.

Columns are rounded in turn, each for what the samples multiply it by (Frantar et al., GPTQ, ICLR
2023). Samples go through the model once, stage by stage, and what a product reads is there when its
weight's turn comes.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from itertools import compress, islice
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.weight_only.blocks import Form, order_of
from graphopt.passes.weight_only.finished import SHARE, Finished
from graphopt.passes.weight_only.writer import Asked

from graphopt.analyses.linear import Linear
from graphopt.calibration.moments import Moments, rows_of
from graphopt.calibration.rounding import Order
from graphopt.context import Context
from graphopt.execution.staged import Staged
from graphopt.samples.rows import cut, free_rows
from graphopt.samples.stream import Feeds

__all__ = ["RUNS", "orders_of"]

Array = np.ndarray[Any, Any]
#: Rows of what a product reads, found where they are asked for.
Rows = Callable[[], Array] | None

#: Runs of samples and rows of all that moments are taken of.
RUNS, ROWS = 16, 1 << 15
#: Tokens that go through the model at a time.
TOKENS = 1024
#: The longest row rounded for them: its moment takes 1.2 GB, and as much to factorize.
LONGEST = 12288
#: Rows that accuracy levels are compared on.
SEEN = 64


def orders_of(
    model: ir.Model,
    ctx: Context,
    wanted: Sequence[Linear],
    forms: Mapping[ir.Node, Form],
    finished: Finished,
) -> Generator[tuple[Asked, Rows], None, None]:
    """For each of `wanted` what gives the order to round its weight in, and what it reads.

    Both are known from real samples alone, and found out where they are asked for. What leads only
    to products that an earlier run has finished is not run again.
    """
    if ctx.samples is None or ctx.samples.synthetic:
        yield from [(None, None)] * len(wanted)
        return
    open_ = [finished.known(str(op.y.name), [SHARE]) is None for op in wanted]
    runs, folder = _pieces(ctx.model, islice(ctx.samples, RUNS)), finished.values
    with Staged(model.clone(), runs, carried=True, folder=folder) as seen:
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
            later = list(compress(read[k + 1 :], open_[k + 1 :]))
            if seen.leads_to(value, later):
                next(seen.values([value]), None)
            seen.forget(later)


def _pieces(model: ir.Model, samples: Iterable[Feeds]) -> Iterator[Feeds]:
    """The runs, long ones in parts: all that a block computes of one is in memory at a time."""
    for feed in samples:
        ids = (a.shape[1] for a in feed.values() if a.ndim == 2 and a.dtype.kind in "iu")
        rows = max(1, TOKENS // max([*ids, 1])) if free_rows(model, feed) else 0
        yield from cut([feed], rows)


def _moment(seen: Staged, op: Linear, value: ir.Value, seed: int) -> Array | None:
    """E[x x^T] over rows x of what `op` reads on samples; None if a row is not finite."""
    moments = Moments.zero(1, op.in_channels)
    rng = np.random.default_rng(seed)
    for (x,) in seen.values([value]):
        moments.add(rows_of(op, x, ROWS // seen.runs, rng)[None])
    (second,) = moments.second
    return second if np.isfinite(second).all() else None
