"""Integers that a cut changes: shapes, bounds, counts, and what must not follow them.

Where an operator uses a number as a size (see `Count`, `Sizes`, `Remap`), the new size is written,
into a constant or over elements of a computed one. Every Shape goes on telling the sizes before the
cut: what is computed from them stays as it was, and is overwritten only where it is a shape.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analyses.dims.axes import Count, Pin, Remap, Sizes, Tensor
from graphopt.analyses.dims.dimension import Dimensions
from graphopt.graph.building import Builder, Names, remove_dead
from graphopt.graph.constants import constant_value

__all__ = ["Change", "Masks", "Resize"]

Array = np.ndarray[Any, Any]


class Masks:
    """Which positions of each axis stay, given which units of each dimension do."""

    def __init__(self, dims: Dimensions, keep: Mapping[str, Array]) -> None:
        self._classes = dims.plan.classes.tolist()
        masks: dict[int, Array] = {}
        for name, units in keep.items():
            stays = np.append(units, True)  # label -1: no unit, stays
            for c, labels in dims.plan.labels[name].items():
                mask = stays[labels]
                masks[c] = masks[c] & mask if c in masks else mask
        self._masks = {c: m for c, m in masks.items() if not m.all()}

    def mask(self, axis: int) -> Array | None:
        """The positions of an axis that stay, or None if all do."""
        return self._masks.get(self._classes[axis]) if 0 <= axis < len(self._classes) else None

    def of(self, tensor: Tensor) -> tuple[Array | None, ...]:
        """A mask (or None) per axis."""
        return tuple(self.mask(a) for a in tensor.axes)


@dataclasses.dataclass
class Change:
    """What happens to one operand of one node."""

    masks: tuple[Array | None, ...] = ()
    remap: Array | None = None
    elements: dict[int, int] = dataclasses.field(default_factory=dict)
    scales: dict[int, tuple[int, int]] = dataclasses.field(default_factory=dict)

    def key(self) -> Any:
        """Equal for equal changes."""
        masks = tuple(None if m is None else m.tobytes() for m in self.masks)
        remap = None if self.remap is None else self.remap.tobytes()
        return (masks, remap, tuple(sorted(self.elements.items())))

    def __bool__(self) -> bool:
        return (
            self.remap is not None or bool(self.elements) or any(m is not None for m in self.masks)
        )

    def apply(self, array: Array) -> Array:
        """The operand after the change."""
        masked = [k for k, m in enumerate(self.masks) if m is not None]
        if len(masked) == 1:
            array = np.compress(self.masks[masked[0]], array, axis=masked[0])  # type: ignore[arg-type]
        elif masked:  # at once: no copy that is larger than the result
            index = [
                np.arange(n) if m is None else np.flatnonzero(m)
                for n, m in zip(array.shape, self.masks, strict=True)
            ]
            array = array[np.ix_(*index)]
        if self.remap is not None:
            position = np.cumsum(self.remap) - 1
            array = position[array].astype(array.dtype)
        if self.elements:
            array = array.copy()
            for k, v in self.elements.items():
                array.flat[k] = v
        return np.ascontiguousarray(array)


class Resize:
    """The integers of one model during one cut."""

    def __init__(self, model: ir.Model, dims: Dimensions, masks: Masks, names: Names) -> None:
        self.model, self.axes, self.names = model, dims.plan.axes, names
        self.mask, self.of = masks.mask, masks.of

    def derived(self, node: ir.Node, changes: dict[tuple[ir.Node, int], Change]) -> None:
        """Change a node's attributes and implicit sizes; collect what changes in its operands."""
        for d in self.axes.derived.get(node, ()):
            if isinstance(d, Count):
                self._count(node, d, changes)
            elif isinstance(d, Sizes):
                self._sizes(node, d)
            elif isinstance(d, Remap):
                mask = self.mask(d.axis)
                if mask is not None:
                    changes.setdefault((node, d.operand), Change()).remap = mask
            elif isinstance(d, Pin) and self.mask(d.axis) is not None:
                node.attributes[d.attribute] = ir.convenience.convert_attribute(
                    d.attribute, d.value
                )

    def _count(self, node: ir.Node, d: Count, changes: dict[tuple[ir.Node, int], Change]) -> None:
        mask = self.mask(d.axis)
        if mask is None:
            return
        new, old = int(mask[d.start : d.stop].sum()), d.stop - d.start
        if new == old:
            return
        if d.attribute is not None:
            have = node.attributes.get(d.attribute)
            if have is None:
                return
            value = have.value if d.element is None else [*have.value]
            if d.element is None:
                value = new if value == old or d.always else value
            elif value[d.element] == old or d.always:
                value[d.element] = new
            node.attributes[d.attribute] = ir.convenience.convert_attribute(d.attribute, value)
        elif d.operand is not None and d.element is not None:
            known = self._known(node, d.operand)
            symbolic = known is not None and not isinstance(known[d.element], (int, np.integer))
            if symbolic and d.start == 0 and d.stop == len(mask):
                change = changes.setdefault((node, d.operand), Change())
                change.scales[d.element] = (new, old)
            elif d.always or known is None or known[d.element] == old:
                change = changes.setdefault((node, d.operand), Change())
                change.elements[d.element] = new

    def _known(self, node: ir.Node, operand: int) -> list[Any] | None:
        value = node.inputs[operand]
        data = self.axes.shapes.data(value) if value is not None else None
        tensor = constant_value(value)
        if tensor is not None:
            data = tensor.numpy()
        return None if data is None else list(data.ravel())

    def _sizes(self, node: ir.Node, d: Sizes) -> None:
        masks = [self.mask(a) for a in d.axes]
        if all(m is None for m in masks):
            return
        bounds = d.bounds or tuple((0, n) for n in d.sizes)
        new = [
            n if m is None else int(m[a:b].sum())
            for m, n, (a, b) in zip(masks, d.sizes, bounds, strict=True)
        ]
        for name in d.drop:
            node.attributes.pop(name, None)
        self._replace(node, d.operand, np.array(new, np.int64), "sizes")

    def _replace(self, node: ir.Node, operand: int, array: Array, name: str) -> None:
        base = node.name or node.outputs[0].name or node.op_type
        made = Builder(self.model, node, self.names).constant(array, f"{base}/{name}")
        if operand >= len(node.inputs):
            node.resize_inputs(operand + 1)
        old = node.inputs[operand]
        node.replace_input_with(operand, made)
        self.forget(old)

    def forget(self, value: ir.Value | None) -> None:
        """Drop what nothing uses any more."""
        if value is None or value.uses() or value.is_graph_output():
            return
        producer = value.producer()
        if producer is not None:
            remove_dead([producer])
        elif value.is_initializer() and not value.is_graph_input():
            owner = value.graph
            if isinstance(owner, ir.Graph) and value.name is not None:
                owner.initializers.pop(value.name, None)

    def runtime(self, node: ir.Node, operand: int, change: Change) -> None:
        """Sizes in an operand that is computed: those known are written, the others kept."""
        if node.graph is None or not (change.elements or change.scales):
            return
        value = node.inputs[operand]
        data = self._known(node, operand)
        length = len(data) if data is not None else max(change.elements) + 1
        static = data is not None and all(isinstance(e, (int, np.integer)) for e in data)
        if static and data is not None:
            array = np.array([int(e) for e in data], np.int64)
            for k, v in change.elements.items():
                array[k] = v
            self._replace(node, operand, array, "shape")
            return
        assert value is not None
        made = self._rewritten(node, value, length, change.elements, change.scales)
        node.replace_input_with(operand, made)

    def _rewritten(
        self,
        at: ir.Node,
        value: ir.Value,
        length: int,
        elements: Mapping[int, int],
        scales: Mapping[int, tuple[int, int]],
    ) -> ir.Value:
        """`value` with some elements replaced, and others multiplied by a fraction."""
        builder = Builder(self.model, at, self.names)
        base = at.name or at.op_type
        if scales:
            over, under = np.ones(length, np.int64), np.ones(length, np.int64)
            for k, (a, b) in scales.items():
                over[k], under[k] = a, b
            value = builder.Mul(value, builder.constant(over, f"{base}/kept"))
            value = builder.Div(value, builder.constant(under, f"{base}/of"))
        if elements:
            where, new = np.zeros(length, bool), np.zeros(length, np.int64)
            for k, v in elements.items():
                where[k], new[k] = True, v
            changed = builder.constant(where, f"{base}/changed")
            value = builder.Where(changed, builder.constant(new, f"{base}/sizes"), value)
        return value

    def filled(self, node: ir.Node, tensor: Tensor, number: Array) -> ir.Value:
        """A tensor of one number, of the size that an operand of `node` has after the cut."""
        builder = Builder(self.model, node, self.names)
        name = f"{node.name or node.op_type}/fill"
        sizes = {k: int(m.sum()) for k, m in enumerate(self.of(tensor)) if m is not None}
        known = self.axes.shapes.static(tensor.value)
        if known is None:
            shape = self._rewritten(node, builder.Shape(tensor.value), tensor.rank, sizes, {})
        else:
            shape = builder.constant(np.array([sizes.get(k, n) for k, n in enumerate(known)]), name)
        made: ir.Value = builder.Expand(builder.constant(number, name), shape)
        return made

    def tell_original(self, node: ir.Node) -> None:
        """A Shape goes on telling the sizes before the cut: where they are data they must stay."""
        if node.graph is None:  # it went with what another Shape had been the only reason for
            return
        source = node.inputs[0]
        constant = constant_value(source) is not None  # left alone, it would keep the whole tensor
        tensor = self.axes.tensor(node, False, 0)
        if tensor is None or not (constant or any(m is not None for m in self.of(tensor))):
            return
        output = node.outputs[0]
        data = self.axes.shapes.data(output)
        if not output.uses() and not output.is_graph_output():
            return
        builder = Builder(self.model, node, self.names)
        name = f"{node.name or node.op_type}/original"
        if data is not None and data.dtype != object:
            made = builder.constant(np.asarray(data, np.int64), name)
        elif node.op_type == "Size":
            total, left = 1, 1
            for m in self.of(tensor):
                total, left = (total, left) if m is None else (total * len(m), left * int(m.sum()))
            now = builder.node("Size", [source]).outputs[0]
            made = builder.Mul(now, builder.constant(np.array(total), f"{name}/of"))
            made = builder.Div(made, builder.constant(np.array(left), f"{name}/kept"))
            made.type, made.shape = output.type, output.shape
        else:
            start = node.attributes.get("start")
            stop = node.attributes.get("end")
            part = slice(start.value if start else None, stop.value if stop else None)
            masks, dims = self.of(tensor)[part], self.axes.shapes.shape(tensor.value)
            known = (dims or tensor.sizes)[part]
            rest = builder.node("Shape", [source], {k: a.value for k, a in node.attributes.items()})
            made = self._rewritten(
                node,
                rest.outputs[0],
                len(masks),
                {
                    k: d
                    for k, (m, d) in enumerate(zip(masks, known, strict=True))
                    if m is not None and isinstance(d, int)
                },
                {
                    k: (len(m), int(m.sum()))
                    for k, (m, d) in enumerate(zip(masks, known, strict=True))
                    if m is not None and not isinstance(d, int)
                },
            )
            made.type, made.shape = output.type, output.shape
        output.replace_all_uses_with(made, replace_graph_outputs=True)
        remove_dead([node])
        self.forget(source)
