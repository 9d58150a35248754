"""Operator availability: what the target has, and the opset that a fusion would need."""

from __future__ import annotations

from typing import Any

from graphopt import Bind, Context, Refused
from graphopt.rewriting.rules import Verdict

__all__ = ["STUCK", "WANTED", "available", "has", "reachable", "standard"]

#: In `ctx.scratch`: the lowest default-domain opset that a fusion waits for.
WANTED = "fuse.opset"
#: In `ctx.scratch`: the model's opset cannot be raised.
STUCK = "fuse.stuck"


def has(ctx: Context, name: str) -> bool:
    """Whether the target has the operator `name` ("domain:Name") outside the standard."""
    return name in ctx.target.operators


def _opset(ctx: Context) -> int:
    imports = ctx.model.graph.opset_imports
    return imports.get("", imports.get("ai.onnx", 1))


def reachable(ctx: Context, name: str, since: int) -> bool:
    """Whether the standard operator `name`, of opset `since`, could be written into the model."""
    if name in ctx.target.lacks:
        return False
    return _opset(ctx) >= since or (since <= ctx.target.opset and STUCK not in ctx.scratch)


def standard(ctx: Context, name: str, since: int) -> bool:
    """Whether the standard operator `name`, of opset `since`, may be written into the model now.

    Ask last: if the target accepts a higher opset than the model has, the wish is left in
    `ctx.scratch`, and `Fuse` raises the opset once and lets the rules try again.
    """
    if not reachable(ctx, name, since):
        return False
    if _opset(ctx) >= since:
        return True
    ctx.scratch[WANTED] = max(since, ctx.scratch.get(WANTED, 0))
    return False


def available(ctx: Context, name: str, since: int, **bound: Any) -> Verdict:
    """The last word of a `check` before it writes a standard operator: `Bind(**bound)` if it may.

    No match where the opset has to be raised first (see `standard`).
    """
    if not reachable(ctx, name, since):
        return Refused(f"the target has no {name} at this opset")
    return Bind(**bound) if standard(ctx, name, since) else None
