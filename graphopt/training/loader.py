"""Loading: a user's own data, `file.py:function`, with labels if it has them, epoch after epoch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.errors import SamplesError, UsageError
from graphopt.samples.inputs import Input
from graphopt.samples.stream import fit
from graphopt.training.batches import Batch
from graphopt.training.examples import Teacher, held_count
from graphopt.training.store import tensors
from graphopt.user_code import load_attribute

__all__ = ["Loader", "Stream"]

Array = np.ndarray[Any, Any]
#: What labels are called in an item that is a dict.
LABELS = ("label", "labels")


@dataclasses.dataclass(frozen=True)
class Loader:
    """Runs of the model, each with its labels or None, from what `function()` gives to iterate.

    An item is a dict of arrays by input name and maybe "label", or the inputs in order and maybe
    labels after them, or one array. Torch tensors are arrays too.
    """

    function: Callable[[], Any]
    inputs: list[Input]
    name: str

    @classmethod
    def open(cls, text: str, inputs: list[Input]) -> Loader:
        """From `file.py:function`. Raises UsageError if there is no such function."""
        path, colon, attribute = text.rpartition(":")
        if not colon or not path.endswith(".py"):
            raise UsageError(f"distill: data={text!r} should be file.py:function")
        function = load_attribute(str(Path(path)), attribute, "function")
        if not callable(function):
            raise UsageError(f"distill: data={text!r} names no function")
        return cls(function, inputs, text)

    def __iter__(self) -> Iterator[tuple[list[Array], Array | None]]:
        for item in self.function():
            feeds, label = self._split(item)
            at = 0
            for run in fit([feeds], self.inputs, self.name, batch=1 << 30):
                arrays = [run[i.name] for i in self.inputs]
                rows = len(arrays[0]) if arrays[0].ndim else 1
                yield arrays, None if label is None else label[at : at + rows]
                at += rows

    def _split(self, item: Any) -> tuple[dict[str, Array], Array | None]:
        if isinstance(item, Mapping):
            label = next((item[n] for n in LABELS if n in item), None)
            feeds = {i.name: np.asarray(item[i.name]) for i in self.inputs if i.name in item}
            return feeds, None if label is None else np.asarray(label)
        parts = list(item) if isinstance(item, (tuple, list)) else [item]
        if len(parts) not in (len(self.inputs), len(self.inputs) + 1):
            names = ", ".join(i.name for i in self.inputs)
            raise SamplesError(
                f"{self.name}: an item has {len(parts)} arrays; give {names}, and maybe labels"
            )
        feeds = {i.name: np.asarray(p) for i, p in zip(self.inputs, parts, strict=False)}
        extra = parts[len(self.inputs) :]
        return feeds, np.asarray(extra[0]) if extra else None


class Stream:
    """A loader's runs as batches (see `batches.Batches`), one a step, in the loader's own order.

    The first runs are held out: they are kept in memory and left out of every epoch (in a loader
    that shuffles, others are).

    Args:
        loader: gone through once to count, then once an epoch.
        teacher: the original, run on every batch.
    """

    def __init__(self, loader: Loader, teacher: Teacher) -> None:
        self.loader, self.teacher = loader, teacher
        self.count = sum(1 for _ in loader)
        if self.count < 2:
            raise SamplesError(f"{loader.name} gives {self.count} batches: distill needs two")
        self.skipped = held_count(self.count)
        self._held: list[Batch] = []
        for run, _ in zip(loader, range(self.skipped), strict=False):
            self._held.append(self._batch(*run))
        self.steps = self.count - self.skipped

    def epoch(self, number: int, share: tuple[int, int]) -> Iterator[Sequence[Batch]]:
        """One iteration of the loader; with several processes each takes its rows of a batch."""
        rank, size = share
        free = all(i.batch is None for i in self.loader.inputs)
        for k, (arrays, label) in enumerate(self.loader):
            if k < self.skipped:
                continue
            lengths = {len(a) if a.ndim else 0 for a in arrays}
            if size > 1 and free and len(lengths) == 1 and min(lengths) >= size:
                arrays = [a[rank::size] for a in arrays]
                label = None if label is None else label[rank::size]
            elif size > 1 and rank:
                yield []
                continue
            yield [self._batch(arrays, label)]

    def held(self, share: tuple[int, int]) -> Iterator[Batch]:
        """The runs that are held out."""
        yield from self._held[share[0] :: share[1]]

    def targets(self) -> Iterator[list[Array]]:
        """The original's outputs for the held-out runs."""
        for batch in self._held:
            yield [t.numpy() for t in batch.targets]

    def _batch(self, arrays: Sequence[Array], label: Array | None) -> Batch:
        rows = len(arrays[0]) if arrays[0].ndim else 1
        made = None if label is None else tensors([label])[0]
        return Batch(tensors(arrays), tensors(self.teacher(arrays)), made, rows)
