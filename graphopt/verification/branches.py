"""Branch coverage: the branches of a model that none of the runs it is compared on takes."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from graphopt.errors import ModelError
from graphopt.execution.observe import observe
from graphopt.execution.runtime import Arrays

__all__ = ["untaken"]


def untaken(model: ir.Model, runs: Iterable[Arrays]) -> list[str]:
    """The branches of the main graph's Ifs that no run takes, as "NODE (then)" or "NODE (else)"."""
    ifs = [n for n in model.graph if n.op_type == "If" and n.domain in ("", "ai.onnx")]
    conditions = [(n, n.inputs[0].name) for n in ifs if n.inputs and n.inputs[0] is not None]
    if not conditions:
        return []
    seen: set[tuple[str | None, bool]] = set()
    try:
        for values in observe(model, [c for _, c in conditions if c], runs):
            seen |= {(name, bool(x.ravel()[0])) for name, x in values.items() if x.size == 1}
            if len(seen) == 2 * len({c for _, c in conditions}):
                return []
    except (KeyError, ModelError):  # a condition that is no value of the main graph
        return []
    return [
        f"{node.name} ({branch})"
        for node, condition in conditions
        for branch, truth in (("then", True), ("else", False))
        if (condition, truth) not in seen
    ]
