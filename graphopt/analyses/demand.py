"""Memory and steps that running a model takes: what is too much to run here is not run.

A file of a few bytes may describe values of many gigabytes, or a loop without end. Allowed is what
stands in proportion to the weights and inputs that the model reads.
"""

from __future__ import annotations

import math

from graphopt.analyses.cost import constant_trips, cost
from graphopt.context import Context
from graphopt.graph.traverse import all_nodes, subgraphs
from graphopt.samples.inputs import inputs_of

__all__ = ["allowed_bytes", "too_much"]

#: Bytes that the values of any model may take, and how many for each byte of weights and inputs.
BASE, FACTOR = 1 << 28, 64
#: Most runs of nodes in loops whose number of trips is a constant.
STEPS = 1 << 24


def too_much(ctx: Context) -> str:
    """Why the context's model is not to be run at its bound shapes; "" if it may be."""
    needed, allowed = ctx.get(cost).peak_activation_bytes, allowed_bytes(ctx)
    if needed > allowed:
        return f"its values need {needed / 1e9:,.1f} GB: too large to run here"
    for node in all_nodes(ctx.model.graph):
        trips = constant_trips(node)
        inside = sum(1 for graph in subgraphs(node) for _ in graph.all_nodes())
        if trips * inside > STEPS:
            return f"{node.op_type} '{node.name}' runs {trips:.3g} times: too often to run here"
    return ""


def allowed_bytes(ctx: Context) -> int:
    """Bytes that the values of the context's model may take at once."""
    read = ctx.get(cost).param_bytes
    for one in inputs_of(ctx.model):
        read += math.prod(ctx.shapes.get(one.name, ())) * one.dtype.itemsize
    return BASE + FACTOR * read
