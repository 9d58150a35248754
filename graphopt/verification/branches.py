"""Branch coverage: inputs sought that take each branch of a model, and the branches never taken.

Search-based test generation: an input is tried at the numbers that the conditions are computed
with, and about them; at other sizes; with its truths the other way round. Only what the conditions
need is run.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import InputError
from graphopt.execution.runtime import Arrays, opened
from graphopt.graph.constants import constant_value
from graphopt.graph.traverse import all_nodes
from graphopt.samples import synthetic
from graphopt.samples.inputs import Input, inputs_of
from graphopt.samples.meaning import meaning_of
from graphopt.samples.stream import Feeds
from graphopt.verification.watching import counted, is_if

__all__ = ["Sought", "seek"]

Array = np.ndarray[Any, Any]
#: A branch: the name of its If, and whether it is taken where the condition is true.
Branch = tuple[str, bool]
#: Inputs that are tried, of one input alone and of several at once.
ALONE, TOGETHER = 400, 100
#: Numbers of a condition's constants that are tried, and sizes up to this.
NUMBERS, LONGEST = 24, 512
#: What an input of floats is multiplied by.
FACTORS = (-1.0, 10.0, -10.0, 100.0, -100.0, 1e4, 0.0)


class Sought:
    """Inputs that take branches which the runs before them do not.

    Attributes:
        found: these inputs.
        untaken: branches that nothing takes, as "NODE (then)" or "NODE (else)"; an If inside of an
            operator other than If, Loop and Scan is not watched, and named as such.
    """

    def __init__(self, found: Sequence[Feeds], untaken: Sequence[str]) -> None:
        self.found, self.untaken = list(found), list(untaken)


def seek(
    model: ir.Model,
    runs: Sequence[Feeds],
    shapes: Mapping[str, tuple[int, ...]],
    fits: Callable[[Feeds], bool] = lambda feeds: True,
    seed: int = 0,
) -> Sought:
    """Seek inputs for the branches of Ifs that none of `runs` takes.

    Args:
        model: it is not changed.
        runs: inputs that it is run on anyway.
        shapes: of one run's inputs.
        fits: whether an input is not too expensive to run.
        seed: of what is drawn.
    """
    ifs = [n for n in all_nodes(model.graph) if is_if(n)]
    part, outputs, hidden = counted(model) if ifs else (model, {}, [])
    wanted: set[Branch] = {(name, truth) for name in outputs for truth in (True, False)}
    found: list[Feeds] = []
    if wanted:
        with _watch(part, outputs) as taken:
            for feeds in runs:
                wanted -= taken(feeds)
                if not wanted:
                    break
            for feeds in _candidates(model, part, runs[0], shapes, seed) if runs else ():
                if not wanted:
                    break
                new = wanted & taken(feeds) if fits(feeds) else set()
                if new:
                    wanted -= new
                    found.append(feeds)
    missing = [
        f"{name} ({'then' if truth else 'else'})"
        for name in outputs
        for truth in (True, False)
        if (name, truth) in wanted
    ]
    return Sought(found, missing + [f"{name} (not watched)" for name in hidden])


@contextlib.contextmanager
def _watch(part: ir.Model, outputs: Mapping[str, str]) -> Iterator[Callable[[Arrays], set[Branch]]]:
    """The branches that an input takes; none where the conditions cannot be computed."""
    try:
        with opened(part, optimize=False) as predict:

            def taken(feeds: Arrays) -> set[Branch]:
                try:
                    values = predict(feeds)
                except InputError:
                    return set()
                counts = {name: values[output] for name, output in outputs.items()}
                return {
                    (name, truth)
                    for name, count in counts.items()
                    for truth, times in zip((True, False), count, strict=True)
                    if times
                }

            yield taken
    except InputError:
        yield lambda feeds: set()


# --- what is tried ---------------------------------------------------------------------------


def _candidates(
    model: ir.Model,
    part: ir.Model,
    base: Feeds,
    shapes: Mapping[str, tuple[int, ...]],
    seed: int,
) -> Iterator[Feeds]:
    """Inputs near what the conditions look at: one input changed, other sizes, then several."""
    values = {v.name: v for v in part.graph.inputs}
    read = [i for i in inputs_of(model) if values[i.name].uses() or i.name in _outputs(part)]
    numbers = _numbers(part)
    whole = sorted({int(x) for x in numbers if abs(x) < 2**31 and x == int(x)})
    others: dict[str, list[Array]] = {}
    for one in read:
        high = meaning_of({v.name: v for v in model.graph.inputs}[one.name], model).high
        others[one.name] = list(_variants(base[one.name], numbers, whole, high))
    alone = ({**base, n: x} for n, some in others.items() for x in some)
    yield from itertools.islice(alone, ALONE)
    yield from _resized(model, read, shapes, whole, seed)
    rng = np.random.default_rng(seed)
    for _ in range(TOGETHER if len(others) > 1 else 0):
        yield {**base, **{n: some[rng.integers(len(some))] for n, some in others.items() if some}}


def _outputs(part: ir.Model) -> set[str | None]:
    return {v.name for v in part.graph.outputs}


def _numbers(part: ir.Model) -> list[float]:
    """The numbers that the conditions are computed with, the small constants first."""
    tensors = [constant_value(v) for n in all_nodes(part.graph) for v in n.inputs]
    small = sorted((t for t in tensors if t is not None and t.size <= 64), key=lambda t: t.size)
    arrays = (t.numpy() for t in small)
    flat = (float(x) for a in arrays if a.dtype.kind in "fiu" for x in a.ravel())
    return list(itertools.islice(dict.fromkeys(x for x in flat if np.isfinite(x)), NUMBERS))


def _variants(
    base: Array, numbers: Sequence[float], whole: Sequence[int], high: int | None
) -> Iterator[Array]:
    """Other values of one input, of its shape."""
    kind, shape = base.dtype.kind, base.shape
    if kind == "b":
        yield from (np.full(shape, truth) for truth in (True, False))
        yield ~base
    elif kind in "iu":
        span = np.iinfo(base.dtype)
        tried = dict.fromkeys(k + d for k in (0, 1, *whole) for d in (0, 1, -1))
        top = span.max if high is None else high - 1
        least = span.min if high is None else 0
        for k in tried:
            if max(least, span.min) <= k <= top:
                yield np.full(shape, k, base.dtype)
    elif kind == "f":
        for x in (0.0, 1.0, *numbers):
            for y in dict.fromkeys((x, x + 1, x - 1, x * 1.5, x / 2, -x - 1)):
                with np.errstate(over="ignore"):
                    yield np.full(shape, y).astype(base.dtype)
        with np.errstate(over="ignore"):
            yield from (base * base.dtype.type(k) for k in FACTORS)
        yield from (np.full(shape, x, base.dtype) for x in (np.nan, np.inf))


def _resized(
    model: ir.Model,
    read: Sequence[Input],
    shapes: Mapping[str, tuple[int, ...]],
    whole: Sequence[int],
    seed: int,
) -> Iterator[Feeds]:
    """Inputs drawn at other sizes of each open axis."""
    axes = dict.fromkeys(
        d if isinstance(d, str) else (i.name, k)
        for i in read
        for k, d in enumerate(i.dims or ())
        if not isinstance(d, int)
    )
    sizes = dict.fromkeys(k + d for k in (2, *whole) for d in (0, 1, -1))
    for axis, size in itertools.product(axes, sizes):
        if not 0 < size <= LONGEST:
            continue
        sized = {
            i.name: tuple(
                size if axis in (d, (i.name, k)) else s
                for k, (d, s) in enumerate(zip(i.dims or (), shapes[i.name], strict=True))
            )
            for i in inputs_of(model)
            if i.name in shapes and i.dims is not None
        }
        with contextlib.suppress(InputError):
            yield from synthetic(model, seed=seed, shapes={**shapes, **sized}, runs=1)
