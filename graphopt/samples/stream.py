"""Arrays of samples cut into runs of a model: by its batch axis, checked against its inputs."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from graphopt.errors import SamplesError
from graphopt.samples.inputs import Input

__all__ = ["Feeds", "Samples", "fit"]

logger = logging.getLogger("graphopt")

Array = np.ndarray[Any, Any]
#: One run's inputs: arrays by input name.
Feeds = dict[str, Array]


class Samples:
    """Feeds for a model's inputs, one dict of arrays per run; iterate as often as needed.

    Attributes:
        source: where they come from, as shown to the user.
        synthetic: True if they were drawn at random for want of real ones.
        placeholders: True if their shapes alone matter, since the result is only timed or sized:
            no better ones are invented in their place.
        runs: how many there are; 0 until they were read once to the end.
    """

    def __init__(
        self,
        feeds: Iterable[Feeds],
        source: str = "",
        synthetic: bool = False,
        *,
        placeholders: bool = False,
    ) -> None:
        self._feeds, self.source, self.synthetic = feeds, source, synthetic
        self.placeholders = placeholders
        self.runs = 0

    def __iter__(self) -> Iterator[Feeds]:
        count = 0
        for feed in self._feeds:
            yield feed
            count += 1
        self.runs = count

    def without(self, part: int, of: int) -> Samples:
        """The same without every `of`-th run, from run `part` on."""
        return self._of(_Without(self, part, of))

    def watched(self, told: Callable[[int, int], None]) -> Samples:
        """The same, which tell before each run how many came before it, and how many there are."""
        return self._of(_Watched(self, told))

    def _of(self, feeds: Iterable[Feeds]) -> Samples:
        return Samples(feeds, self.source, self.synthetic, placeholders=self.placeholders)

    def __repr__(self) -> str:
        return f"<Samples {'drawn at random' if self.synthetic else f'from {self.source}'}>"

    def digest(self) -> str:
        """SHA-256 of every array with its name, type and shape, in order."""
        seen = hashlib.sha256()
        for feed in self:
            for name in sorted(feed):
                array = np.ascontiguousarray(feed[name])
                seen.update(f"{name}|{array.dtype}|{array.shape}|".encode())
                if array.dtype.kind == "O":
                    seen.update(repr(array.tolist()).encode())
                else:
                    seen.update(array.reshape(-1).view(np.uint8).data)
        return seen.hexdigest()


@dataclasses.dataclass(frozen=True)
class _Without:
    """Samples without every so many."""

    samples: Samples
    part: int
    of: int

    def __iter__(self) -> Iterator[Feeds]:
        return (f for k, f in enumerate(self.samples) if k % self.of != self.part)


class _Watched:
    """Samples that tell how far they were read."""

    def __init__(self, samples: Samples, told: Callable[[int, int], None]) -> None:
        self._samples, self._told = samples, told

    def __iter__(self) -> Iterator[Feeds]:
        for done, feed in enumerate(self._samples):
            self._told(done, self._samples.runs)
            yield feed


def fit(
    items: Iterable[object],
    inputs: list[Input],
    where: str,
    *,
    batch: int,
    count: int | None = None,
) -> Iterator[Feeds]:
    """Runs of the model from items that hold one sample, one batch or many samples each.

    Args:
        items: mappings of arrays by input name (or `in:` and the name), or one array for a model
            with one input. An array has the input's shape, more along its batch axis, one further
            leading axis over samples, or lacks the batch axis.
        inputs: what the model takes.
        where: named in errors.
        batch: most samples in one run where the model takes any number.
        count: stop after this many samples (None: all).

    Raises:
        SamplesError: names the input, what it takes and what was found.
    """
    left = count
    rest: Feeds = {}
    for k, item in enumerate(items):
        arrays = _named(item, inputs, where, k)
        if rest:
            arrays = {
                n: np.concatenate([rest[n], a]) if n in rest else a for n, a in arrays.items()
            }
        runs, rest = _split(arrays, inputs, where, batch)
        for feed, rows in runs:
            if left is not None and left <= 0:
                return
            if left is not None and rows > left and all(i.batch is None for i in inputs):
                feed, rows = {n: a[:left] for n, a in feed.items()}, left
            yield {n: _finite(n, np.asarray(a, order="C"), where, k) for n, a in feed.items()}
            left = None if left is None else left - rows
    if rest:
        size = len(next(iter(rest.values())))
        logger.info("%s: the last %d samples do not fill a batch and were left out", where, size)


def _named(item: object, inputs: list[Input], where: str, k: int) -> Feeds:
    """The item's arrays by input name, of the right type and shape but for the leading axis."""
    if not isinstance(item, Mapping):
        if len(inputs) != 1 or isinstance(item, (tuple, list)):
            names = ", ".join(i.name for i in inputs)
            raise SamplesError(
                f"{where}, sample {k}: {type(item).__name__} found; "
                f"give a dict of arrays named {names}"
            )
        item = {inputs[0].name: item}
    found = {}
    for one in inputs:
        keys = [n for n in (one.name, f"in:{one.name}") if n in item]
        if not keys and len(inputs) == 1 and "arr_0" in item:
            keys = ["arr_0"]
        if not keys:
            from graphopt.errors import nearest

            have = [str(n) for n in item if not str(n).startswith("out:")]
            raise SamplesError(
                f"{where}, sample {k}: there is no array for input '{one.name}'"
                f"{nearest(one.name, have)}. It holds: {', '.join(have) or 'nothing'}"
            )
        found[one.name] = _checked(np.asarray(item[keys[0]]), one, f"{where}, sample {k}")
    return found


