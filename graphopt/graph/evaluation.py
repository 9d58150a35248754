"""Evaluating one node on given arrays: by NumPy where its meaning is plain, else by a runtime.

What may be evaluated has a result fixed by its inputs: no random operators, none that update a
state, no control flow, nothing outside the ONNX standard.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from graphopt.deploy.runtime import open_cpu, session_options
from graphopt.graph.numpy_kernels import KERNELS, MOVES, USER_TYPES

__all__ = ["RANDOM", "deterministic", "evaluate", "quick"]

Array = np.ndarray[Any, Any]
Inputs = Sequence[Array | None]

#: Operators that draw random numbers.
RANDOM = frozenset(
    """RandomNormal RandomNormalLike RandomUniform RandomUniformLike Multinomial
    Bernoulli""".split()  # noqa: SIM905
)
#: Operators whose result is not a function of their inputs alone, or must not be precomputed.
NOT_FUNCTIONS = RANDOM | {"Dropout", "ImageDecoder"}


def deterministic(node: ir.Node) -> bool:
    """Whether equal inputs give equal outputs: a standard operator without state or subgraphs."""
    if node.domain not in ("", "ai.onnx", "ai.onnx.ml") or node.op_type in NOT_FUNCTIONS:
        return False
    if node.op_type == "BatchNormalization":
        training = node.attributes.get("training_mode")
        return training is None or training.value == 0
    graphs = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    given = node.attributes
    return not given or not any(a.type in graphs or a.is_ref() for a in given.values())


def quick(node: ir.Node, inputs: Inputs) -> list[Array] | None:
    """The outputs if NumPy can give them here and now, else None."""
    function = KERNELS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if function is None or (inputs and inputs[0] is None) or "broadcast" in node.attributes:
        return None
    if node.op_type not in MOVES and not _plain(inputs):
        return None
    with np.errstate(all="ignore"):
        try:
            result = function({a.name: a.value for a in node.attributes.values()}, *inputs)
        except (ArithmeticError, LookupError, MemoryError, TypeError, ValueError):
            # shapes that do not fit, sizes that no memory holds: the model fails here itself
            return None
    if result is None:
        return None
    return list(result) if isinstance(result, tuple) else [result]


def evaluate(node: ir.Node, inputs: Inputs, opsets: dict[str, int]) -> list[Array] | None:
    """The node's outputs for these inputs (None: absent); None if nothing here can compute them."""
    if not deterministic(node):
        return None
    made = quick(node, inputs)
    if made is not None:
        return made
    return by_runtime(node, inputs, opsets)


def _plain(inputs: Inputs) -> bool:
    """Whether NumPy itself has these element types (it lacks bfloat16, float8, int4 and text)."""
    return all(x is None or (x.dtype.kind in "fiub" and x.dtype.num < USER_TYPES) for x in inputs)


def _kills(node: ir.Node, inputs: Inputs) -> bool:
    """Whether the runtime's process would die: the smallest integer divided by -1."""
    x, y = (*inputs, None, None)[:2]
    if node.op_type != "Div" or x is None or y is None or x.dtype.kind != "i":
        return False
    return bool((y == -1).any() and (x == np.iinfo(x.dtype).min).any())


def by_runtime(node: ir.Node, inputs: Inputs, opsets: dict[str, int]) -> list[Array] | None:
    """A model of this node alone, in ONNX Runtime; None if it has no kernel for it, or would die.

    Absent outputs are left out of the list.
    """
    kernel = kernel_of(node, inputs, opsets)
    return None if kernel is None else kernel(inputs)


#: Runs one node; None where it fails on these inputs.
Kernel = Callable[[Inputs], "list[Array] | None"]


def kernel_of(node: ir.Node, inputs: Inputs, opsets: dict[str, int]) -> Kernel | None:
    """Runs this node in ONNX Runtime, on inputs of these types; None if it has no kernel for it.

    Their sizes may be others, but of vectors (which may be sizes themselves; see `known_shape`).
    """
    if not _plain(inputs):
        return None
    try:
        model = _one_node_model(node, inputs, opsets)
        session = open_cpu(model.SerializeToString(), session_options(threads=1))
    except _unavailable():
        return None

    def run(given: Inputs) -> list[Array] | None:
        if _kills(node, given):
            return None
        feeds = {f"i{k}": x for k, x in enumerate(given) if x is not None}
        try:
            return _arrays(session.run(None, feeds))
        except _unavailable():
            return None

    return run


def known_shape(x: Array) -> list[int | None]:
    """The shape that a kernel is told: of more than one axis only how many there are."""
    return list(x.shape) if x.ndim < 2 else [None] * x.ndim


def _unavailable() -> tuple[type[Exception], ...]:
    """What the runtime raises where it cannot run a node."""
    import onnxruntime as ort

    return (
        ort.capi.onnxruntime_pybind11_state.NotImplemented,
        ort.capi.onnxruntime_pybind11_state.InvalidGraph,
        ort.capi.onnxruntime_pybind11_state.Fail,
        ort.capi.onnxruntime_pybind11_state.InvalidArgument,
        ort.capi.onnxruntime_pybind11_state.RuntimeException,
        RuntimeError,  # outputs of an element type that NumPy lacks
    )


def _arrays(outputs: Sequence[Any]) -> list[Array] | None:
    return list(outputs) if all(isinstance(o, np.ndarray) for o in outputs) else None


def _one_node_model(node: ir.Node, inputs: Inputs, opsets: dict[str, int]) -> onnx.ModelProto:
    proto = onnx.NodeProto(op_type=node.op_type, domain=node.domain)
    proto.attribute.extend(ir.serde.serialize_attribute(a) for a in node.attributes.values())
    infos = []
    for k, x in enumerate(inputs):
        proto.input.append("" if x is None else f"i{k}")
        if x is not None:
            kind = onnx.helper.np_dtype_to_tensor_dtype(x.dtype)
            infos.append(onnx.helper.make_tensor_value_info(f"i{k}", kind, known_shape(x)))
    proto.output.extend(f"o{k}" if v.name else "" for k, v in enumerate(node.outputs))
    outputs = [onnx.ValueInfoProto(name=o) for o in proto.output if o]
    graph = onnx.helper.make_graph([proto], "node", infos, outputs)
    wanted = ("", node.domain)
    imports = [onnx.helper.make_opsetid(d, v) for d, v in opsets.items() if d in wanted]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=10)
