"""Sparsify: weights set to zero, single ones or n of every m, the others refitted on samples.

    magnitude    |w|
    wanda        |w| sqrt(E[x^2])                       (Sun et al., ICLR 2024)
    admm         of the weights W that are left,  min E|W x - W0 x|^2  over mask and values, by
                 alternating directions with ever more zeros (Boza, TMLR 2024; less error than
                 SparseGPT's one sweep over the columns, Frantar and Alistarh, ICML 2023)

A tensor is stored as a `sparse_initializer` where that is smaller: a nonzero takes its value and an
index of 8 bytes, so less than a third of the weights may be left. Runtimes open it as a dense
tensor and multiply by its zeros: neither time nor memory is saved where there are no sparse
kernels. A pack of the model is smaller for every zero.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir

from graphopt.analyses.linear import Linear, linear_of
from graphopt.calibration.moments import Moments, rows_of
from graphopt.calibration.rounding import DAMP
from graphopt.context import Context
from graphopt.errors import UsageError
from graphopt.execution.staged import Staged
from graphopt.io.tensors import SparseTensor
from graphopt.layers import by_node, pattern_of
from graphopt.pass_ import Pass

__all__ = ["Sparsify", "masked", "refitted"]

Array = np.ndarray[Any, Any]
Score = Literal["auto", "magnitude", "wanda", "admm"]

#: Smaller tensors stay as they are.
SMALLEST = 1 << 10
#: Samples and rows of one run that moments are taken of, and the longest row refitted.
RUNS, ROWS, LONGEST = 32, 2048, 4608
#: Alternating directions: rounds, rounds in which zeros become more, and the penalty, relative to
#: weights in units in which all inputs are of size 1.
ROUNDS, GROWING, RHO = 40, 27, 0.3
#: A share below this is not tried where a larger one cost too much.
LEAST = 0.1


@dataclass(frozen=True)
class Sparsify(Pass):
    """Set weights of products and convolutions to zero.

    Zeros stay zero in `distill`, and every zero makes a pack smaller. The file is smaller where few
    weights are left; without sparse kernels nothing gets faster.

    Attributes:
        ratio: share of every layer's weights to set to zero, in [0, 1); 0 sets none and stores
            sparse what already is.
        pattern: "" for zeros anywhere, or "n:m", as "2:4": of every m weights along the inputs at
            most n are left, and `ratio` does not count.
        score: which weights go: "magnitude", "wanda", or "admm", which refits the others; the
            last two need samples. "auto" is "admm" with samples, else "magnitude".
        layers: (pattern, share) pairs (`graphopt.layers`): nodes whose name matches lose that share
            instead (0: none); the first match counts.
    """

    ratio: float = 0.5
    pattern: str = ""
    score: Score = "auto"
    layers: tuple[tuple[str, float], ...] = ()

    lossy: ClassVar[bool] = True
    speeds_up: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for share in (self.ratio, *(s for _, s in self.layers)):
            if not 0 <= share < 1:
                raise ValueError(f"a share is in [0, 1), not {share}")
        if self.score not in ("auto", "magnitude", "wanda", "admm"):
            raise ValueError(f"score is auto, magnitude, wanda or admm, not {self.score}")
        if self.pattern:
            kept, of = _numbers(self.pattern)
            if not 0 < kept < of:
                raise ValueError(f"pattern is n:m with 0 < n < m, not {self.pattern}")

    def weaker(self) -> Sparsify | None:
        """Half the share, as long as that is worth it; a pattern has no weaker one."""
        half = round(self.ratio / 2, 3)
        return replace(self, ratio=half) if half >= LEAST and not self.pattern else None

    def choices(self, model: ir.Model, ctx: Context) -> dict[str, tuple[float, ...]]:
        """Shares that each layer may lose."""
        return {pattern_of(op.node): (0.3, 0.5, 0.7, 0.8, 0.9) for op in _layers(model)}

    def only(self, layers: tuple[tuple[str, float], ...], others: Sequence[str] = ()) -> Sparsify:
        """Sets weights of these layers to zero, and of no other."""
        return replace(self, ratio=0.0, pattern="", layers=layers)

    def run(self, model: ir.Model, ctx: Context) -> int:
        """Replace weights in place; returns how many tensors changed or are stored otherwise."""
        real = ctx.samples is not None and not ctx.samples.synthetic
        score = self.score
        if score == "auto":
            score = "admm" if real else "magnitude"
        elif score != "magnitude" and not real:
            raise UsageError(f"sparsify(score='{score}') needs samples: give --samples")
        given = by_node(self.layers, model.graph, "sparsify")
        layers = _layers(model)
        shares = [given.get(op.node, self.ratio) for op in layers]
        wanted = [
            op for op, s in zip(layers, shares, strict=True) if s > 0 or self._fixed(op, given)
        ]
        moments = (
            _moments(model, ctx, wanted) if score != "magnitude" else iter([None] * len(wanted))
        )
        found = sparse = 0
        for op, share in ctx.track(zip(layers, shares, strict=True), len(layers), "setting zeros"):
            second = next(moments) if op in wanted else None
            array = op.array()
            made = self._made(op, share, score, second) if op in wanted else array
            smaller = SparseTensor.of(made, op.weight.name or "")
            held = op.weight.const_value
            if (made is array and (smaller is None or isinstance(held, SparseTensor))) or not (
                ctx.edit(self, op.node)
            ):
                continue
            op.weight.const_value = smaller or ir.Tensor(
                np.ascontiguousarray(made, np.float32), name=op.weight.name
            )
            found, sparse = found + 1, sparse + (smaller is not None)
        if not found:
            return ctx.nothing("no layer has weights to set to zero")
        ctx.note(
            f"{sparse} of {found} tensors are stored sparse, where that is smaller. "
            f"{ctx.target.name} multiplies by zeros as by other numbers: no time is saved."
        )
        return found

    def _fixed(self, op: Linear, given: dict[ir.Node, float]) -> bool:
        """Whether the pattern is what says how many weights go."""
        return bool(self.pattern) and op.node not in given

    def _made(self, op: Linear, share: float, score: Score, second: Array | None) -> Array:
        """The weight with its zeros, as it is stored."""
        (w,) = op.matrix()
        order = _inputs_last(op)
        kept, of = _numbers(self.pattern) if self.pattern else (0, 0)
        columns = np.ascontiguousarray(w[:, order], np.float64)
        h = None if second is None else second[np.ix_(order, order)]
        if h is None or len(h) > LONGEST or score == "wanda":
            scale = 1.0 if h is None else np.sqrt(np.diag(h))
            made = np.where(masked(np.abs(columns) * scale, share, kept, of), 0, columns)
        else:
            made = refitted(columns, h, share, kept, of)
        back = np.empty_like(made)
        back[:, order] = made
        stored: Array = op.stored(back[None]).astype(np.float32)
        return stored


def _numbers(pattern: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+):(\d+)", pattern)
    if match is None:
        raise ValueError(f"pattern is n:m, as 2:4, not {pattern}")
    return int(match[1]), int(match[2])


def _layers(model: ir.Model) -> list[Linear]:
    """The products and convolutions whose float32 weight is theirs alone."""
    found = []
    for node in model.graph:
        op = linear_of(node)
        if isinstance(op, str) or op.data != 0 or op.groups != 1 or op.stacked or op.left:
            continue
        value, tensor = op.weight, op.weight.const_value
        held = value.is_initializer() and not value.is_graph_input() and not op.shared
        if not held or tensor is None or tensor.dtype != ir.DataType.FLOAT:
            continue
        if tensor.size >= SMALLEST and np.isfinite(tensor.numpy()).all():
            found.append(op)
    return found


def _inputs_last(op: Linear) -> Array:
    """The columns of `op.matrix()` with the inputs of one tap of a kernel side by side."""
    taps = int(np.prod(op.kernel)) if op.kernel else 1
    columns = op.matrix().shape[2]
    order: Array = np.arange(columns).reshape(-1, taps).T.reshape(-1)
    return order


def masked(scores: Array, share: float, kept: int, of: int) -> Array:
    """Which of scores [o, k] go: the least `share` of all, or all but `kept` of every `of`."""
    if not of:
        count = round(share * scores.size)
        gone = np.zeros(scores.size, bool)
        gone[np.argsort(scores, axis=None, kind="stable")[:count]] = True
        return gone.reshape(scores.shape)
    filled = np.pad(scores, ((0, 0), (0, -scores.shape[1] % of)), constant_values=-1)
    groups = filled.reshape(len(scores), -1, of)
    rank = np.argsort(np.argsort(-groups, axis=2, kind="stable"), axis=2, kind="stable")
    return np.asarray((rank >= kept).reshape(len(scores), -1)[:, : scores.shape[1]])


def refitted(w: Array, h: Array, share: float, kept: int, of: int) -> Array:
    """w [o, k] with zeros and the others refitted for h = E[x x^T] [k, k], float32."""
    scale = np.sqrt(np.diag(h) + 1e-12)
    h = h / np.outer(scale, scale) + DAMP * np.eye(len(h))
    inverse = np.linalg.inv(h + RHO * np.eye(len(h))).astype(np.float32)
    free = (w * scale).astype(np.float32)
    pull = free @ h.astype(np.float32)
    duals = np.zeros_like(free)
    gone = np.zeros(w.shape, bool)
    for k in range(ROUNDS):
        if k < GROWING:  # ever more zeros, so that the others can take over meanwhile
            part = share * (1 - (1 - (k + 1) / GROWING) ** 3)
            gone = masked(np.abs(free + duals), part, kept, of)
        zeroed = np.where(gone, 0, free + duals)
        duals += free - zeroed
        free = (pull + np.float32(RHO) * (zeroed - duals)) @ inverse
    made: Array = np.where(gone, 0, free) / scale
    return made


def _moments(model: ir.Model, ctx: Context, wanted: Sequence[Linear]) -> Iterator[Array | None]:
    """E[x x^T] of what each of `wanted` multiplies; None where it is not finite."""
    assert ctx.samples is not None
    rng = np.random.default_rng(ctx.seed)
    with Staged(model.clone(), islice(ctx.samples, RUNS), carried=True) as seen:
        values = {v.name: v for v in seen.model.graph.inputs}
        values.update({o.name: o for n in seen.model.graph for o in n.outputs})
        read = [values[op.x.name] for op in wanted]
        for k, op in enumerate(wanted):
            moments: Moments | None = None
            for (x,) in seen.values([read[k]]):
                rows = rows_of(op, x, ROWS, rng)
                moments = moments or Moments.zero(1, rows.shape[1])
                moments.add(rows[None])
            seen.forget(read[k + 1 :])
            second = None if moments is None else moments.second[0]
            yield second if second is not None and np.isfinite(second).all() else None
