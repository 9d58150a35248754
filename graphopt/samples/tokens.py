"""Language models: how a model of tokens is fed, with a cache of keys and values or without.

    logits_t = f(x_1 ... x_t)            or            logits_t, s_t = f(x_t, s_{t-1})

Ids are given; the mask, the positions and empty caches follow from them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.samples.states import states_of

__all__ = ["TokenModel", "token_model"]

Array = np.ndarray[Any, Any]
Predict = Callable[[Mapping[str, Array]], Mapping[str, Array]]

#: What is fed beside ids and caches, where a model takes it.
MASK, POSITIONS = "attention_mask", "position_ids"
#: Tokens that a model with caches reads at once.
CHUNK = 256


@dataclasses.dataclass(frozen=True)
class TokenModel:
    """What a model of tokens takes and gives.

    Attributes:
        ids: the input that takes tokens, integers [batch, sequence].
        inputs: dtype and sizes of every input; an open size is None.
        caches: input -> the output it takes in the next run.
        logits: the output [batch, sequence, vocabulary].
    """

    ids: str
    inputs: dict[str, tuple[str, list[int | None]]]
    caches: dict[str, str]
    logits: str

    @property
    def fixed(self) -> bool:
        """Whether it takes no other number of rows or tokens than one."""
        batch, sequence = self.inputs[self.ids][1]
        return batch not in (None, 1) or sequence is not None

    def fed(self, ids: Array, before: int = 0, caches: Mapping[str, Array] | None = None) -> Any:
        """Feeds for the next tokens `ids` [batch, n], of which the caches hold `before`."""
        batch, count = ids.shape
        known = {self.ids: ids, MASK: np.ones((batch, before + count))}
        known[POSITIONS] = np.arange(before, before + count)[None].repeat(batch, 0)
        made = {n: a.astype(self.inputs[n][0]) for n, a in known.items() if n in self.inputs}
        return {**made, **(self._empty(batch) if caches is None else caches)}

    def completed(self, item: object) -> object:
        """A sample of ids [length] or [batch, length] with what the model takes beside them."""
        if isinstance(item, np.ndarray):
            item = {self.ids: item} if len(self.inputs) > 1 else item
        if not isinstance(item, Mapping):
            return item
        ids = next((item[n] for n in (self.ids, f"in:{self.ids}") if n in item), None)
        if ids is None or np.ndim(ids) not in (1, 2):
            return item
        made = self.fed(np.atleast_2d(ids)).items()
        return {**item, **{n: a for n, a in made if n not in item and f"in:{n}" not in item}}

    def stream(self, predict: Predict, row: Array) -> Iterator[Array]:
        """Logits [n, vocabulary] of the tokens `row` [1, length], n after n."""
        caches, ids = None, self._rows(row)
        for at in range(0, row.shape[1], CHUNK if self.caches else row.shape[1]):
            part = ids[:, at : at + CHUNK] if self.caches else ids
            made = predict(self.fed(part, at, caches))
            caches = {name: made[after] for name, after in self.caches.items()}
            yield made[self.logits][0]

    def write(self, predict: Predict, row: Array, start: int, end: int) -> Array:
        """`row` [1, length] with tokens `start` to `end` as the model writes them after the rest.

        Each is the one of the largest logit. A row of a model of one length stays as long as it is.
        """
        row = row.copy() if self.fixed else row[:, :end].copy()
        made = predict(self.fed(self._rows(row if self.fixed else row[:, :start])))
        for k in range(start, end):
            row[0, k] = made[self.logits][0, k - 1 if self.fixed else -1].argmax()
            if k + 1 == end:
                break
            if self.caches:
                caches = {name: made[after] for name, after in self.caches.items()}
                made = predict(self.fed(self._rows(row[:, k : k + 1]), k, caches))
            else:
                made = predict(self.fed(self._rows(row if self.fixed else row[:, : k + 1])))
        return row

    def _rows(self, row: Array) -> Array:
        """A row [1, n] as often as the model takes rows."""
        return row.repeat(self.inputs[self.ids][1][0] or 1, 0)

    def _empty(self, batch: int) -> dict[str, Array]:
        """Caches that hold nothing: their open axes but the first are empty."""
        made = {}
        for name in self.caches:
            dtype, (first, *dims) = self.inputs[name]
            made[name] = np.zeros(
                (batch if first is None else first, *(d or 0 for d in dims)), dtype
            )
        return made


def token_model(model: ir.Model) -> TokenModel | None:
    """How `model` takes tokens; None if it takes something else.

    It is one whose inputs are ids (`input_ids`, or its only other input), perhaps `attention_mask`
    and `position_ids`, and caches that its outputs continue, and that gives one more output of
    three axes.
    """
    caches = states_of(model)
    inputs = {v.name or "": v for v in model.graph.inputs if not v.is_initializer()}
    rest = [n for n in inputs if n not in (*caches, MASK, POSITIONS)]
    outputs = [v for v in model.graph.outputs if v.name not in caches.values()]
    rank = {v: None if v.shape is None else len(v.shape) for v in (*inputs.values(), *outputs)}
    outputs = [v for v in outputs if rank[v] == 3]
    if len(rest) != 1 or not outputs or any(v.dtype is None for v in inputs.values()):
        return None
    (ids,) = rest
    kind = inputs[ids].dtype
    if rank[inputs[ids]] != 2 or kind not in (ir.DataType.INT32, ir.DataType.INT64):
        return None
    taken = {
        name: (v.dtype.numpy().name, [d if isinstance(d, int) else None for d in v.shape or ()])
        for name, v in inputs.items()
        if v.dtype is not None
    }
    return TokenModel(ids, taken, caches, outputs[0].name or "")
