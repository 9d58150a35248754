"""What an input means, from what the graph does with it and from its name.

An input's values are followed through operators that only move or cast them (Cast, Unsqueeze,
Slice, ...) to the operators that use them: the rows of an embedding table bound the ids that
index it, a comparison makes an integer a mask, a shape makes it a size.
"""

from __future__ import annotations

import dataclasses
import re
from collections import deque
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from graphopt.graph.attributes import attribute
from graphopt.graph.constants import constant_value
from graphopt.graph.ensembles import DOMAIN
from graphopt.graph.traverse import RECURRENT
from graphopt.samples.first_axis import first_axis
from graphopt.samples.thresholds import Thresholds, thresholds_of

__all__ = ["Kind", "Meaning", "meaning_of"]

Kind = Literal[
    "ids", "mask", "additive_mask", "positions", "lengths", "flag", "image", "bytes", "fixed",
    "timestep", "grid", "positive", "normal", "text", "split",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Meaning:
    """What to draw for an input.

    Attributes:
        kind: which way.
        high: values are below this (ids, positions) or at most this (images), if known.
        rows: for ids, names of axes that they count along: values are below their sizes too.
        value: for "fixed", the value of all elements.
        thresholds: for "split", what trees compare each column with.
        words: for "text", those that encoders know.
    """

    kind: Kind
    high: int | None = None
    rows: frozenset[str] = frozenset()
    value: float = 0.0
    thresholds: Thresholds = ()
    words: tuple[str, ...] = ()


#: Attributes of encoders that hold the texts that they know.
_WORDS = ("cats_strings", "keys_strings")
#: Operators that move or cast elements of these inputs without changing what they mean.
_MOVES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("Cast", "CastLike", "Identity", "Unsqueeze", "Squeeze", "Reshape"), (0,)),
    **dict.fromkeys(("Flatten", "Transpose", "Slice", "Expand", "Split", "Tile"), (0,)),
    **dict.fromkeys(("Dropout", "Clip", "Pad", "Gather", "GatherElements", "GatherND"), (0,)),
    "Concat": tuple(range(64)),
    "Where": (1, 2),
}
#: Operators that index an input with another: op -> [(index input, data input)].
_INDEXES: dict[str, tuple[tuple[int, int], ...]] = {
    **dict.fromkeys(("Gather", "GatherElements", "GatherND", "ScatterElements"), ((1, 0),)),
    **dict.fromkeys(("Scatter", "ScatterND", "GatherBlockQuantized"), ((1, 0),)),
    "EmbedLayerNormalization": ((0, 2), (1, 4)),
}
#: What operators call the axis that they index, where that is not "axis".
_AXIS = {"GatherBlockQuantized": "gather_axis"}
#: Inputs that say a size, an axis or a position in a shape, and a value that always works.
_SIZES: dict[tuple[str, int], float] = {
    ("Reshape", 1): 1, ("Expand", 1): 1, ("ConstantOfShape", 0): 2, ("Tile", 1): 1,
    ("Range", 0): 0, ("Range", 1): 4, ("Range", 2): 1, ("TopK", 1): 1, ("Loop", 0): 3,
    ("Slice", 1): 0, ("Slice", 2): 2**31 - 1, ("Slice", 3): 0, ("Slice", 4): 1,
    ("Pad", 1): 0, ("Resize", 2): 1, ("OneHot", 1): 16, ("Trilu", 1): 0, ("Squeeze", 1): 0,
    ("Unsqueeze", 1): 0, ("CumSum", 1): 0, ("RoiAlign", 2): 0, ("DFT", 1): 8,
    ("Dropout", 1): 0, ("Dropout", 2): 0, ("BatchNormalization", 4): 1,
}  # fmt: skip
_COMPARES = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "And"})
#: Names that tell where the graph does not.
_MASK = re.compile(r"mask|valid", re.I)
_POSITION = re.compile(r"position|pos_ids", re.I)
_LENGTH = re.compile(r"(^|_)(len|lens|length|lengths|seq_?len\w*)(_|$)", re.I)
_TIMESTEP = re.compile(r"^t$|time_?step|sigma", re.I)
_FLOATS = "fV"  # V: bfloat16 and its like


