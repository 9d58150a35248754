"""Control flow: If, Loop and Scan.

A condition that is the same on every run is decided here. Any other subgraph becomes a GraphModule
of its own, a submodule without parameters that is handed what it reads from outside, and one Python
function a kind of control flow calls it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch

from graphopt.errors import ModelError

__all__ = ["TABLE", "branch", "iterate", "scan"]


def branch(
    condition: Any, then: Any, otherwise: Any, then_reads: Sequence[Any], else_reads: Sequence[Any]
) -> tuple[Any, ...]:
    """The outputs of one of two modules."""
    done: tuple[Any, ...] = then(*then_reads) if bool(condition) else otherwise(*else_reads)
    return done


def iterate(
    body: Any, reads: Sequence[Any], trips: Any, condition: Any, state: Sequence[Any]
) -> tuple[Any, ...]:
    """Run `body` until it says so or `trips` are over: the last state, then all it collected."""
    state, collected, k = tuple(state), [], 0
    goes_on = True if condition is None else bool(condition)
    device = next((x.device for x in (*reads, *state) if isinstance(x, torch.Tensor)), None)
    while goes_on and (trips is None or k < int(trips)):
        step = torch.tensor(k, dtype=torch.int64, device=device)
        on = torch.tensor(True, device=device)
        done = body(*reads, step, on, *state)
        goes_on, k = bool(done[0]), k + 1
        state = done[1 : 1 + len(state)]
        collected.append(done[1 + len(state) :])
    return (*state, *_stacked(collected))


def _stacked(collected: Sequence[Sequence[Any]]) -> list[Any]:
    return [torch.stack(rows, 0) for rows in zip(*collected, strict=True)]


def scan(
    body: Any,
    reads: Sequence[Any],
    state: Sequence[Any],
    inputs: Sequence[Any],
    ways: tuple[list[int], list[int], list[int], list[int]],
) -> tuple[Any, ...]:
    """`body` over slices of `inputs`: the last state, then what it gave, stacked.

    `ways`: axes and directions of inputs, axes and directions of outputs.
    """
    axes, backward, out_axes, out_backward = ways
    slices = [x.unbind(a) for x, a in zip(inputs, axes, strict=True)]
    slices = [s[::-1] if b else s for s, b in zip(slices, backward, strict=True)]
    state, collected = tuple(state), []
    for row in zip(*slices, strict=True):
        done = body(*reads, *state, *row)
        state = done[: len(state)]
        collected.append(done[len(state) :])
    outputs = []
    for k, rows in enumerate(zip(*collected, strict=True)):
        outputs.append(torch.stack(rows[::-1] if out_backward[k] else rows, out_axes[k]))
    return (*state, *outputs)


def _outputs(op: Any, done: Any) -> tuple[Any, ...]:
    return tuple(op.call(operator.getitem, done, k) for k in range(len(op.node.outputs)))


def _graph(op: Any, name: str) -> ir.Graph:
    graph: ir.Graph = op.node.attributes[name].as_graph()
    return graph


def _if(op: Any, condition: Any) -> Any:
    fixed = op.constant(0)
    if fixed is not None:
        graph = _graph(op, "then_branch" if bool(fixed.reshape(-1)[0]) else "else_branch")
        op.body.run(graph)
        return tuple(op.body.tensor(v) for v in graph.outputs)
    parts = [op.body.nested(_graph(op, name)) for name in ("then_branch", "else_branch")]
    (then, then_reads), (otherwise, else_reads) = parts
    return _outputs(op, op.call(branch, condition, then, otherwise, then_reads, else_reads))


def _loop(op: Any, trips: Any = None, condition: Any = None, *state: Any) -> Any:
    body, reads = op.body.nested(_graph(op, "body"))
    return _outputs(op, op.call(iterate, body, reads, trips, condition, state))


def _scan(op: Any, *values: Any) -> Any:
    if op.opset < 9:
        raise ModelError("Scan of opset 8 is not lowered; raise the model's opset")
    graph = _graph(op, "body")
    count = op.attribute("num_scan_inputs")
    kept = len(values) - count
    given = len(graph.outputs) - kept
    ways = (
        op.attribute("scan_input_axes") or [0] * count,
        op.attribute("scan_input_directions") or [0] * count,
        op.attribute("scan_output_axes") or [0] * given,
        op.attribute("scan_output_directions") or [0] * given,
    )
    body, reads = op.body.nested(graph)
    return _outputs(op, op.call(scan, body, reads, values[:kept], values[kept:], ways))


TABLE: dict[str, Callable[..., Any]] = {"If": _if, "Loop": _loop, "Scan": _scan}
