#!/usr/bin/env python3
"""A student without knowledge of its own: a model's weights drawn anew, for distill to teach.

    python bench/ensemble.py pruned.onnx fresh.onnx

Convolutions and products get weights of variance 2 / fan-in (He et al., ICCV 2015), biases are 0.
Normalization is folded, so the last convolution of each residual branch starts small (as in
Goyal et al., 2017, though not at 0: distill keeps zeros).
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graphopt import load
from graphopt.formats import save

#: Of what variance alone would give.
SMALL = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model = load(args.model)
    draw(model, np.random.default_rng(args.seed))
    save(model, args.out)


def draw(model: ir.Model, rng: np.random.Generator) -> None:
    """Weights anew, in place, of a model that has Conv and Gemm."""
    for node in model.graph:
        if node.op_type not in ("Conv", "Gemm"):
            continue
        weight = node.inputs[1]
        assert weight is not None
        assert weight.const_value is not None
        old = weight.const_value.numpy()
        rows = old.T if node.op_type == "Gemm" and not _transposed(node) else old
        deviation = math.sqrt(2 / math.prod(rows.shape[1:]))
        # a branch, not the shortcut of 1 x 1
        ends = node.op_type == "Conv" and old.shape[-1] > 1 and _users(node) == ["Add"]
        new = rng.normal(size=old.shape) * (SMALL if ends else 1) * deviation
        weight.const_value = ir.tensor(new.astype(old.dtype), name=weight.name)
        for bias in node.inputs[2:]:
            assert bias is not None
            assert bias.const_value is not None
            zeros = np.zeros_like(bias.const_value.numpy())
            bias.const_value = ir.tensor(zeros, name=bias.name)


def _transposed(node: ir.Node) -> bool:
    attribute = node.attributes.get("transB")
    return attribute is not None and bool(attribute.value)


def _users(node: ir.Node) -> list[str]:
    return [use.node.op_type for use in node.outputs[0].uses()]


if __name__ == "__main__":
    main()
