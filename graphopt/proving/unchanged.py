"""Operators that hand on one of their inputs as it is, whatever its shape: laws of congruence.

Identity(x) = Dropout(x) = Cast(x: T, T) = x; x + 0 = x - 0 = x * 1 = x / 1 = x for scalars 0 and 1;
x[0:end] = x; Neg(Neg(x)) = Not(Not(x)) = x; Squeeze(Unsqueeze(x, k), k) = x, and the other way.
Zeros of either sign are one number here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.proving.terms import Term

__all__ = ["unchanged"]

#: The number that does nothing, and whether it may be the first operand.
_NEUTRAL = {"Add": (0, True), "Sub": (0, False), "Mul": (1, True), "Div": (1, False)}
_INVERSE = {"Neg": "Neg", "Not": "Not", "Squeeze": "Unsqueeze", "Unsqueeze": "Squeeze"}
#: No axis is longer.
_BEYOND = 2**31 - 1


def unchanged(node: ir.Node, args: Sequence[Term | None], opset: int) -> Term | None:
    """The argument that the first output of a standard operator is, if it is one."""
    x = args[0] if args else None
    if x is None:
        return None
    match node.op_type:
        case "Identity":
            return x
        case "Cast":
            to = node.attributes["to"].value
            return x if x.dtype is not None and x.dtype.value == to else None
        case "Dropout":
            return x if _no_dropout(node, args, opset) else None
        case "Slice":
            return x if opset >= 10 and _of_all(args) else None
        case "Add" | "Sub" | "Mul" | "Div":
            return _beside_neutral(node.op_type, args)
        case "Neg" | "Not" | "Squeeze" | "Unsqueeze":
            undone = x.op == _INVERSE[node.op_type] and list(x.args[1:]) == list(args[1:])
            told = node.op_type in ("Neg", "Not") or len(args) == 2
            return x.args[0] if undone and told else None
    return None


def _no_dropout(node: ir.Node, args: Sequence[Term | None], opset: int) -> bool:
    if any(o.uses() for o in node.outputs[1:]):
        return False
    if opset < 7:
        return bool("is_test" in node.attributes and node.attributes["is_test"].value)
    mode = args[2] if len(args) > 2 else None
    return mode is None or (mode.op == "const" and not mode.array().any())


def _of_all(args: Sequence[Term | None]) -> bool:
    """Whether a Slice starts at 0, ends beyond any axis and leaves nothing out between."""
    starts, ends = args[1:3]
    steps = args[4] if len(args) > 4 else None
    if starts is None or ends is None or {starts.op, ends.op} != {"const"}:
        return False
    if steps is not None and (steps.op != "const" or (steps.array() != 1).any()):
        return False
    return not starts.array().any() and bool((ends.array() >= _BEYOND).all())


def _beside_neutral(op: str, args: Sequence[Term | None]) -> Term | None:
    """The other operand of a scalar that does nothing to it, in any shape."""
    number, either = _NEUTRAL[op]
    x, y = args
    for one, other in ((x, y), (y, x)) if either else ((x, y),):
        if other is not None and other.op == "const" and other.dims == ():
            held = other.array()
            if held.dtype.kind in "fiu" and bool(np.all(held == number)):
                return one
    return None
