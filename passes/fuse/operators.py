"""Which operator a rule may write: the target's word, and the opset a fusion would need."""

from __future__ import annotations

import importlib.util

import onnx_ir as ir

from graphopt import Context

__all__ = ["OPSET", "has", "raise_opset", "standard"]

#: In `ctx.facts`: the lowest default-domain opset that a fusion refused for want of.
OPSET = "fuse.opset"


def has(ctx: Context, name: str) -> bool:
    """Whether the target has the operator `name` ("domain:Name") outside the standard."""
    return name in ctx.target.operators


def standard(ctx: Context, name: str, since: int) -> bool:
    """Whether the standard operator `name`, of opset `since`, may be written into the model.

    If the model's opset is too low and the target accepts a higher one, the wish is left in
    `ctx.facts`: `Fuse` raises the opset once and lets the rules try again.
    """
    if name in ctx.target.lacks or since > ctx.target.opset:
        return False
    imports = ctx.model.graph.opset_imports
    have = imports.get("", imports.get("ai.onnx", 1))
    if have >= since:
        return True
    ctx.facts[OPSET] = max(since, ctx.facts.get(OPSET, 0))
    return False


def raise_opset(model: ir.Model, version: int) -> bool:
    """Bring the model to a newer default-domain opset; False if an operator in it cannot go."""
    if importlib.util.find_spec("graphopt.io") is None:
        return False
    if importlib.util.find_spec("graphopt.io.opset") is None:
        return False
    module = importlib.import_module("graphopt.io.opset")
    return bool(module.raise_opset(model, version))
