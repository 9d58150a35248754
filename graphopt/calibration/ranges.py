"""Activation ranges on samples (minmax, percentile, entropy, MSE), streamed.

Memory does not grow with the number of samples: what is kept per value is a few numbers or one
histogram of fixed size. Values are observed in groups whose arrays together stay below
`GROUP_BYTES`, and batches are cut up where one run would hold more, so that a large model's
activations are never all alive at once. One pass over the samples per group.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from graphopt.analyses.shapes.analysis import bound_shapes
from graphopt.cache import Cache
from graphopt.calibration.histogram import Histogram
from graphopt.calibration.resume import Progress
from graphopt.execution.observe import observe
from graphopt.samples.rows import cut, free_rows

__all__ = ["METHODS", "Method", "Observed", "Range", "calibrate", "calibrate_folds", "groups"]

#: Arrays of this many bytes may be alive at once while observing.
GROUP_BYTES = 192 << 20
#: Shares of the largest magnitude that "auto" tries too.
TRIED = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.85)
#: Weight of a new run in the moving average.
MOMENTUM = 0.1

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]
Method = Literal["minmax", "average", "percentile", "entropy", "mse", "auto"]
_BINNED = ("percentile", "entropy", "mse", "auto")
METHODS: tuple[Method, ...] = ("minmax", "average", "percentile", "entropy", "mse", "auto")


@dataclasses.dataclass(frozen=True)
class Range:
    """The closed interval [lo, hi] that a value is represented in."""

    lo: float
    hi: float

    def join(self, other: Range) -> Range:
        """The smallest range that holds both."""
        return Range(min(self.lo, other.lo), max(self.hi, other.hi))


@dataclasses.dataclass
class Observed:
    """What was seen of one value.

    Attributes:
        lo, hi: least and greatest finite value.
        range: the interval the method chose.
        rms: root of the mean square.
        held: the largest magnitude in every fifth run over that in the others; 0 where there are
            fewer than five runs.
        candidates: with "auto" what each method chooses, to be judged by who rounds the value.
    """

    lo: float
    hi: float
    range: Range
    rms: float
    held: float = 0.0
    candidates: tuple[Range, ...] = ()

    @property
    def reach(self) -> float:
        """How far the largest magnitude lies above the usual one."""
        return max(-self.lo, self.hi) / self.rms if self.rms > 0 else 1.0


def calibrate(
    model: ir.Model,
    names: Iterable[str],
    samples: Iterable[Feeds],
    method: Method = "minmax",
    *,
    cache: Cache | None = None,
) -> dict[str, Observed | None]:
    """What each named value was seen to be; None where it was never finite, or empty.

    NaN and Inf are left out: a masked score of minus infinity is no magnitude to represent.

    Args:
        model: the model; it is not changed.
        names: values of its main graph.
        samples: feeds; they are gone through once per group of values.
        method: "minmax": all that was seen. "average": least and greatest of a run, in the moving
            average. "percentile": all but the outermost 1e-5. "entropy": the clipping that keeps
            the distribution of the integers closest to that of the values (Kullback-Leibler;
            Migacz, GTC 2017). "mse": the clipping with the least squared error. "auto": all that
            was seen, with the other methods' choices as `candidates`.
        cache: where one that was killed goes on (`graphopt.calibration.resume`); None: nowhere.
    """
    return calibrate_folds(model, names, samples, 0, method, cache=cache)[0]


def calibrate_folds(
    model: ir.Model,
    names: Iterable[str],
    samples: Iterable[Feeds],
    folds: int,
    method: Method = "minmax",
    *,
    cache: Cache | None = None,
) -> list[dict[str, Observed | None]]:
    """`calibrate` on all the samples, then without every `folds`-th from the k-th on, k rising.

    The samples are gone through as often as for one of them.
    """
    wanted = list(dict.fromkeys(names))
    first = next(iter(samples), None) if wanted else None
    if first is None:
        return [dict.fromkeys(wanted) for _ in range(folds + 1)]
    parts, rows = groups(model, wanted, first)
    found: list[dict[str, Observed | None]] = [{} for _ in range(folds + 1)]
    for group in parts:
        sums = {name: [_Sums(method) for _ in range(folds + 1)] for name in group}
        state = Progress(cache, model, repr((method, folds, rows, group)))
        figures = [array for some in sums.values() for s in some for array in s.state]
        runs = state.resumed(lambda: iter(samples), figures)
        numbers: deque[int] = deque()

        def pieces(
            runs: Iterator[Feeds] = runs, state: Progress = state, numbers: deque[int] = numbers
        ) -> Iterator[Feeds]:
            for feed in runs:
                for piece in cut([feed], rows):
                    numbers.append(state.done)
                    yield piece

        for arrays in observe(model, group, pieces()):
            number = numbers.popleft()
            for name, array in arrays.items():
                run = _Run.of(array, method)
                for k, s in enumerate(sums[name]):
                    if run is not None and (k == 0 or number % folds != k - 1):
                        s.add(run)
        for k, one in enumerate(found):
            one.update((name, some[k].result()) for name, some in sums.items())
        state.close()
    return found


#: Running figures of one value, as they stand in its state.
LO, HI, AVERAGE_LO, AVERAGE_HI, COUNT, SQUARE, RUNS, PEAK, HELD_PEAK = range(9)
#: Every so many runs one is held out, to see whether the ranges of the others hold on it.
HELD_OUT = 5


@dataclasses.dataclass
class _Run:
    """The finite part of one value in one run: its ends, size, sum of squares, and histogram."""

    lo: float
    hi: float
    size: int
    square: float
    histogram: Histogram | None

    @classmethod
    def of(cls, array: Array, method: Method) -> _Run | None:
        """None if there is none; the histogram for methods that need one."""
        if array.dtype.kind != "f" or array.size == 0:
            return None
        flat = array.reshape(-1)
        lo, hi = float(flat.min()), float(flat.max())
        if not (math.isfinite(lo) and math.isfinite(hi)):
            flat = flat[np.isfinite(flat)]
            if flat.size == 0:
                return None
            lo, hi = float(flat.min()), float(flat.max())
        square = (
            float(np.dot(flat, flat))
            if flat.dtype == np.float32 and max(-lo, hi) < 1e15  # masks reach -3.4e38
            else float(np.square(flat, dtype=np.float64).sum())
        )
        histogram = Histogram() if method in _BINNED else None
        if histogram is not None:
            histogram.add(flat)
        return cls(lo, hi, flat.size, square, histogram)


class _Sums:
    """What was seen of one value so far.

    Attributes:
        figures: the running figures named above, float64.
        histogram: of the values, for methods that need one.
    """

    def __init__(self, method: Method) -> None:
        self.method = method
        self.figures = np.array([math.inf, -math.inf, math.nan, math.nan, 0, 0, 0, 0, 0])
        self.histogram = Histogram() if method in _BINNED else None

    @property
    def state(self) -> list[Array]:
        """All of it, as arrays."""
        return [self.figures, *([self.histogram.counts] if self.histogram is not None else [])]

    def add(self, run: _Run) -> None:
        """Add one run."""
        known = self.figures
        known[LO], known[HI] = min(known[LO], run.lo), max(known[HI], run.hi)
        for k, end in ((AVERAGE_LO, run.lo), (AVERAGE_HI, run.hi)):
            old = known[k] if known[COUNT] else end
            known[k] = old + MOMENTUM * (end - old)
        known[COUNT] += run.size
        known[RUNS] += 1
        peak = HELD_PEAK if known[RUNS] % HELD_OUT == 0 else PEAK
        known[peak] = max(known[peak], -run.lo, run.hi)
        known[SQUARE] += run.square
        if self.histogram is not None and run.histogram is not None:
            self.histogram.counts += run.histogram.counts

    def result(self) -> Observed | None:
        """The figures, or None if nothing finite was seen."""
        lo, hi, *average, count, square, _, peak, held_peak = self.figures.tolist()
        if not count:
            return None
        seen = Range(lo, hi)
        rms = math.sqrt(square / count)
        held = held_peak / peak if peak > 0 else 0.0
        if self.method == "auto":
            others = [self._clipped(m, seen) for m in ("percentile", "entropy", "mse")]
            reach = max(-lo, hi)
            parts = [Range(max(lo, -reach * f), min(hi, reach * f)) for f in TRIED]
            candidates = tuple(dict.fromkeys((seen, Range(*average), *others, *parts)))
            return Observed(lo, hi, seen, rms, held, candidates)
        chosen = seen
        if self.method == "average":
            chosen = Range(*average)
        elif self.histogram is not None:
            chosen = self._clipped(self.method, seen)
        return Observed(lo, hi, chosen, rms, held)

    def _clipped(self, method: str, seen: Range) -> Range:
        assert self.histogram is not None
        lo, hi = self.histogram.clip(method)
        return Range(max(lo, seen.lo), min(hi, seen.hi))


def groups(
    model: ir.Model, names: Sequence[str], feed: Feeds, limit: int | None = None
) -> tuple[list[list[str]], int]:
    """`names` in groups whose arrays stay below `limit` bytes, and how many rows to run at once
    (0: as they come).

    Sizes are those of the first feed's shapes; a value of unknown shape counts as the largest known
    one. Rows are fewer than the feed's only if every input has a free first axis of its length.
    """
    limit = GROUP_BYTES if limit is None else limit
    shapes = bound_shapes(model, {k: v.shape for k, v in feed.items()})
    values = {v.name: v for v in (*model.graph.inputs, *model.graph.initializers.values())}
    values.update({o.name: o for node in model.graph for o in node.outputs})
    known = {}
    for name in names:
        static = shapes.static(values[name])
        known[name] = None if static is None else 4 * math.prod(static)
    largest = max((s for s in known.values() if s is not None), default=limit // 16)
    sizes = {name: largest if size is None else size for name, size in known.items()}
    rows = free_rows(model, feed)
    share = 1.0
    if rows > 1 and sum(sizes.values()) > limit:
        kept = max(1, int(rows * limit / sum(sizes.values())))
        share, rows = kept / rows, kept
    else:
        rows = 0
    out: list[list[str]] = []
    used = math.inf
    for name in names:
        size = share * sizes[name]
        if used + size > limit:
            out.append([])
            used = 0
        out[-1].append(name)
        used += size
    return out, rows
