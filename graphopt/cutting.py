"""Cut: remove units of dimensions from every tensor that carries them.

    dims = Context(model).get(dimensions)
    cut(model, {"conv1.weight": [0, 2, 3]})      # the units that stay

Weights are sliced, integers that were sizes become the new sizes, indices move with what they
point at, and sizes that were data stay what they were. What was kept is written down in the model
(`graphopt.kept`), per source initializer and axis, over any number of cuts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analyses.dims.analysis import dimensions
from graphopt.analyses.dims.dimension import Dimensions
from graphopt.analyses.dims.operation import Count, Pin, Remap, Sizes, Tensor
from graphopt.analyses.shapes import Shapes
from graphopt.context import Context
from graphopt.errors import PassError, UsageError
from graphopt.kept import Kept
from graphopt.pattern import constant_value
from graphopt.rewrite import Builder, Names, remove_dead

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


@dataclasses.dataclass
class _Change:
    """What happens to one operand of one node."""

    masks: tuple[Array | None, ...] = ()
    remap: Array | None = None
    elements: dict[int, int] = dataclasses.field(default_factory=dict)

    def key(self) -> Any:
        masks = tuple(None if m is None else m.tobytes() for m in self.masks)
        remap = None if self.remap is None else self.remap.tobytes()
        return (masks, remap, tuple(sorted(self.elements.items())))

    def __bool__(self) -> bool:
        return (
            self.remap is not None or bool(self.elements) or any(m is not None for m in self.masks)
        )

    def apply(self, array: Array) -> Array:
        for axis, mask in enumerate(self.masks):
            if mask is not None:
                array = np.compress(mask, array, axis=axis)
        if self.remap is not None:
            position = np.cumsum(self.remap) - 1
            array = position[array].astype(array.dtype)
        if self.elements:
            array = array.copy()
            for k, v in self.elements.items():
                array.flat[k] = v
        return np.ascontiguousarray(array)


class _Cut:
    """One cut: masks per class of axes, then every place that has them."""

    def __init__(self, model: ir.Model, dims: Dimensions, keep: dict[str, Array]) -> None:
        self.model = model
        self.axes = dims.plan.axes
        self.classes = dims.plan.classes.tolist()
        self.names = Names(model)
        self.kept = Kept(model)
        self.masks: dict[int, Array] = {}
        for name, units in keep.items():
            units = np.append(units, True)  # label -1: no unit, stays
            for c, labels in dims.plan.labels[name].items():
                mask = units[labels]
                self.masks[c] = self.masks[c] & mask if c in self.masks else mask
        self.masks = {c: m for c, m in self.masks.items() if not m.all()}

    def mask(self, axis: int) -> Array | None:
        return self.masks.get(self.classes[axis]) if 0 <= axis < len(self.classes) else None

    def of(self, tensor: Tensor) -> tuple[Array | None, ...]:
        return tuple(self.mask(a) for a in tensor.axes)

    def run(self) -> None:
        wanted = self._expected()
        changes: dict[tuple[ir.Node, int], _Change] = {}
        nodes = list(self.axes.tensors)
        for node in nodes:
            self._derived(node, changes)
        for node in nodes:
            if node.op_type in ("Shape", "Size") and node.domain in ("", "ai.onnx"):
                self._tell_original(node)
        self._constants(changes)
        for (node, operand), change in changes.items():
            self._runtime(node, operand, change)
        self._annotate()
        self.kept.write()
        self._verify(wanted)

    # --- integers ---------------------------------------------------------------------------

    def _derived(self, node: ir.Node, changes: dict[tuple[ir.Node, int], _Change]) -> None:
        for d in self.axes.derived.get(node, ()):
            if isinstance(d, Count):
                self._count(node, d, changes)
            elif isinstance(d, Sizes):
                self._sizes(node, d)
            elif isinstance(d, Remap):
                mask = self.mask(d.axis)
                if mask is not None:
                    changes.setdefault((node, d.operand), _Change()).remap = mask
            elif isinstance(d, Pin) and self.mask(d.axis) is not None:
                node.attributes[d.attribute] = ir.convenience.convert_attribute(
                    d.attribute, d.value
                )

    def _count(self, node: ir.Node, d: Count, changes: dict[tuple[ir.Node, int], _Change]) -> None:
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
            if d.always or known is None or known[d.element] == old:
                change = changes.setdefault((node, d.operand), _Change())
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
        self._forget(old)

    def _forget(self, value: ir.Value | None) -> None:
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

    # --- values -----------------------------------------------------------------------------

    def _constants(self, changes: dict[tuple[ir.Node, int], _Change]) -> None:
        for value, tensors in list(self.axes.uses.items()):
            seen = {(n, t.index): t for n, t in self._slots(value, tensors)}
            groups: dict[Any, tuple[_Change, list[tuple[ir.Node, int]]]] = {}
            for use in value.uses():
                slot = (use.node, use.idx)
                change = changes.pop(slot, _Change())
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
        self, value: ir.Value, groups: list[tuple[_Change, list[tuple[ir.Node, int]]]]
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
        self._forget(value)

    def _runtime(self, node: ir.Node, operand: int, change: _Change) -> None:
        """Sizes in an operand that is computed: those known are written, the others kept."""
        if not change.elements:
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
        builder = Builder(self.model, node, self.names)
        where, new = np.zeros(length, bool), np.zeros(length, np.int64)
        for k, v in change.elements.items():
            where[k], new[k] = True, v
        base = node.name or node.op_type
        merged = builder.Where(
            builder.constant(where, f"{base}/changed"),
            builder.constant(new, f"{base}/sizes"),
            value,
        )
        node.replace_input_with(operand, merged)

    def _tell_original(self, node: ir.Node) -> None:
        """A Shape goes on telling the sizes before the cut: where they are data they must stay."""
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
        else:
            start = node.attributes.get("start")
            stop = node.attributes.get("end")
            part = slice(start.value if start else None, stop.value if stop else None)
            masked = np.array([m is not None for m in self.of(tensor)])[part]
            sizes = np.array([s if isinstance(s, int) else 0 for s in tensor.sizes])[part]
            rest = builder.node(
                "Shape", [node.inputs[0]], {k: a.value for k, a in node.attributes.items()}
            )
            made = builder.Where(
                builder.constant(masked, f"{name}/cut"),
                builder.constant(sizes, name),
                rest.outputs[0],
            )
            made.type, made.shape = output.type, output.shape
        output.replace_all_uses_with(made, replace_graph_outputs=True)
        remove_dead([node])
        self._forget(source)

    # --- afterwards -------------------------------------------------------------------------

    def _expected(self) -> dict[ir.Value, tuple[Any, ...]]:
        """Sizes after the cut of every value that the cut reaches."""
        expected: dict[ir.Value, tuple[Any, ...]] = {}
        for slots in self.axes.tensors.values():
            for t in slots.values():
                masks = self.of(t)
                if t.value not in expected and any(m is not None for m in masks):
                    expected[t.value] = tuple(
                        int(m.sum()) if m is not None else s
                        for m, s in zip(masks, t.sizes, strict=True)
                    )
        return expected

    def _annotate(self) -> None:
        for slots in self.axes.tensors.values():
            for t in slots.values():
                masks = self.of(t)
                if t.value.shape is None or constant_value(t.value) is not None:
                    continue
                if any(m is not None for m in masks):
                    t.value.shape = ir.Shape(
                        [
                            int(m.sum()) if m is not None else d
                            for m, d in zip(masks, t.value.shape.dims, strict=True)
                        ]
                    )

    def _verify(self, expected: dict[ir.Value, tuple[Any, ...]]) -> None:
        """Infer all shapes anew: what broadcasting or a wrong size would hide shows here."""
        shapes = Shapes(self.model, {}, trust=False)
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
