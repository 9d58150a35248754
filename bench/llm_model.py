"""A decoder as onnxruntime-genai's builder writes it, of any shape and with random weights.

    python bench/llm_model.py --layers 32 --hidden 4096 --out llama7b/model.onnx        # 13.5 GB

Grouped-query attention with rotary positions inside and a cache of keys and values, SwiGLU, norms
by the root of the mean square. Weights are written one at a time and never held together.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from onnx import TensorProto, helper

MS = "com.microsoft"


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of a decoder; the defaults are those of Llama 2 with 7 billion parameters."""

    layers: int = 32
    hidden: int = 4096
    inner: int = 11008
    heads: int = 32
    kv_heads: int = 32
    vocabulary: int = 32000
    longest: int = 4096
    half: bool = True

    @property
    def head(self) -> int:
        return self.hidden // self.heads

    @property
    def dtype(self) -> np.dtype[np.floating]:
        return np.dtype(np.float16 if self.half else np.float32)

    @property
    def element(self) -> int:
        return int(TensorProto.FLOAT16 if self.half else TensorProto.FLOAT)


class Writer:
    """Nodes and weights of one model, the weights going to a file as they are made."""

    def __init__(
        self, shape: Shape, weights: BinaryIO, location: str, known: Mapping[str, np.ndarray]
    ) -> None:
        self.shape, self.file, self.location, self.known = shape, weights, location, known
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def op(
        self, op_type: str, inputs: list[str], out: str, domain: str = "", **given: object
    ) -> str:
        node = helper.make_node(
            op_type, inputs, [out], name=f"{out}/{op_type}", domain=domain, **given
        )
        self.nodes.append(node)
        return out

    def constant(self, name: str, array: np.ndarray) -> str:
        self.initializers.append(onnx.numpy_helper.from_array(array, name))
        return name

    def weight(self, name: str, *dims: int, scale: float | None = None) -> str:
        """What is known, else normal numbers by the name's own seed; ones where one axis is."""
        tensor = TensorProto(name=name, data_type=self.shape.element, dims=dims)
        tensor.data_location = TensorProto.EXTERNAL
        self.file.seek(-self.file.tell() % 4096, 1)
        start = self.file.tell()
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        step = scale or 1 / math.sqrt(dims[0])
        rows = max(1, (1 << 24) // math.prod(dims[1:]))
        for k in range(0, dims[0], rows):
            part = (min(rows, dims[0] - k), *dims[1:])
            array = np.ones(part, np.float32)
            if name in self.known:
                array = self.known[name][k : k + rows]
            elif len(dims) > 1:
                array = rng.standard_normal(part, np.float32) * np.float32(step)
            self.file.write(array.astype(self.shape.dtype).tobytes())
        place = {"location": self.location, "offset": start, "length": self.file.tell() - start}
        for key, value in place.items():
            entry = tensor.external_data.add()
            entry.key, entry.value = key, str(value)
        self.initializers.append(tensor)
        return name

    def linear(self, x: str, name: str, n: int, m: int) -> str:
        return self.op("MatMul", [x, self.weight(f"{name}.weight", n, m)], name)

    def norm(self, x: str, skip: str | None, name: str) -> tuple[str, str]:
        """The normalized x (+ skip), and that sum."""
        weight = self.weight(f"{name}.weight", self.shape.hidden)
        if skip is None:
            made = self.op("SimplifiedLayerNormalization", [x, weight], name, axis=-1, epsilon=1e-5)
            return made, x
        inputs = [x, skip, weight]
        self.op("SkipSimplifiedLayerNormalization", inputs, name, MS, epsilon=1e-5)
        self.nodes[-1].output.extend(["", "", f"{name}.sum"])
        return name, f"{name}.sum"

    def layer(self, k: int, x: str, skip: str | None) -> tuple[str, str]:
        s, name = self.shape, f"layer{k}"
        y, x = self.norm(x, skip, f"{name}.input_norm")
        wide = s.kv_heads * s.head
        q = self.linear(y, f"{name}.q", s.hidden, s.hidden)
        keys = self.linear(y, f"{name}.k", s.hidden, wide)
        values = self.linear(y, f"{name}.v", s.hidden, wide)
        past = [f"past_key_values.{k}.{kind}" for kind in ("key", "value")]
        inputs = [q, keys, values, *past, "seqlens_k", "total_length", "cos", "sin"]
        self.op(
            "GroupQueryAttention", inputs, f"{name}.attention", MS,
            num_heads=s.heads, kv_num_heads=s.kv_heads, do_rotary=1, scale=1 / math.sqrt(s.head),
        )  # fmt: skip
        self.nodes[-1].output.extend([f"present.{k}.key", f"present.{k}.value"])
        o = self.linear(f"{name}.attention", f"{name}.o", s.hidden, s.hidden)
        y, x = self.norm(x, o, f"{name}.post_norm")
        gate = self.linear(y, f"{name}.gate", s.hidden, s.inner)
        up = self.linear(y, f"{name}.up", s.hidden, s.inner)
        gated = self.op(
            "Mul", [gate, self.op("Sigmoid", [gate], f"{name}.sigmoid")], f"{name}.silu"
        )
        inner = self.op("Mul", [gated, up], f"{name}.gated")
        return x, self.linear(inner, f"{name}.down", s.inner, s.hidden)


def build(shape: Shape, out: Path, known: Mapping[str, np.ndarray] | None = None) -> None:
    """Write the model to `out`, its weights beside it as `out` + ".data"; random if not known."""
    out.parent.mkdir(parents=True, exist_ok=True)
    data = out.with_name(out.name + ".data")
    with data.open("wb") as file:
        w = Writer(shape, file, data.name, known or {})
        lengths = w.op(
            "ReduceSum", ["attention_mask", w.constant("one", np.array([1]))], "lengths", keepdims=0
        )
        last = w.op("Sub", [lengths, w.constant("last", np.array(1))], "lengths_less_one")
        w.op("Cast", [last], "seqlens_k", to=TensorProto.INT32)
        sizes = w.op("Shape", ["attention_mask"], "mask_shape")
        total = w.op("Gather", [sizes, w.constant("axis", np.array(1))], "mask_length")
        w.op("Cast", [total], "total_length", to=TensorProto.INT32)
        angles = np.outer(
            np.arange(shape.longest), 10000.0 ** (-np.arange(0, shape.head, 2) / shape.head)
        )
        w.constant("cos", np.cos(angles).astype(shape.dtype))
        w.constant("sin", np.sin(angles).astype(shape.dtype))
        table = w.weight("embed.weight", shape.vocabulary, shape.hidden, scale=1.0)
        x, skip = w.op("Gather", [table, "input_ids"], "embedded"), None
        for k in range(shape.layers):
            x, skip = w.layer(k, x, skip)
        y, _ = w.norm(x, skip, "final_norm")
        w.linear(y, "logits", shape.hidden, shape.vocabulary)

    def value(name: str, element: int, *dims: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, element, dims)

    ids = value("input_ids", TensorProto.INT64, "batch", "sequence")
    mask = value("attention_mask", TensorProto.INT64, "batch", "total")
    caches = [f"{k}.{kind}" for k in range(shape.layers) for kind in ("key", "value")]
    held = ("batch", shape.kv_heads, "past", shape.head)
    grown = ("batch", shape.kv_heads, "total", shape.head)
    past = [value(f"past_key_values.{c}", shape.element, *held) for c in caches]
    present = [value(f"present.{c}", shape.element, *grown) for c in caches]
    logits = value("logits", shape.element, "batch", "sequence", shape.vocabulary)
    graph = helper.make_graph(
        w.nodes, "decoder", [ids, mask, *past], [logits, *present], w.initializers
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid(MS, 1)]
    model = helper.make_model(
        graph, opset_imports=imports, ir_version=9, producer_name="bench/llm_model.py"
    )
    out.write_bytes(model.SerializeToString())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    for field in dataclasses.fields(Shape)[:-1]:
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=int, default=field.default)
    parser.add_argument("--float", action="store_true", help="float32 instead of half")
    parser.add_argument("--out", type=Path, required=True)
    args = vars(parser.parse_args())
    out, half = args.pop("out"), not args.pop("float")
    build(Shape(**args, half=half), out)


if __name__ == "__main__":
    main()
