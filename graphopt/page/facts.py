"""What a page says of each node: shapes, weights, MACs, bytes, time by profile, error."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from graphopt.analyses.cost import cost
from graphopt.analyses.shapes.analysis import at_sizes
from graphopt.backend import Arrays, backend_of
from graphopt.context import Context
from graphopt.differing.flow import Flow
from graphopt.drawing.scene import Facts
from graphopt.errors import GraphOptError
from graphopt.target import Target

__all__ = ["facts_of", "profile"]


def facts_of(
    flow: Flow,
    ctx: Context,
    ms: Mapping[str, float] | None = None,
    errors: Mapping[str, float] | None = None,
) -> dict[str, Facts]:
    """The facts of every node by its name.

    Args:
        flow: the graph.
        ctx: a context of its model, with concrete shapes.
        ms: milliseconds of one run by node, as the runtime calls them.
        errors: relative L2 to the source by node.
    """
    costs, sizes, times = ctx.get(cost).nodes, at_sizes(ctx), _by_node(flow, ms or {})
    found = {}
    for node, name, read in zip(flow.nodes, flow.names, flow.reads, strict=True):
        made = [sizes.static(v) or (v.shape.dims if v.shape else None) for v in node.outputs]
        held = [t for v in read for t in _held(flow, v)]
        largest = sorted((t for t in held if t.size > 1), key=lambda t: -t.size)
        known = costs.get(name)
        found[name] = Facts(
            shapes=", ".join(_shape(dims) for dims in made),
            weights=", ".join(f"{_shape(t.shape.dims)} {t.dtype.name.lower()}" for t in largest),
            macs=known.macs if known else None,
            bytes=sum(t.nbytes for t in held),
            ms=times.get(name),
            error=(errors or {}).get(name),
        )
    return found


def profile(ctx: Context, target: Target, feeds: Arrays) -> dict[str, float]:
    """Milliseconds by node on a target; nothing where it cannot be timed here."""
    backend = backend_of(target)
    if backend is None or not target.measured:
        return {}
    try:
        with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
            path = backend.lower(ctx.model, target, Path(folder, "model.onnx"))
            return backend.profile(path, feeds, target)
    except GraphOptError:
        return {}


def _by_node(flow: Flow, ms: Mapping[str, float]) -> dict[str, float]:
    """Times by the graph's own nodes: a runtime calls what it made of some by an output of theirs.

    ONNX Runtime's node in blocked layout is `NAME_nchwc`, NAME the last output of what it fused.
    """
    known = {
        v.name: name for n, name in zip(flow.nodes, flow.names, strict=True) for v in n.outputs
    }
    known |= {name: name for name in flow.names}
    found: dict[str, float] = {}
    for called, time in ms.items():
        name = known.get(called) or known.get(called.removesuffix("_nchwc"))
        if name is not None:
            found[name] = found.get(name, 0.0) + time
    return found


def _held(flow: Flow, value: ir.Value | None) -> list[ir.TensorProtocol]:
    """The constants that a read value is made of: itself, or what is dequantized."""
    tensor = flow.constant(value)
    if tensor is not None:
        return [tensor]
    k = flow.maker(value)
    if k is None or flow.nodes[k].op_type != "DequantizeLinear":
        return []
    found = [flow.constant(v) for v in flow.reads[k] if v is not None]
    return [t for t in found if t is not None] if all(t is not None for t in found) else []


def _shape(dims: Sequence[object] | None) -> str:
    return "?" if dims is None else "×".join(map(str, dims)) or "scalar"
