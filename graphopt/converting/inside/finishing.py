"""Operators behind what a converter wrote, for scripts of the child alone."""

from typing import Any

__all__ = ["then", "with_opset"]

#: The operators that are added are those of this opset.
OPSET = 13


def then(made: Any, op: str) -> None:
    """Let `op` make the output of what did; with two inputs it reads what that one read too."""
    import onnx

    (out,), last = made.graph.output, made.graph.node[-1]
    last.output[0] = f"before_{op}"
    read = [last.input[0], last.output[0]] if op == "Mul" else [last.output[0]]
    made.graph.node.append(onnx.helper.make_node(op, read, [out.name]))
    with_opset(made)


def with_opset(made: Any) -> None:
    """Let a model of trees, which may name none, have the standard's operators."""
    import onnx

    held = next((o for o in made.opset_import if o.domain == ""), None)
    if held is None:
        made.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    else:
        held.version = max(held.version, OPSET)
