"""Initializers that are graph inputs too: defaults that callers may override, or an old habit."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["without_habit"]

#: So many initializers, a matrix among them, are no defaults for callers to override, where all are
#: inputs: a few scalars may be.
MANY = 4


def without_habit(model: ir.Model) -> tuple[ir.Model, str]:
    """A copy whose initializers are no inputs where listing them says nothing; a word on it.

    Before IR version 4 every initializer was listed as an input, and no runtime lets callers set
    those. From then on such an input is a default that a caller may override; but exporters went
    on to list all that there are, and who lists every weight of a network means none of them.
    """
    held = model.graph.initializers
    listed = [v for v in model.graph.inputs if v.name in held]
    old = model.ir_version < 4
    if not listed:
        return model, ""
    matrices = any(v.shape is not None and len(v.shape) > 1 for v in held.values())
    if not old and not (matrices and len(listed) == len(held) >= MANY):
        names = ", ".join(f"'{v.name}'" for v in listed[:3])
        more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
        return model, f"Callers may override {names}{more}: what is an input too is not folded."
    model = model.clone()
    model.graph.inputs[:] = [v for v in model.graph.inputs if v.name not in held]
    model.ir_version = max(model.ir_version, 4)
    if old:
        return model, ""
    return model, (
        f"All {len(listed)} initializers were inputs too, as exporters once listed them: they are "
        "constants now, which callers cannot set."
    )
