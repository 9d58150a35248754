"""A transformer encoder as older exporters wrote it: 109 nodes a layer, every size computed.

    python bench/encoder.py --layers 48 --hidden 768 --out encoder48.onnx            # 1.36 GB
    python bench/encoder.py --layers 36 --hidden 1280 --external --out encoder36.onnx  # 2.8 GB

Each Reshape measures its input (Shape, Gather, Unsqueeze, Concat), norms and GELU are written out,
and scalars are Constant nodes. Batch and length are dynamic. Beside NAME.onnx goes NAME.npz with
seeded inputs (arrays `in:NAME`). Weights are random and never all in memory.
"""

from __future__ import annotations

import argparse
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

import graphopt.io


class Writer:
    """Nodes and weights of one model."""

    def __init__(self, hidden: int) -> None:
        self.hidden, self.heads = hidden, hidden // 64
        self.nodes: list[ir.Node] = []
        self.weights: list[ir.Value] = []

    def op(self, op_type: str, *inputs: ir.Value, **attributes: object) -> ir.Value:
        node = ir.node(op_type, inputs, attributes, name=f"{op_type}_{len(self.nodes)}")
        node.outputs[0].name = f"v{len(self.nodes)}"
        self.nodes.append(node)
        return node.outputs[0]

    def scalar(self, value: float | int) -> ir.Value:
        dtype = np.int64 if isinstance(value, int) else np.float32
        return self.op("Constant", value=ir.tensor(np.array(value, dtype)))

    def one(self, value: int) -> ir.Value:
        """A vector of one size or axis."""
        return self.op("Constant", value=ir.tensor(np.array([value], np.int64)))

    def weight(self, name: str, *shape: int) -> ir.Value:
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
        value.const_value = ir.LazyTensor(
            partial(random_weight, name, shape),
            dtype=ir.DataType.FLOAT,
            shape=ir.Shape(shape),
            name=name,
        )
        self.weights.append(value)
        return value

    def linear(self, x: ir.Value, name: str, n: int, m: int) -> ir.Value:
        y = self.op("MatMul", x, self.weight(f"{name}.weight", n, m))
        return self.op("Add", self.weight(f"{name}.bias", m), y)

    def sizes(self, x: ir.Value, *tail: int) -> ir.Value:
        """[size 0, size 1, *tail] measured on x."""
        parts = []
        for axis in (0, 1):
            size = self.op("Gather", self.op("Shape", x), self.scalar(axis), axis=0)
            parts.append(self.op("Unsqueeze", size, self.one(0)))
        parts += [self.one(t) for t in tail]
        return self.op("Concat", *parts, axis=0)

    def split_heads(self, x: ir.Value, perm: list[int]) -> ir.Value:
        x = self.op("Reshape", x, self.sizes(x, self.heads, 64))
        return self.op("Transpose", x, perm=perm)

    def norm(self, x: ir.Value, name: str) -> ir.Value:
        mean = self.op("ReduceMean", x, axes=[-1])
        d = self.op("Sub", x, mean)
        square = self.op("Pow", d, self.scalar(2.0))
        variance = self.op("ReduceMean", square, axes=[-1])
        root = self.op("Sqrt", self.op("Add", variance, self.scalar(1e-12)))
        y = self.op("Mul", self.op("Div", d, root), self.weight(f"{name}.weight", self.hidden))
        return self.op("Add", y, self.weight(f"{name}.bias", self.hidden))

    def gelu(self, x: ir.Value) -> ir.Value:
        e = self.op("Erf", self.op("Div", x, self.scalar(float(np.sqrt(2)))))
        y = self.op("Mul", x, self.op("Add", e, self.scalar(1.0)))
        return self.op("Mul", y, self.scalar(0.5))

    def layer(self, x: ir.Value, mask: ir.Value, name: str) -> ir.Value:
        h = self.hidden
        q = self.split_heads(self.linear(x, f"{name}.q", h, h), [0, 2, 1, 3])
        k = self.split_heads(self.linear(x, f"{name}.k", h, h), [0, 2, 3, 1])
        v = self.split_heads(self.linear(x, f"{name}.v", h, h), [0, 2, 1, 3])
        scores = self.op("Div", self.op("MatMul", q, k), self.scalar(8.0))
        chance = self.op("Softmax", self.op("Add", scores, mask), axis=-1)
        context = self.op("Transpose", self.op("MatMul", chance, v), perm=[0, 2, 1, 3])
        context = self.op("Reshape", context, self.sizes(context, h))
        x = self.norm(self.op("Add", self.linear(context, f"{name}.out", h, h), x), f"{name}.n1")
        y = self.gelu(self.linear(x, f"{name}.up", h, 4 * h))
        return self.norm(self.op("Add", self.linear(y, f"{name}.down", 4 * h, h), x), f"{name}.n2")


def random_weight(name: str, shape: tuple[int, ...]) -> ir.TensorProtocol:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    scale = 1.0 / np.sqrt(shape[0]) if len(shape) > 1 else 0.1
    array = rng.standard_normal(shape, np.float32) * np.float32(scale)
    return ir.tensor(array + np.float32(1) if ".n" in name and "weight" in name else array)


def build(layers: int, hidden: int) -> ir.Model:
    w = Writer(hidden)
    x = ir.val("x", ir.DataType.FLOAT, ["batch", "length", hidden])
    mask = ir.val("mask", ir.DataType.FLOAT, ["batch", 1, 1, "length"])
    y = x
    for k in range(layers):
        y = w.layer(y, mask, f"layer{k}")
    y = w.op("Tanh", y)
    y.dtype, y.shape = ir.DataType.FLOAT, ir.Shape(["batch", "length", hidden])
    graph = ir.Graph(
        [x, mask], [y], nodes=w.nodes, initializers=w.weights, opset_imports={"": 13}, name="enc"
    )
    return ir.Model(graph, ir_version=8, producer_name="graphopt.bench")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--external", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    model = build(args.layers, args.hidden)
    graphopt.save(model, args.out, external=args.external)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 16, args.hidden), np.float32)
    mask = np.zeros((1, 1, 1, 16), np.float32)
    mask[..., 12:] = -10000.0
    np.savez(args.out.with_suffix(".npz"), **{"in:x": x, "in:mask": mask})
    print(f"{args.out}: {len(model.graph)} nodes")


if __name__ == "__main__":
    main()