@dataclasses.dataclass(frozen=True)
class _Use:
    node: ir.Node
    index: int
    offset: float


def meaning_of(value: ir.Value, model: ir.Model) -> Meaning:
    """What to draw for the input `value` of `model`'s main graph."""
    assert value.dtype is not None
    kind = np.dtype(value.dtype.numpy()).kind
    name = value.name or ""
    uses = list(_uses(value, model))
    if kind == "O":
        known = [attribute(u.node, n, ()) for u in uses for n in _WORDS if u.node.domain == DOMAIN]
        return Meaning("text", words=tuple(w for words in known for w in words or ()))
    fixed = next((u for u in uses if (u.node.op_type, u.index) in _SIZES), None)
    found = [n for u in uses for n in _limits(u)]
    limits = [n for n in found if not isinstance(n, str)]
    rows = frozenset(n for n in found if isinstance(n, str))
    high = max(int(min(limits)), 1) if limits else None
    if any(u.node.op_type in RECURRENT and u.index == 4 for u in uses):
        return Meaning("lengths")
    if high is not None and _POSITION.search(name):
        return Meaning("positions", high)
    if high is not None or rows:
        return Meaning("ids", high, rows)
    if fixed is not None:
        return Meaning("fixed", value=_SIZES[fixed.node.op_type, fixed.index])
    asked = next((k for u in uses if (k := _asked_for(u)) is not None), None)
    if asked is not None and kind in "iu" and value.shape is not None and _single(value.shape):
        return Meaning("fixed", value=asked)
    if kind in _FLOATS:
        return _float_meaning(value, name, uses)
    if kind == "b":
        flag = any(u.node.op_type in ("If", "Loop") for u in uses)
        return Meaning("flag" if flag else "mask")
    if _MASK.search(name) or (kind == "i" and any(_makes_mask(u) for u in uses)):
        return Meaning("mask")
    if _POSITION.search(name):
        return Meaning("positions")
    if _LENGTH.search(name):
        return Meaning("lengths")
    if value.dtype.itemsize == 1:
        return Meaning("bytes")
    return Meaning("ids", 1000 if _TIMESTEP.search(name) else 10)


def _float_meaning(value: ir.Value, name: str, uses: list[_Use]) -> Meaning:
    if _MASK.search(name):
        adds = any(u.node.op_type in ("Add", "Sum") for u in uses)
        return Meaning("additive_mask" if adds else "mask")
    thresholds = thresholds_of(value)
    if thresholds:
        return Meaning("split", thresholds=thresholds)
    if any(u.node.op_type == "GridSample" and u.index == 1 for u in uses):
        return Meaning("grid")
    if _TIMESTEP.search(name):
        return Meaning("timestep", 1000)
    if any(u.node.op_type in ("Log", "Sqrt") for u in uses):
        return Meaning("positive")
    dims = tuple(value.shape) if value.shape is not None else ()
    if len(dims) == 4 and {dims[1], dims[3]} & {1, 3, 4}:
        return Meaning("image", _brightest(value))
    return Meaning("normal")


def _brightest(value: ir.Value) -> int | None:
    """255 or 1 if the model itself scales pixels of that range, None if it takes them scaled."""
    for node, index in value.uses():
        if node.op_type not in ("Div", "Mul", "Sub") or len(node.inputs) != 2:
            continue
        constant = _constant(node.inputs[1 - index])
        if constant is None:
            continue
        size = float(np.abs(constant).max())
        if node.op_type == "Sub":
            return 255 if size > 1 else 1
        return 255 if (size > 10) == (node.op_type == "Div") else 1
    return None


