"""Examples: samples with the original's outputs, shuffled, split and put together as batches.

Inputs and outputs lie in one unnamed temporary file that is mapped, so memory does not grow with
the number of samples. What is drawn is a *unit*: one row where the model takes any number of rows,
else one whole run.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.context import Context
from graphopt.samples.inputs import Input
from graphopt.training.batches import Batch
from graphopt.training.mixing import drawn, mix, mixable

if TYPE_CHECKING:
    import torch

__all__ = ["Examples", "Store", "Teacher", "held_count", "tensors"]

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


class Store:
    """Runs of a model: the arrays of each, one after another in a temporary file.

    Attributes:
        full: runs were left out for want of room.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="graphopt-")  # noqa: SIM115
        self._places: list[list[tuple[int, np.dtype[Any], tuple[int, ...]]]] = []
        self._flat = np.zeros(0, np.uint8)
        self.full = False

    def add(self, arrays: Iterable[Array]) -> None:
        """Append a run."""
        places = []
        for array in arrays:
            self._file.seek(-self._file.tell() % 64, 1)
            places.append((self._file.tell(), array.dtype, array.shape))
            np.ascontiguousarray(array).reshape(-1).view(np.uint8).tofile(self._file)
        self._places.append(places)

    def finish(self) -> Store:
        """No more runs: map the file, which has no name and goes with the map. Returns self."""
        with self._file as file:
            if file.tell():
                file.flush()
                self._flat = np.memmap(file, np.uint8, "r")
        return self

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, run: int) -> list[Array]:
        """The arrays of a run, as views of the file."""
        found = []
        for at, dtype, shape in self._places[run]:
            size = math.prod(shape) * dtype.itemsize
            found.append(self._flat[at : at + size].view(dtype).reshape(shape))
        return found

    def digest(self) -> str:
        """SHA-256 of everything in it."""
        seen = hashlib.sha256(repr(self._places).encode())
        for at in range(0, len(self._flat), 1 << 24):
            seen.update(self._flat[at : at + (1 << 24)].data)
        return seen.hexdigest()


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
            any_rows = _doubles(student, store, len(names))
        else:
            any_rows = not live and _joins(student, store, len(names))
        rows = any_rows and _alike_rows(store)
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


def tensors(arrays: Iterable[Array]) -> tuple[Any, ...]:
    """Arrays as torch tensors of their own memory."""
    import torch

    return tuple(torch.from_numpy(np.array(a)) for a in arrays)


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


def _alike_rows(store: Store) -> bool:
    """Whether all arrays of every run have as many rows as its first: rows can be told apart."""
    for run in range(len(store)):
        arrays = store[run]
        if any(a.ndim == 0 or len(a) != len(arrays[0]) for a in arrays):
            return False
    return len(store) > 0


def _doubles(student: torch.nn.Module, store: Store, inputs: int) -> bool:
    """Whether the module takes twice the rows of a run."""
    if not len(store):
        return False
    twice = [np.concatenate([a, a]) if a.ndim else a for a in store[0][:inputs]]
    return _tried(student, twice) is not None


def _joins(student: torch.nn.Module, store: Store, inputs: int) -> bool:
    """Whether the module takes two runs as one, though the model it came from has a fixed batch.

    Most exports fix a batch of 1; their operators seldom need it.
    """
    import torch

    if len(store) < 2 or _recurrent(student):
        return False
    a, b = store[0][:inputs], store[1][:inputs]
    if any(x.ndim == 0 or x.shape != y.shape for x, y in zip(a, b, strict=True)):
        return False
    both = [np.concatenate(pair) for pair in zip(a, b, strict=True)]
    made = [_tried(student, arrays) for arrays in (a, b, both)]
    if any(outputs is None for outputs in made):
        return False
    for x, y, whole in zip(*(outputs or () for outputs in made), strict=True):
        if x.ndim == 0 or whole.shape != (2 * len(x), *x.shape[1:]):
            return False
        # sums in another order: 1e-3 is far above rounding and far below a mix-up of rows
        if not torch.allclose(
            whole, torch.cat([x, y]), rtol=1e-3, atol=1e-4 * float(x.abs().max())
        ):
            return False
    return True


def _tried(student: torch.nn.Module, arrays: Sequence[Array]) -> tuple[torch.Tensor, ...] | None:
    """Its outputs; None where a size of the module's own does not fit."""
    import torch

    device = next((p.device for p in student.parameters()), torch.device("cpu"))
    with torch.no_grad():
        try:
            outputs: tuple[torch.Tensor, ...] = student.forward(
                *(t.to(device) for t in tensors(arrays))
            )
        except (RuntimeError, ValueError, IndexError):
            return None
    return outputs


def _recurrent(student: torch.nn.Module) -> bool:
    """Whether it has torch's recurrent layers, which write past states of a smaller batch."""
    import torch

    unsafe = (torch.lstm, torch.gru, torch.rnn_tanh)
    graphs = [m.graph for m in student.modules() if isinstance(m, torch.fx.GraphModule)]
    return any(node.target in unsafe for graph in graphs for node in graph.nodes)


def _leading(arrays: Sequence[Array]) -> int:
    return len(arrays[0]) if arrays and arrays[0].ndim else 1
