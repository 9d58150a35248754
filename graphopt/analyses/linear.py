"""Linear operators with a constant weight, y = a W f(x) + b: axes, groups, transposes, sharing.

    MatMul, FusedMatMul   y = a x W, or a W x    W [..., K, N], or [N, K] on the left
    Gemm                  y = a x W + c b        W [K, N], or [N, K] with transB
    Conv                  y = W * x + b          W [N, K / g, ...]
    ConvTranspose         x = W * y, less b      W [K, N / g, ...]
    Gather                y = W[i]               W [K, N]; x is one-hot
    LSTM, GRU, RNN        gates = W x + ...      W [D, G H, K]

K and N count input and output channels. f gathers what one output position reads: x itself, or a
patch of it. What reads weights asks `linear_of`, and refuses by the attributes of what it gets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.attributes import attribute
from graphopt.graph.constants import (
    array_of,
    constant_array,
    constant_shape,
    constant_value,
    is_constant,
    shared,
    weight_of,
)
from graphopt.graph.traverse import RECURRENT

__all__ = ["COMPUTED", "Linear", "bias_add", "linear_of"]

Array = np.ndarray[Any, Any]

#: Why a weight that depends on the inputs makes no linear operator.
COMPUTED = "its weight is computed, not constant"


@dataclasses.dataclass(frozen=True)
class Linear:
    """A node that computes a W f(x) + b, as it was when it was looked at.

    Attributes:
        node: one of the operators above.
        shape: of the weight, as the node reads it.
        out_axis, in_axis: axes of the weight that hold output and input channels (those of one
            group, where a convolution has groups).
        out_channels, in_channels: N and K, over all groups.
        data, at: positions of x and of the weight among the node's inputs.
        x_axis, y_axis: axes of x and y that hold channels.
        groups: independent blocks of channels.
        alpha, beta: factors of the product and of the bias.
    """

    node: ir.Node
    shape: tuple[int, ...]
    out_axis: int
    in_axis: int
    out_channels: int
    in_channels: int
    data: int = 0
    at: int = 1
    x_axis: int = -1
    y_axis: int = -1
    groups: int = 1
    alpha: float = 1.0
    beta: float = 1.0

    @property
    def x(self) -> ir.Value:
        """The operand that is not constant (the indices, for Gather)."""
        return self._input(self.data)

    @property
    def weight(self) -> ir.Value:
        """The value the weight is read from."""
        return self._input(self.at)

    @property
    def bias(self) -> ir.Value | None:
        """The third operand of Gemm and convolutions, constant or not."""
        has = self.node.op_type in _BIASED and len(self.node.inputs) > 2
        return self.node.inputs[2] if has else None

    @property
    def y(self) -> ir.Value:
        """The first output."""
        return self.node.outputs[0]

    @property
    def dtype(self) -> ir.DataType | None:
        """Element type of the weight."""
        held = weight_of(self.weight)
        return self.weight.dtype if held is None else held.tensor.dtype

    @property
    def kernel(self) -> tuple[int, ...]:
        """Spatial sizes of a convolution's kernel, else ()."""
        return self.shape[2:] if self.node.op_type in ("Conv", "ConvTranspose") else ()

    @property
    def left(self) -> bool:
        """Whether the weight stands on the left: W x, over the last but one axis of x."""
        return self.y_axis == -2

    @property
    def turned(self) -> bool:
        """Whether x is read transposed (transA)."""
        return self.x_axis != self.y_axis

    @property
    def stacked(self) -> bool:
        """Whether the weight is a stack of matrices, one for each entry of a batch."""
        return len(self.shape) > 2 and not self.kernel and self.node.op_type not in RECURRENT

    @property
    def shared(self) -> bool:
        """Whether anyone else reads the same numbers, also through nodes that move them."""
        return shared(self.weight)

    def array(self) -> Array:
        """The weight as the node reads it now (a view where it can be; do not write)."""
        return array_of(self.weight)

    def matrix(self, weight: Array | None = None) -> Array:
        """W [groups, outputs per group, features], without alpha: a view, but for ConvTranspose.

        `weight` stands for the node's own. A stack has no such matrix.
        """
        w = self.array() if weight is None else weight
        if self.node.op_type == "ConvTranspose":
            split = w.reshape(self.groups, w.shape[0] // self.groups, w.shape[1], -1)
            return split.transpose(0, 2, 1, 3).reshape(self.groups, w.shape[1], -1)
        if self.out_axis < self.in_axis:
            rows = prod(w.shape[: self.out_axis + 1])
            return w.reshape(self.groups, rows // self.groups, -1)
        return w.T[None]

    def stored(self, matrix: Array) -> Array:
        """W [groups, outputs per group, features] as the node reads it: undoes `matrix`."""
        if self.node.op_type == "ConvTranspose":
            split = matrix.reshape(*matrix.shape[:2], self.shape[0] // self.groups, -1)
            return split.transpose(0, 2, 1, 3).reshape(self.shape)
        if self.kernel or self.node.op_type in RECURRENT:
            return matrix.reshape(self.shape)
        w: Array = matrix[0]
        return w if self.out_axis < self.in_axis else w.T

    def scale_outputs(self, w: Array, s: Array) -> Array:
        """The weight w' with w' x = s * (w x), s of shape () or (out_channels,)."""
        return self._scaled(w, s, self.out_axis)

    def scale_inputs(self, w: Array, s: Array) -> Array:
        """The weight w' with w' x = w (s * x), s of shape () or (in_channels,)."""
        return self._scaled(w, s, self.in_axis)

    def shift_inputs(self, w: Array, t: Array) -> Array:
        """What x = t everywhere gives, alpha W f(t), without padding: shape (out_channels,)."""
        full = np.broadcast_to(t, (self.in_channels,)).reshape(self.groups, -1)
        m = self.matrix(w)
        summed = m.reshape(*m.shape[:2], full.shape[1], -1).sum(-1)
        product: Array = np.einsum("goi,gi->go", summed, full).reshape(-1)
        return product * self.alpha

    def _scaled(self, w: Array, s: Array, axis: int) -> Array:
        if s.ndim == 0 or w.shape[axis] == len(s):
            return w * s.reshape([-1 if k == axis else 1 for k in range(w.ndim)] if s.ndim else ())
        split = w.reshape(self.groups, w.shape[0] // self.groups, *w.shape[1:])
        along = s.reshape(self.groups, 1, -1, *[1] * (w.ndim - 2))
        scaled: Array = (split * along).reshape(w.shape)
        return scaled

    def _input(self, k: int) -> ir.Value:
        value = self.node.inputs[k]
        assert value is not None
        return value


def linear_of(node: ir.Node) -> Linear | str:
    """`node` as a linear operator, or why it is none ("" if it is no candidate at all).

    The weight may be an initializer, a Constant, or computed from such (see `is_constant`).
    """
    standard = node.domain in ("", "ai.onnx")
    reader = _READERS.get(node.op_type if standard else f"{node.domain}:{node.op_type}")
    found = "" if reader is None else reader(node)
    if isinstance(found, Linear) and 0 in found.shape:
        return "its weight is empty"
    constant = isinstance(found, Linear) and constant_value(found.x) is not None
    return "" if constant else found


def bias_add(op: Linear) -> ir.Node | None:
    """The Add that alone reads a product, if its other operand is one constant per output."""
    uses = list(op.y.uses())
    if len(uses) != 1 or op.y.is_graph_output():
        return None
    after = uses[0].node
    if after.op_type != "Add" or after.domain not in ("", "ai.onnx"):
        return None
    other = after.inputs[1 - uses[0].idx]
    if after.graph is not op.node.graph or not is_constant(other):
        return None
    shape = _shape(other) or ()
    return after if shape[-1:] == (op.out_channels,) == (prod(shape),) else None


def _shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape of a constant value, held or computed."""
    if constant_value(value) is not None:
        return constant_shape(value)
    array = constant_array(value)
    return None if array is None else array.shape


def _matmul(node: ir.Node) -> Linear | str:
    if attribute(node, "transBatchA", 0) or attribute(node, "transBatchB", 0):
        return "its batch axes are transposed"
    right = _shape(node.inputs[1])
    shape = _shape(node.inputs[0]) if right is None else right
    if shape is None:
        return ""  # of two activations
    flips = [bool(attribute(node, name, 0)) for name in ("transA", "transB")]
    if len(shape) < 2:
        return "its weight is a vector"
    last = len(shape) - 1
    alpha = float(attribute(node, "alpha", 1.0))
    if right is not None:
        into, out = (last, last - 1) if flips[1] else (last - 1, last)
        x_axis = -2 if flips[0] else -1
        return Linear(node, shape, out, into, shape[out], shape[into], x_axis=x_axis, alpha=alpha)
    x = node.inputs[1]
    if x is None or (x.shape is not None and len(x.shape) < 2):
        return "it multiplies a vector"
    out, into = (last, last - 1) if flips[0] else (last - 1, last)
    x_axis = -1 if flips[1] else -2
    return Linear(node, shape, out, into, shape[out], shape[into], 1, 0, x_axis, -2, alpha=alpha)


def _gemm(node: ir.Node) -> Linear | str:
    shape = _shape(node.inputs[1])
    if shape is None:
        return COMPUTED
    into, out = (1, 0) if attribute(node, "transB") else (0, 1)
    return Linear(
        node,
        shape,
        out,
        into,
        shape[out],
        shape[into],
        x_axis=-2 if attribute(node, "transA") else -1,
        alpha=float(attribute(node, "alpha")),
        beta=float(attribute(node, "beta")),
    )


def _conv(node: ir.Node) -> Linear | str:
    shape = _shape(node.inputs[1])
    if shape is None:
        return COMPUTED
    groups = int(attribute(node, "group"))
    wide = shape[1] * groups
    if node.op_type == "ConvTranspose":
        return Linear(node, shape, 1, 0, wide, shape[0], x_axis=1, y_axis=1, groups=groups)
    return Linear(node, shape, 0, 1, shape[0], wide, x_axis=1, y_axis=1, groups=groups)


def _gather(node: ir.Node) -> Linear | str:
    shape = _shape(node.inputs[0])
    if shape is None or len(shape) != 2:
        return ""
    if attribute(node, "axis") != 0:
        return "it does not look up rows"
    return Linear(node, shape, 1, 0, shape[1], shape[0], data=1, at=0)


def _recurrent(node: ir.Node) -> Linear | str:
    shape = _shape(node.inputs[1])
    if shape is None or len(shape) != 3:
        return COMPUTED
    return Linear(node, shape, 1, 2, shape[0] * shape[1], shape[2])


_BIASED = ("Conv", "ConvTranspose", "Gemm")

_READERS: dict[str, Callable[[ir.Node], Linear | str]] = {
    "Conv": _conv,
    "ConvTranspose": _conv,
    "GRU": _recurrent,
    "Gather": _gather,
    "Gemm": _gemm,
    "LSTM": _recurrent,
    "MatMul": _matmul,
    "RNN": _recurrent,
    "com.microsoft:FusedMatMul": _matmul,
}
