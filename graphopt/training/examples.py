"""Examples: samples with the original's outputs, shuffled, split and put together as batches.

Inputs and outputs lie in one unnamed temporary file that is mapped, so memory does not grow with
the number of samples. What is drawn is a *unit*: one row where the model takes any number of rows,
else one whole run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.context import Context
from graphopt.samples.inputs import Input
from graphopt.training.batches import Batch
from graphopt.training.joining import alike_rows, doubles, joins
from graphopt.training.mixing import drawn, mix, mixable
from graphopt.training.store import Store, tensors

if TYPE_CHECKING:
    import torch

__all__ = ["Examples", "Teacher", "held_count"]

Array = np.ndarray[Any, Any]
#: The original's outputs for the inputs of one run, both in the model's order.
Teacher = Callable[[Sequence[Array]], list[Array]]
#: Most bytes of the original's outputs that are kept; beyond, it is run on every batch.
LARGE = 4 << 30
#: Share of the samples that is held out, and the most of them.
HELD, MOST_HELD = 0.1, 512
#: A run, and a row of it (0 where units are runs).
_Unit = tuple[int, int]
#: Runs from which on whole ones are held out.
APART = 10


class Examples:
    """Batches of a store's units (see `batches.Batches`).

    Args:
        store: runs: the model's inputs in order, then the original's outputs.
        inputs: how many of a run's arrays are inputs.
        rows: a unit is a row of a run, and rows of any runs may be put together.
        size: rows of a step.
        seed: of the split and the order.
        teacher: computes the targets of every batch anew instead of taking the stored ones.
        mixing: says what the targets of mixed rows are, where an epoch is of such
            (`graphopt.training.mixing`).
    """

    def __init__(
        self,
        store: Store,
        inputs: int,
        *,
        rows: bool,
        size: int,
        seed: int,
        teacher: Teacher | None = None,
        mixing: Teacher | None = None,
    ) -> None:
        self.store, self.inputs, self.rows, self.size, self.seed = store, inputs, rows, size, seed
        self.teacher, self.mixing = teacher, mixing
        self._held, self._fit = _split(
            [len(store[run][0]) if rows else 1 for run in range(len(store))], seed
        )
        weight = 1 if rows else max(1, _leading(store[0])) if len(store) else 1
        self._per_step = max(1, round(size / weight))
        self.steps = math.ceil(len(self._fit) / self._per_step)

    @classmethod
    def of(
        cls,
        ctx: Context,
        inputs: Sequence[Input],
        student: torch.nn.Module,
        teacher: Teacher,
        *,
        size: int,
        large: bool = False,
        mix: bool = False,
    ) -> Examples:
        """The run's samples with what `teacher` makes of them, to train `student` on.

        Outputs that take over 4 GiB, and those called `large` where batches are of any size, are
        not kept: the teacher runs on every batch. So it does with `mix`, where rows can be mixed.
        """
        assert ctx.samples is not None
        names = [i.name for i in inputs]
        free = all(i.batch is None for i in inputs)
        live = large and free
        store = None if live else _gather(ctx.samples, names, teacher, LARGE)
        if store is None or store.full:
            live, store = True, _gather(ctx.samples, names, lambda arrays: [])
        if free:  # as it says; what an exporter wrote into shapes may hold it to its batch
            any_rows = doubles(student, store, len(names))
        else:
            any_rows = not live and joins(student, store, len(names))
        rows = any_rows and alike_rows(store)
        fed = (store[run][: len(names)] for run in range(len(store)))
        return cls(
            store,
            len(names),
            rows=rows,
            size=size,
            seed=ctx.seed,
            teacher=teacher if live else None,
            mixing=teacher if mix and free and rows and mixable(fed) else None,
        )

    def __len__(self) -> int:
        return len(self._fit) + len(self._held)

    def epoch(self, number: int, share: tuple[int, int]) -> Iterator[Sequence[Batch]]:
        """Every unit that is not held out once, in an order of seed and epoch."""
        order = np.random.default_rng((self.seed, number)).permutation(len(self._fit))
        for at in range(0, len(order), self._per_step):
            units = [self._fit[k] for k in order[at : at + self._per_step]]
            mine = slice(share[0], None, share[1])
            if self.mixing is None or not units[mine]:
                yield list(self._batches(units[mine]))
                continue
            others, parts = drawn(len(units), (self.seed, number, at))
            a, b = self._inputs(units[mine]), self._inputs([units[k] for k in others[mine]])
            inputs = [mix(x, y, parts[mine]) for x, y in zip(a, b, strict=True)]
            targets = self.mixing(inputs)
            yield [Batch(tensors(inputs), tensors(targets), rows=len(inputs[0]))]

    def held(self, share: tuple[int, int]) -> Iterator[Batch]:
        """The units that are held out."""
        mine = self._held[share[0] :: share[1]]
        for at in range(0, len(mine), self._per_step):
            yield from self._batches(mine[at : at + self._per_step])

    def targets(self) -> Iterator[list[Array]]:
        """The original's outputs for the held-out units."""
        for batch in self.held((0, 1)):
            yield [t.numpy() for t in batch.targets]

    def _batches(self, units: Sequence[tuple[int, int]]) -> Iterator[Batch]:
        """Units as batches: all rows of one shape together, or each run alone."""
        if not self.rows:
            for run, _ in units:
                yield self._batch(self.store[run])
            return
        alike: dict[Any, list[list[Array]]] = {}
        for run, row in units:
            arrays = [a[row] for a in self.store[run]]
            alike.setdefault(tuple((a.shape, a.dtype) for a in arrays), []).append(arrays)
        for found in alike.values():
            yield self._batch([np.stack(a) for a in zip(*found, strict=True)])

    def _inputs(self, units: Sequence[tuple[int, int]]) -> list[Array]:
        """The inputs of rows of one shape."""
        rows = [[a[row] for a in self.store[run][: self.inputs]] for run, row in units]
        return [np.stack(a) for a in zip(*rows, strict=True)]

    def _batch(self, arrays: Sequence[Array]) -> Batch:
        inputs, targets = arrays[: self.inputs], arrays[self.inputs :]
        if self.teacher is not None:
            targets = self.teacher(inputs)
        return Batch(tensors(inputs), tensors(targets), rows=max(1, _leading(inputs)))


