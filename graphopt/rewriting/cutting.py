"""Cut: remove units of dimensions from every tensor that carries them.

    dims = Context(model).get(dimensions)
    cut(model, {"conv1.weight": [0, 2, 3]})      # the units that stay

Weights are sliced, integers that were sizes become the new sizes, indices move with what they
point at, and sizes that were data stay what they were. What was kept is written down in the model
(`graphopt.graph.kept`), per source initializer and axis, over any number of cuts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analyses.dims.analysis import dimensions
from graphopt.analyses.dims.axes import Tensor
from graphopt.analyses.dims.dimension import Dimensions
from graphopt.analyses.shapes.analysis import on_demand
from graphopt.context import Context
from graphopt.errors import PassError, UsageError
from graphopt.graph.building import Builder, Names
from graphopt.graph.constants import constant_value
from graphopt.graph.kept import Kept
from graphopt.rewriting.resizing import Change, Masks, Resize

__all__ = ["cut"]

Array = np.ndarray[Any, Any]


def cut(
    model: ir.Model,
    kept: Mapping[str, Sequence[int] | Array],
    ctx: Context | None = None,
) -> int:
    """Keep only these units of these dimensions, in place.

    Args:
        model: the model.
        kept: per name of a prunable dimension, the indices of the units that stay, at least one.
        ctx: the context that `model` belongs to, whose analyses are used and then dropped.

    Returns:
        The number of dimensions that lost units.

    Raises:
        UsageError: an unknown dimension, or indices that are empty or out of range.
    """
    ctx = Context(model) if ctx is None else ctx
    dims = ctx.get(dimensions)
    chosen = {name: _chosen(dims, name, units) for name, units in kept.items()}
    changed = {name: keep for name, keep in chosen.items() if not keep.all()}
    if changed:
        _Cut(model, dims, changed).run()
        ctx.invalidate()
    return len(changed)


def _chosen(dims: Dimensions, name: str, units: Sequence[int] | Array) -> Array:
    """The units of a dimension that stay, as a mask."""
    if name not in dims.prunable:
        raise UsageError(
            f"no prunable dimension '{name}'; list them with `graphopt inspect --dims`"
        )
    size = dims.prunable[name].size
    index = np.asarray(units, dtype=np.int64)
    if index.ndim != 1 or index.size == 0 or index.min() < 0 or index.max() >= size:
        raise UsageError(
            f"dimension '{name}' has units 0 to {size - 1}: keep one at least, not {list(units)!r}"
        )
    keep = np.zeros(size, bool)
    keep[index] = True
    return keep


class _Cut:
    """One cut: masks per class of axes, then every place that has them."""

    def __init__(self, model: ir.Model, dims: Dimensions, keep: dict[str, Array]) -> None:
        self.model = model
        self.axes = dims.plan.axes
        self.names = Names(model)
        self.kept = Kept(model)
        masks = Masks(dims, keep)
        self.of, self.mask = masks.of, masks.mask
        self.resize = Resize(model, dims, masks, self.names)

    def run(self) -> None:
        wanted = self._expected()
        changes: dict[tuple[ir.Node, int], Change] = {}
        nodes = list(self.axes.tensors)
        for node in nodes:
            self.resize.derived(node, changes)
        for node in nodes:
            if node.op_type in ("Shape", "Size") and node.domain in ("", "ai.onnx"):
                self.resize.tell_original(node)
        self._constants(changes)
        for node in nodes:
            self._fills(node)
        for (node, operand), change in changes.items():
            self.resize.runtime(node, operand, change)
        self._annotate()
        self.kept.write()
        self._verify(wanted)

    def _constants(self, changes: dict[tuple[ir.Node, int], Change]) -> None:
        for value, tensors in list(self.axes.uses.items()):
            seen = {(n, t.index): t for n, t in self._slots(value, tensors)}
            groups: dict[Any, tuple[Change, list[tuple[ir.Node, int]]]] = {}
            for use in value.uses():
                slot = (use.node, use.idx)
                change = changes.pop(slot, Change())
                if slot in seen:
                    change.masks = self.of(seen[slot])
                groups.setdefault(change.key(), (change, []))[1].append(slot)
            if any(change for change, _ in groups.values()):
                self._slice(value, list(groups.values()))

    def _slots(self, value: ir.Value, tensors: list[Tensor]) -> list[tuple[ir.Node, Tensor]]:
        wanted = set(map(id, tensors))
        return [
            (u.node, t)
            for u in value.uses()
            for t in [self.axes.tensors.get(u.node, {}).get((False, u.idx))]
            if t is not None and id(t) in wanted
        ]

    def _slice(
        self, value: ir.Value, groups: list[tuple[Change, list[tuple[ir.Node, int]]]]
    ) -> None:
        """New tensors for a constant: in place if all its uses agree, else one per kind of use."""
        tensor = constant_value(value)
        assert tensor is not None
        alone = len(groups) == 1 and value.is_initializer() and not value.is_graph_output()
        source = tensor.numpy()
        for change, slots in groups:
            if not change:
                continue
            array = change.apply(source)
            if alone:
                made = value
                made.const_value = ir.tensor(array, dtype=tensor.dtype, name=value.name)
                made.shape = ir.Shape(array.shape)
            else:
                made = Builder(self.model, slots[0][0], self.names).constant(
                    array, value.name or "constant"
                )
                for node, k in slots:
                    node.replace_input_with(k, made)
            if change.remap is None and not change.elements:
                self.kept.note(value.name or "", made.name or "", change.masks)
        self.resize.forget(value)

    def _fills(self, node: ir.Node) -> None:
        """New fills for a node whose operands, tensors of one value, change their sizes."""
        made: dict[Any, ir.Value] = {}
        for (output, k), tensor in self.axes.tensors[node].items():
            masks = self.of(tensor)
            number = None if output else self.axes.fills.get(tensor.value)
            if number is None or node.graph is None or all(m is None for m in masks):
                continue
            key = (tensor.value, tuple(None if m is None else int(m.sum()) for m in masks))
            if key not in made:
                made[key] = self.resize.filled(node, tensor, number)
            node.replace_input_with(k, made[key])
            self.resize.forget(tensor.value)

    def _expected(self) -> dict[ir.Value, tuple[Any, ...]]:
        """Sizes after the cut of every value that the cut reaches."""
        expected: dict[ir.Value, tuple[Any, ...]] = {}
        for slots in self.axes.tensors.values():
            for t in slots.values():
                masks = self.of(t)
                own = t.output or not self.axes.filled(t.value)
                if own and t.value not in expected and any(m is not None for m in masks):
                    expected[t.value] = tuple(
                        int(m.sum()) if m is not None else s
                        for m, s in zip(masks, t.sizes, strict=True)
                    )
        return expected

    def _annotate(self) -> None:
        for value, axes in self.axes.values():
            masks = [self.mask(a) for a in axes]
            if value.shape is not None and any(m is not None for m in masks):
                value.shape = ir.Shape(
                    [
                        d if m is None else int(m.sum()) if isinstance(d, int) else None
                        for m, d in zip(masks, value.shape.dims, strict=True)
                    ]
                )

    def _verify(self, expected: dict[ir.Value, tuple[Any, ...]]) -> None:
        """Infer all shapes anew: what broadcasting or a wrong size would hide shows here."""
        shapes = on_demand(self.model)
        shapes.walk()
        for value, want in expected.items():
            node = value.producer()
            if node is None or node.graph is None or constant_value(value) is not None:
                continue
            have = shapes.shape(value)
            if have is None:
                continue
            for a, b in zip(have, want, strict=True):
                if isinstance(a, int) and isinstance(b, int) and a != b:
                    raise PassError(
                        f"the cut left '{value.name}' with shape {list(have)}, not {list(want)}: "
                        f"please report this with the model ({node.op_type} '{node.name}')"
                    )
