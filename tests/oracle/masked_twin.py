"""The masked twin: what pruning must equal, with no data and no training.

The source model with a 0/1 mask at every place that reduces a pruned axis: contractions see
zeros, means and norms use the statistics of what is kept, max sees minus infinity. Nothing is
sliced, so the twin shares no code with the cut; of the analysis it takes only which positions of
which axes a dimension has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

#: (node name, tensor name) -> axis -> which positions are kept
Masks = dict[tuple[str, str], dict[int, np.ndarray]]

CONTRACTIONS = {
    "Conv", "ConvInteger", "ConvTranspose", "Einsum", "FusedConv", "FusedGemm", "FusedMatMul",
    "Gemm", "MatMul", "MatMulInteger", "QLinearConv", "QLinearMatMul",
}  # fmt: skip
NEUTRAL = {
    "ReduceL1": 0.0, "ReduceL2": 0.0, "ReduceLogSum": 0.0, "ReduceLogSumExp": -np.inf,
    "ReduceMax": -np.inf, "ReduceMean": 0.0, "ReduceMin": np.inf, "ReduceProd": 1.0,
    "ReduceSum": 0.0, "ReduceSumSquare": 0.0,
}  # fmt: skip
LAYER_NORMS = {"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"}
SKIP_NORMS = {"SkipLayerNormalization", "SkipSimplifiedLayerNormalization"}
RECURRENT = {"LSTM", "GRU", "RNN"}
ATTENTION = {"Attention", "MultiHeadAttention", "GroupQueryAttention"}
#: They reduce nothing that may be pruned: what they look along must be frozen.
LOOK_ALONG = {"Softmax", "LogSoftmax", "Hardmax", "ArgMax", "ArgMin", "TopK", "CumSum", "LRN"}


def masks_of(dimensions, kept: Mapping[str, Iterable[int]]) -> Masks:
    """Which positions stay, wherever the dimensions named in `kept` are carried."""
    masks: Masks = {}
    for name, units in kept.items():
        stays = np.zeros(dimensions.prunable[name].size + 1, bool)
        stays[list(units)] = True
        stays[-1] = True
        for m in dimensions.prunable[name].members:
            axes = masks.setdefault((m.node, m.input), {})
            mine = stays[m.positions]
            axes[m.axis] = axes[m.axis] & mine if m.axis in axes else mine
    return masks


def masked_twin(model: onnx.ModelProto, masks: Masks, facts: Facts) -> onnx.ModelProto:
    """A copy of `model` in which what `masks` leaves out has no effect.

    `facts` are the ranks and small integer data of its values.
    """
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    opset = next(o.version for o in twin.opset_import if o.domain in ("", "ai.onnx"))
    _Masker(masks, opset, facts).graph(twin.graph)
    del twin.graph.value_info[:]
    return twin


class Facts:
    """Ranks and small data by value name, from the shape analysis."""

    def __init__(self, model) -> None:
        from graphopt import Context
        from graphopt.analyses.shapes.analysis import shapes

        found = Context(model).get(shapes)
        self.ranks: dict[str, int] = {}
        self.data: dict[str, np.ndarray] = {}
        for node in model.graph.all_nodes():
            for value in (*node.inputs, *node.outputs):
                if value is not None and value.name and value.name not in self.ranks:
                    self.ranks[value.name] = found.rank(value) or 0
                    data = found.data(value)
                    if data is not None and data.dtype.kind in "iu":
                        self.data[value.name] = data


class _Masker:
    def __init__(self, masks: Masks, opset: int, facts: Facts) -> None:
        self.masks, self.opset, self.facts, self.count = masks, opset, facts, 0

    def graph(self, graph: onnx.GraphProto) -> None:
        nodes = list(graph.node)
        del graph.node[:]
        for node in nodes:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    self.graph(attribute.g)
            self.new: list[onnx.NodeProto] = []
            self.after: list[onnx.NodeProto] = []
            replaced = self.node(node)
            graph.node.extend(self.new)
            if not replaced:
                graph.node.append(node)
            graph.node.extend(self.after)

    # --- building ---------------------------------------------------------------------------

    def op(self, kind: str, inputs: list[str], output: str = "", **attributes) -> str:
        self.count += 1
        output = output or f"twin_{self.count}"
        made = helper.make_node(kind, inputs, [output], f"twin_node_{self.count}", **attributes)
        self.new.append(made)
        return output

    def const(self, array: np.ndarray) -> str:
        self.count += 1
        name = f"twin_const_{self.count}"
        self.new.append(
            helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array, name))
        )
        return name

    def reduce(self, kind: str, x: str, axes: list[int]) -> str:
        if kind == "ReduceSum" or self.opset >= 18:
            return self.op(kind, [x, self.const(np.array(axes, np.int64))], keepdims=1)
        return self.op(kind, [x], axes=axes, keepdims=1)

    def fill(self, x: str, axis: int, mask: np.ndarray, value: float, other: str = "") -> str:
        """x with `value` (or `other`) where the mask along `axis`, counted from the end, is off."""
        shape = np.array([-1] + [1] * (-axis - 1), np.int64)
        cond = self.op("Reshape", [self.const(mask), self.const(shape)])
        other = other or self.op("CastLike", [self.const(np.array(value, np.float32)), x])
        return self.op("Where", [cond, x, other])

    # --- what each operator needs -------------------------------------------------------------

    def axes(self, node: onnx.NodeProto, k: int) -> dict[int, np.ndarray]:
        if k >= len(node.input) or not node.input[k]:
            return {}
        found = self.masks.get((node.name or node.output[0], node.input[k]), {})
        return {a: m for a, m in found.items() if not m.all()}

    def attribute(self, node: onnx.NodeProto, name: str, default=None):
        for a in node.attribute:
            if a.name == name:
                return helper.get_attribute_value(a)
        return default

    def zero(
        self,
        node: onnx.NodeProto,
        k: int,
        axes: dict[int, np.ndarray],
        rank: int,
        point: str = "",
    ) -> None:
        """Zeros (or the zero point) in input k along these axes."""
        for a, m in axes.items():
            node.input[k] = self.fill(node.input[k], a - rank, m, 0.0, point)

    def node(self, node: onnx.NodeProto) -> bool:
        kind = node.op_type
        ranks = [self.rank(node, k) for k in range(len(node.input))]
        if not any(self.axes(node, k) for k in range(len(node.input))):
            return False
        if kind in CONTRACTIONS:
            self.contraction(node, ranks)
        elif kind in NEUTRAL:
            return self.reduction(node, ranks[0])
        elif kind in LAYER_NORMS or kind in SKIP_NORMS or kind == "InstanceNormalization":
            return self.norm(node, ranks[0])
        elif kind == "GroupNormalization":
            return self.group_norm(node, ranks[0])
        elif kind in RECURRENT:
            self.zero(node, 0, {a: m for a, m in self.axes(node, 0).items() if a == 2}, 3)
            self.zero(node, 2, {a: m for a, m in self.axes(node, 2).items() if a == 2}, 3)
        elif kind in ATTENTION:
            self.attention(node, ranks)
        elif kind == "DynamicQuantizeLinear":  # its range always includes zero
            self.zero(node, 0, self.axes(node, 0), ranks[0])
        elif kind == "LpNormalization":
            axis = self.attribute(node, "axis", -1) % ranks[0]
            if axis in self.axes(node, 0):
                self.zero(node, 0, {axis: self.axes(node, 0)[axis]}, ranks[0])
        elif kind in LOOK_ALONG:
            assert not self.looks(node, ranks[0]), f"{node.name} looks along a pruned axis"
        return False

    def rank(self, node: onnx.NodeProto, k: int) -> int:
        return self.facts.ranks.get(node.input[k], 0)

    def looks(self, node: onnx.NodeProto, rank: int) -> bool:
        axis = self.attribute(node, "axis", -1)
        return any(a == axis % rank for a in self.axes(node, 0))

    def contraction(self, node: onnx.NodeProto, ranks: list[int]) -> None:
        kind = node.op_type
        first = self.axes(node, 0)
        if "Conv" in kind:
            axes = {1}
        elif "Gemm" in kind:
            axes = {0 if self.attribute(node, "transA", 0) else 1}
        elif kind == "Einsum":
            left, right = self.attribute(node, "equation").decode().replace(" ", "").split("->")
            for k, term in enumerate(left.split(",")):
                gone = {a for a, c in enumerate(term) if c not in right}
                mine = {a: m for a, m in self.axes(node, k).items() if a in gone}
                self.zero(node, k, mine, ranks[k])
            return
        else:
            turned = self.attribute(node, "transA", 0) and ranks[0] > 1
            axes = {ranks[0] - (2 if turned else 1)}
        mine = {a: m for a, m in first.items() if a in axes}
        point = ""
        if kind.startswith("QLinear") or kind.endswith("Integer"):  # zero is the zero point
            point = node.input[2] if len(node.input) > 2 else ""
        self.zero(node, 0, mine, ranks[0], point)

    def reduction(self, node: onnx.NodeProto, rank: int) -> bool:
        axes = self.attribute(node, "axes")
        if axes is None and len(node.input) > 1 and node.input[1]:
            axes = self.facts.data[node.input[1]].ravel().tolist()
        reduced = set(range(rank)) if not axes else {a % rank for a in axes}
        mine = {a: m for a, m in self.axes(node, 0).items() if a in reduced}
        for a, m in mine.items():
            node.input[0] = self.fill(node.input[0], a - rank, m, NEUTRAL[node.op_type])
        if node.op_type != "ReduceMean" or not mine:
            return False
        factor = float(np.prod([m.size / m.sum() for m in mine.values()]))
        out = node.output[0]
        node.output[0] = f"{out}_unscaled"
        self.new.append(node)
        like = self.op("CastLike", [self.const(np.array(factor, np.float32)), node.output[0]])
        self.op("Mul", [node.output[0], like], out)
        return True

    def norm(self, node: onnx.NodeProto, rank: int) -> bool:
        """y = (x - mean) / sqrt(var + eps) * scale + bias with masked statistics."""
        kind = node.op_type
        mine = self.axes(node, 0)
        simple = kind in ("RMSNormalization",) or "Simplified" in kind
        x = node.input[0]
        if kind in SKIP_NORMS:
            x = self.op("Add", [x, node.input[1]])
            if len(node.input) > 4 - simple and node.input[4 - simple]:
                x = self.op("Add", [x, node.input[4 - simple]])
            if len(node.output) > 3 and node.output[3]:
                self.op("Identity", [x], node.output[3])
            scale, bias = node.input[2], "" if simple else node.input[3]
            axes = [rank - 1]
        else:
            scale = node.input[1]
            bias = node.input[2] if len(node.input) > 2 and not simple else ""
            first = (
                2 if kind == "InstanceNormalization" else self.attribute(node, "axis", -1) % rank
            )
            axes = list(range(first, rank))
        mine = {a: m for a, m in mine.items() if a in axes}
        if not mine:
            return False
        count = float(np.prod([m.size / m.sum() for m in mine.values()]))

        def mean(v: str) -> str:
            for a, m in mine.items():
                v = self.fill(v, a - rank, m, 0.0)
            v = self.reduce("ReduceMean", v, axes)
            return self.op("Mul", [v, self.const(np.array(count, np.float32))])

        d = x if simple else self.op("Sub", [x, mean(x)])
        eps = self.attribute(node, "epsilon", 1e-12 if kind in SKIP_NORMS else 1e-5)
        var = self.op("Add", [mean(self.op("Mul", [d, d])), self.const(np.array(eps, np.float32))])
        y = self.op("Div", [d, self.op("Sqrt", [var])])
        if kind == "InstanceNormalization":
            shape = self.const(np.array([-1] + [1] * (rank - 2), np.int64))
            scale, bias = (self.op("Reshape", [v, shape]) for v in (scale, bias))
        if bias:
            y = self.op("Mul", [y, scale])
            self.op("Add", [y, bias], node.output[0])
        else:
            self.op("Mul", [y, scale], node.output[0])
        return True

    def group_norm(self, node: onnx.NodeProto, rank: int) -> bool:
        """Statistics over what is kept of each group."""
        mask = self.axes(node, 0).get(1)
        if mask is None:
            return False
        groups, x = self.attribute(node, "num_groups"), node.input[0]
        inside = mask.reshape(groups, -1)
        shape = self.const(np.array([0, groups, inside.shape[1], -1], np.int64))
        factor = inside.shape[1] / np.maximum(inside.sum(1), 1)
        count = self.const(factor.astype(np.float32).reshape(-1, 1, 1))
        keep = self.const(inside[:, :, None])
        v = self.op("Reshape", [x, shape])

        def mean(v: str) -> str:
            v = self.op("Where", [keep, v, self.const(np.array(0, np.float32))])
            return self.op("Mul", [self.reduce("ReduceMean", v, [2, 3]), count])

        d = self.op("Sub", [v, mean(v)])
        eps = self.const(np.array(self.attribute(node, "epsilon", 1e-5), np.float32))
        var = self.op("Add", [mean(self.op("Mul", [d, d])), eps])
        y = self.op("Reshape", [self.op("Div", [d, self.op("Sqrt", [var])]), self.op("Shape", [x])])
        one = self.const(np.array([-1] + [1] * (rank - 2), np.int64))
        scale, bias = (self.op("Reshape", [node.input[k], one]) for k in (1, 2))
        self.op("Add", [self.op("Mul", [y, scale]), bias], node.output[0])
        return True

    def attention(self, node: onnx.NodeProto, ranks: list[int]) -> None:
        """q, and the weights that make it: what is zero there adds nothing to a score."""
        if node.op_type == "Attention" and node.domain == "com.microsoft":
            last = ranks[0] - 1
            self.zero(node, 0, {a: m for a, m in self.axes(node, 0).items() if a == last}, ranks[0])
            self.zero(node, 1, {a: m for a, m in self.axes(node, 1).items() if a == 1}, 2)
            self.zero(node, 2, {a: m for a, m in self.axes(node, 2).items() if a == 0}, 1)
            return
        last = ranks[0] - 1
        self.zero(node, 0, {a: m for a, m in self.axes(node, 0).items() if a == last}, ranks[0])
        if node.op_type == "MultiHeadAttention":
            self.zero(node, 3, self.axes(node, 3), 1)
