"""Quantization plan: which nodes become integer and how, grown outward from those with weights.

static    ranges are known before: Q/DQ around the node
dynamic   ranges are found at run time: MatMul, Gemm, LSTM where the target prefers it
blocks    ranges are found at run time, one for each block of a row: what 8 bits a row would spoil
          and what stands in branches, whose values no calibration sees
table     an embedding looked up in int8
stored    a float node that reads its weight from int8
followers nodes all of whose activations already are integers: they join at no cost, since
          a float follower would need each of them dequantized
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Literal, Protocol

import onnx_ir as ir
from graphopt.passes.int8 import embeddings, recurrent
from graphopt.passes.int8.captured import read_inside
from graphopt.passes.int8.operators import FEW_BITS, Operator, clamp_after, describe
from graphopt.passes.int8.stored import weights_to_store
from graphopt.passes.int8.unfolding import unfolds
from graphopt.passes.weight_only.writer import reads_floats

from graphopt.analyses.linear import linear_of
from graphopt.graph.constants import weight_of
from graphopt.graph.traverse import RECURRENT, all_nodes, inner_nodes
from graphopt.target import Target

__all__ = ["BLOCK", "FOLDS", "Choice", "Mode", "Plan", "Quantize", "make_plan", "reads_blocks"]

#: Parts of the samples, each of which is judged with ranges found on the others.
FOLDS = 2

Mode = Literal["static", "dynamic", "blocks", "table", "lstm"]

#: Operators that compute with a weight and start an integer region.
CORE = frozenset({"Conv", "Gemm", "MatMul"})
POOLS = frozenset({"AveragePool", "GlobalAveragePool", "MaxPool"})
#: Elements of a block: scales are a sixteenth of the integers then.
BLOCK = 64
#: A product of integers with a float result and bias, in one operator.
PRODUCT = "com.microsoft:MatMulIntegerToFloat"


@dataclasses.dataclass
class Plan:
    """What to make integer; every dict is in graph order.

    Attributes:
        nodes: the static nodes, and what each operator is.
        clamps: Relu and Clip nodes that belong to the integer node before them, by that node.
        joined: static products with a float result, to be written as the target's own operator.
        dynamic: nodes whose activations are quantized at run time.
        blocks: products (convolutions unfolded) that round both operands block by block.
        tables, recurrent: lookups and LSTMs to make integer.
        wide: static nodes whose activations have 16 bits.
        left: nodes with weights that stay float, and why.
        stored: float nodes that read weights from integers, at which positions, of how many bits.
    """

    nodes: dict[ir.Node, Operator] = dataclasses.field(default_factory=dict)
    clamps: dict[ir.Node, ir.Node] = dataclasses.field(default_factory=dict)
    joined: list[ir.Node] = dataclasses.field(default_factory=list)
    dynamic: dict[ir.Node, Operator] = dataclasses.field(default_factory=dict)
    blocks: list[ir.Node] = dataclasses.field(default_factory=list)
    tables: list[ir.Node] = dataclasses.field(default_factory=list)
    recurrent: list[ir.Node] = dataclasses.field(default_factory=list)
    wide: set[ir.Node] = dataclasses.field(default_factory=set)
    left: dict[ir.Node, str] = dataclasses.field(default_factory=dict)
    stored: dict[ir.Node, tuple[tuple[int, ...], int]] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        products = len(self.nodes) + len(self.dynamic) + len(self.blocks)
        return products + len(self.tables) + len(self.recurrent)

    def modes(self) -> dict[ir.Node, Mode]:
        """How each planned node becomes integer."""
        found: dict[ir.Node, Mode] = dict.fromkeys(self.nodes, "static")
        found.update(dict.fromkeys(self.dynamic, "dynamic"))
        found.update(dict.fromkeys(self.blocks, "blocks"))
        found.update(dict.fromkeys(self.tables, "table"))
        found.update(dict.fromkeys(self.recurrent, "lstm"))
        return found

    def output(self, node: ir.Node) -> ir.Value:
        """The value that carries the result of static node `node`."""
        return self.clamps.get(node, node).outputs[0]

    def whole(self, node: ir.Node) -> bool:
        """Whether every user of static node `node` reads its result rounded."""
        if self.nodes[node].output != "either":
            return True
        value = self.output(node)
        return not value.is_graph_output() and all(
            use.node in self.nodes and use.idx in self.nodes[use.node].data for use in value.uses()
        )

    def made_by(self) -> dict[ir.Value, ir.Node]:
        """Static node by the values that carry its results."""
        found: dict[ir.Value, ir.Node] = {}
        for node in self.nodes:
            for value in node.outputs:
                found[value] = node
            found[self.output(node)] = node
        return found


@dataclasses.dataclass(frozen=True)
class Choice:
    """What was decided of single nodes, by name.

    Attributes:
        left: stay float, and why.
        bits: of the weights of what stays float, where not 8: 12, 16, or 0 for as they are.
        forms: become integer in another form than the target's own choice.
        nearest: weights are rounded to the nearest integers, not for what they multiply.
        fitted: ranges are those that leave the least error in what reads them, not all that the
            calibrator saw.
    """

    left: Mapping[str, str] = dataclasses.field(default_factory=dict)
    bits: Mapping[str, int] = dataclasses.field(default_factory=dict)
    forms: Mapping[str, str] = dataclasses.field(default_factory=dict)
    nearest: bool = False
    fitted: bool = False


class Quantize(Protocol):
    """Makes a model integer in place as chosen; returns what it planned.

    `fold` is the part of the samples (of `FOLDS`) that ranges may not know; None: they know all.
    """

    def __call__(self, model: ir.Model, chosen: Choice, fold: int | None = None, /) -> Plan: ...


def make_plan(
    graph: ir.Graph,
    target: Target,
    allowed: Callable[[ir.Node, Mode], str | None],
    *,
    static: bool = True,
    forms: Mapping[str, str] | None = None,
    bits: Callable[[ir.Node], int] = lambda _: 0,
) -> Plan:
    """The nodes of `graph` to make integer.

    Args:
        graph: the main graph.
        target: its scheme says which operators gain, and how.
        allowed: the reason why a node must stay float in this mode, or None. Asked last.
        static: whether ranges are to be had; without samples they are not.
        forms: by node name, the mode of a product that is not to be the target's own choice.
        bits: of how many bits a float node reads its weights; 0 leaves them float. Asked last.
    """
    plan = Plan()
    integer: set[ir.Value] = set()
    assert target.int8 is not None
    scheme = target.int8

    def take(node: ir.Node, mode: Mode, nodes: list[ir.Node]) -> None:
        reason = allowed(node, mode)
        if reason is None:
            nodes.append(node)
        else:
            plan.left[node] = reason

    for node in graph:
        if node.op_type in RECURRENT and node.domain in ("", "ai.onnx"):
            _recurrent(plan, node, target, allowed)
            continue
        if node.op_type == "Gather" and weight_of(node.inputs[0]) is not None:
            if "Gather" in scheme.operators and embeddings.why_not(node) is None:
                take(node, "table", plan.tables)
            continue
        kind = describe(node)
        if kind is None:
            continue
        core = node.op_type in CORE
        if isinstance(kind, str):
            if core:
                plan.left[node] = kind
            continue
        follows = _follows(node, kind, integer)
        form = (forms or {}).get(node.name or "")
        if form == "blocks" and reads_blocks(node, target):
            take(node, "blocks", plan.blocks)
            continue
        dynamic = _two_axes(node, kind) and (
            form == "dynamic"
            if form in ("dynamic", "static")
            else node.op_type in scheme.dynamic and not (follows and static)
        )
        if not dynamic and not (static and node.op_type in scheme.operators):
            if kind.weight is not None:
                plan.left[node] = (
                    f"integer {node.op_type} is not faster on this target"
                    if static
                    else "its ranges are not known without samples"
                )
            continue
        if not dynamic and not follows and (not core or kind.weight is None):
            continue
        if _narrow(node, scheme.group_channels):
            plan.left[node] = "its groups have too few channels to gain on this target"
            continue
        reason = allowed(node, "dynamic" if dynamic else "static")
        if reason is not None:
            plan.left[node] = reason
            continue
        if dynamic:
            plan.dynamic[node] = kind
            continue
        if kind.output != "either" and read_inside(node.outputs[0]):
            if core:
                plan.left[node] = (
                    "a loop or branch reads what it makes, on which the runtime aborts"
                )
            continue
        plan.nodes[node] = kind
        clamp = clamp_after(node)
        if clamp is not None:
            plan.clamps[node] = clamp
        if kind.output != "either":
            integer.update(node.outputs)
            integer.add(plan.output(node))
    for node in inner_nodes(graph):  # no ranges are observed there: what needs none may join
        if node.op_type in RECURRENT and node.domain in ("", "ai.onnx"):
            _recurrent(plan, node, target, allowed)
        elif node.op_type in ("Conv", "Gemm", "MatMul") and reads_blocks(node, target):
            take(node, "blocks", plan.blocks)
    _trim(plan)
    if PRODUCT in target.operators:
        plan.joined = [n for n, k in plan.nodes.items() if _two_axes(n, k) and not plan.whole(n)]
    if scheme.stores:
        done = plan.modes()
        for node in all_nodes(graph):  # of branches too: what they read may lie outside
            positions = weights_to_store(node) if node not in done else ()
            if positions and (stored := bits(node)):
                plan.stored[node] = positions, stored
    return plan


def reads_blocks(node: ir.Node, target: Target) -> bool:
    """Whether the target has this product for a matrix in blocks; of x as rows."""
    if FEW_BITS not in target.operators:
        return False
    if node.op_type == "Conv":
        unfolded = unfolds(node)
        return unfolded is not None and math.prod(unfolded.op.shape[1:]) >= BLOCK
    op = linear_of(node) if node.op_type in ("Gemm", "MatMul") else ""
    if isinstance(op, str):
        return False
    return reads_floats(op) and not op.shared and op.in_channels >= BLOCK


def _trim(plan: Plan) -> None:
    """Drop followers at the end of a region that save no conversion and no work there."""
    for node, kind in reversed(list(plan.nodes.items())):
        if node.op_type in CORE or node.op_type in POOLS or _read(plan, node):
            continue
        given = {node.inputs[i] for i in kind.data if weight_of(node.inputs[i]) is None}
        if len(given) < 2 or kind.output == "same":
            del plan.nodes[node]
            plan.clamps.pop(node, None)


def _read(plan: Plan, node: ir.Node) -> bool:
    values = {*node.outputs, plan.output(node)}
    return any(use.node in plan.nodes for value in values for use in value.uses())


def _recurrent(
    plan: Plan, node: ir.Node, target: Target, allowed: Callable[[ir.Node, Mode], str | None]
) -> None:
    assert target.int8 is not None
    reason = recurrent.why_not(node, target.operators)
    if reason is None and node.op_type not in target.int8.dynamic:
        reason = f"integer {node.op_type} is not faster on this target"
    reason = reason or allowed(node, "lstm")
    if reason is None:
        plan.recurrent.append(node)
    else:
        plan.left[node] = reason


def _narrow(node: ir.Node, channels: int) -> bool:
    """A convolution whose groups have fewer input channels than this, but more than one."""
    op = linear_of(node) if node.op_type == "Conv" else ""
    return not isinstance(op, str) and op.groups > 1 and 1 < op.in_channels // op.groups < channels


def _two_axes(node: ir.Node, kind: Operator) -> bool:
    """Whether it is a product with a constant matrix."""
    if kind.weight is None or kind.output != "either":
        return False
    weight = weight_of(node.inputs[kind.weight])
    return weight is not None and len(weight.shape) == 2


def _follows(node: ir.Node, kind: Operator, integer: set[ir.Value]) -> bool:
    """Whether every activation it reads is an integer already."""
    data = [node.inputs[i] for i in kind.data]
    return any(v in integer for v in data) and all(
        v in integer or weight_of(v) is not None for v in data
    )