def _uses(value: ir.Value, model: ir.Model) -> Iterator[_Use]:
    """Where the elements of `value` end up, with what was added to them on the way."""
    todo = deque([(value, 0.0)])
    seen = {value}

    def follow(values: tuple[ir.Value, ...], offset: float) -> None:
        for one in values:
            if one not in seen:
                seen.add(one)
                todo.append((one, offset))

    while todo:
        current, offset = todo.popleft()
        for node, index in current.uses():
            function = model.functions.get(node.op_identifier())
            if function is not None:
                follow((function.inputs[index],), offset)
                continue
            yield _Use(node, index, offset)
            op = node.op_type
            if index in _MOVES.get(op, ()) and not _to_bool(node):
                follow(tuple(node.outputs), offset)
            elif op in ("Add", "Sub") and (op == "Add" or index == 0):
                constant = _constant(node.inputs[1 - index])
                if constant is not None and constant.size and constant.dtype.kind in "iu":
                    extra = constant.max() if op == "Add" else -constant.min()
                    follow(tuple(node.outputs), offset + float(extra))


def _limits(use: _Use) -> Iterator[float | str]:
    """Least sizes of what this use indexes, and names of axes that it counts along."""
    node = use.node
    for index, data in _INDEXES.get(node.op_type, ()):
        if index != use.index or data >= len(node.inputs):
            continue
        held = node.inputs[data]
        several = node.op_type in ("GatherND", "ScatterND")
        axis = 0 if several else attribute(node, _AXIS.get(node.op_type, "axis"), 0)
        named = first_axis(held) if axis == 0 and held is not None and not use.offset else None
        if named is not None:
            yield named
        dims = _dims(held)
        if dims is None:
            continue
        if several:
            sizes = dims[: _indexed(node.inputs[index])]
        elif -len(dims) <= axis < len(dims):
            sizes = [dims[axis]]
        else:
            continue
        yield from (d - use.offset for d in sizes if d is not None)
    if node.op_type == "OneHot" and use.index == 0:
        depth = _constant(node.inputs[1])
        if depth is not None:
            yield float(depth.reshape(-1)[0])


def _indexed(indices: ir.Value | None) -> int | None:
    """How many leading axes rows of indices count along; None if it is not known: all, perhaps."""
    last = (_dims(indices) or [None])[-1]
    return last if isinstance(last, int) else None


def _makes_mask(use: _Use) -> bool:
    node = use.node
    if node.op_type in _COMPARES or (node.op_type == "Where" and use.index == 0):
        return True
    if _to_bool(node):
        return True
    minuend = _constant(node.inputs[0]) if node.op_type == "Sub" and use.index == 1 else None
    return minuend is not None and bool((minuend == 1).all())


def _asked_for(use: _Use) -> float | None:
    """The one number that an input is compared with for equality (a sampling rate, a mode)."""
    if use.node.op_type != "Equal":
        return None
    constant = _constant(use.node.inputs[1 - use.index])
    return float(constant.reshape(-1)[0]) if constant is not None and constant.size == 1 else None


def _single(shape: ir.Shape) -> bool:
    return all(d == 1 for d in shape)


def _to_bool(node: ir.Node) -> bool:
    return node.op_type == "Cast" and attribute(node, "to") == ir.DataType.BOOL


def _constant(value: ir.Value | None) -> np.ndarray[Any, Any] | None:
    tensor = constant_value(value)
    return tensor.numpy() if tensor is not None and tensor.size <= 4096 else None


def _dims(value: ir.Value | None) -> list[int | None] | None:
    """The sizes of a value, looked for behind what stores it in another type."""
    while value is not None:
        shape = value.const_value.shape if value.const_value is not None else value.shape
        if shape is not None:
            return [d if isinstance(d, int) else None for d in shape]
        node = value.producer()
        if node is None or node.op_type not in ("Cast", "DequantizeLinear", "Identity"):
            return None
        value = node.inputs[0]
    return None