def _checked(array: Array, one: Input, where: str) -> Array:
    if array.dtype.kind in "US" and one.dtype.kind == "O":
        array = array.astype(object)
    if array.dtype.kind == "V" and array.dtype.itemsize == one.dtype.itemsize:
        array = array.view(one.dtype)  # .npz knows no bfloat16 and its like
    found = f"{array.dtype}[{', '.join(map(str, array.shape))}]"
    if array.dtype != one.dtype:
        raise SamplesError(
            f"{where}: input '{one.name}' takes {one}, the samples hold {found}: "
            f"convert them, for example with .astype('{one.dtype}')"
        )
    if one.dims is None:
        return array
    rank = len(one.dims)
    if array.ndim == rank - 1 and one.axis is not None:
        size = one.dims[one.axis]
        if one.axis == 0 or size == 1 or not isinstance(size, int):  # gathered into batches
            array = np.expand_dims(array, one.axis)
    fixed = array.ndim > rank or one.batch == 0
    body = array.shape[array.ndim - rank :]
    fits = array.ndim in (rank, rank + 1) and all(
        not isinstance(want, int) or want == have
        for axis, (want, have) in enumerate(zip(one.dims, body, strict=False))
        if axis > 0 or fixed
    )
    if not fits:
        raise SamplesError(f"{where}: input '{one.name}' takes {one}, the samples hold {found}")
    return array


def _split(
    arrays: Feeds, inputs: list[Input], where: str, batch: int
) -> tuple[list[tuple[Feeds, int]], Feeds]:
    """Runs with the number of samples in each, and samples too few to fill a fixed batch."""
    stacked = {
        i.name: len(arrays[i.name])
        for i in inputs
        if i.dims is not None and arrays[i.name].ndim > len(i.dims)
    }
    if stacked:
        _agree(stacked, where)
        n = next(iter(stacked.values()))
        beside = {
            i.name
            for i in inputs
            if i.name not in stacked and i.batch not in (0, n) and len(arrays[i.name]) == n
        }
        return [
            (
                {
                    k: a[r] if k in stacked else a[r : r + 1] if k in beside else a
                    for k, a in arrays.items()
                },
                1,
            )
            for r in range(n)
        ], {}
    fits = all(i.takes(arrays[i.name]) for i in inputs)
    along = [i for i in inputs if i.dims and i.batch != 0]
    if not along or (fits and any(i.axis for i in inputs)):
        return [(arrays, 1)], {}
    rows = {i.name: len(arrays[i.name]) for i in along}
    parameters = {i.name for i in along if i.batch == rows[i.name] and len(i.dims or ()) < 2}
    cut = {n: r for n, r in rows.items() if n not in parameters} or rows
    if len(set(cut.values())) > 1:
        for name in {(i.dims or (None,))[0] for i in along}:
            if isinstance(name, str):
                same = {i.name: rows[i.name] for i in along if i.dims and i.dims[0] == name}
                _agree(same, where)
        if fits:
            return [(arrays, 1)], {}
        cut = {i.name: rows[i.name] for i in along if not i.takes(arrays[i.name])}
        _agree(cut, where)
    total = next(iter(cut.values()))
    fixed = {i.batch for i in along if i.name in cut and i.batch is not None}
    if len(fixed) > 1:
        raise SamplesError(f"{where}: inputs take different numbers of samples: give one run each")
    size = next(iter(fixed), None)
    step = size or batch
    ends = total - total % size if size else total
    runs = []
    for at in range(0, ends, step):
        part = {n: a[at : at + step] if n in cut else a for n, a in arrays.items()}
        runs.append((part, min(step, ends - at)))
    return runs, {n: arrays[n][ends:] for n in cut} if ends < total else {}


def _agree(counts: dict[str, int], where: str) -> None:
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"'{n}' {c}" for n, c in counts.items())
        raise SamplesError(f"{where}: inputs hold different numbers of samples: {listed}")


def _finite(name: str, array: Array, where: str, k: int) -> Array:
    if array.dtype.kind not in "iubOSU" and np.isnan(array).any():
        raise SamplesError(f"{where}, sample {k}: input '{name}' holds NaN")
    return array