def _split(sizes: Sequence[int], seed: int) -> tuple[list[_Unit], list[_Unit]]:
    """Units held out and units to fit on, of runs of so many units each.

    Whole runs are held out where there are `APART` of them: rows of one run may come from one text
    or one recording, and say little of others.
    """
    units = [(run, k) for run, size in enumerate(sizes) for k in range(size)]
    count, rng = held_count(len(units)), np.random.default_rng(seed)
    if len(sizes) < APART:
        held = {units[k] for k in rng.permutation(len(units))[:count]}
    else:
        small = [run for run in rng.permutation(len(sizes)) if sizes[run] <= count]
        large = sorted(set(range(len(sizes))) - set(small), key=lambda run: sizes[run])
        before = np.cumsum([0, *(sizes[run] for run in (*small, *large))])
        runs = {run for run, n in zip((*small, *large), before, strict=False) if n < count}
        held = {unit for unit in units if unit[0] in runs}
    return [u for u in units if u in held], [u for u in units if u not in held]


def held_count(units: int) -> int:
    """How many of so many units are held out."""
    return min(MOST_HELD, max(1, round(HELD * units)), units)


def _gather(
    feeds: Iterable[Mapping[str, Array]],
    names: Sequence[str],
    teacher: Teacher,
    most: float = math.inf,
) -> Store:
    """A store of runs: inputs `names` of each of `feeds`, and what `teacher` makes of them.

    Once the outputs take more than `most` bytes the store is `full`, and the rest is left out.
    """
    store, taken = Store(), 0
    try:
        for feed in feeds:
            arrays = [feed[n] for n in names]
            outputs = teacher(arrays)
            store.add([*arrays, *outputs])
            taken += sum(a.nbytes for a in outputs)
            if taken > most:
                store.full = True
                break
    finally:
        store.finish()
    return store


def _leading(arrays: Sequence[Array]) -> int:
    return len(arrays[0]) if arrays and arrays[0].ndim else 1
