"""Target: frozen data about where a model will run. Passes read it; they never ask which it is."""

from __future__ import annotations

import dataclasses
from typing import Literal

__all__ = ["ONNX", "Int8Scheme", "Target"]


#: Operators that compute with weights, and those that keep a region between them connected.
INTEGER = frozenset(
    {
        *("Conv", "Gemm", "MatMul", "Add", "AveragePool", "Concat", "DepthToSpace", "Flatten"),
        *("Gather", "GlobalAveragePool", "MaxPool", "Reshape", "Resize", "Slice", "SpaceToDepth"),
        *("Split", "Squeeze", "Transpose", "Unsqueeze"),
    }
)


@dataclasses.dataclass(frozen=True)
class Int8Scheme:
    """How integers should look for the target to compute with them fast.

    Attributes:
        activation: integer type of activations.
        weight: integer type of weights.
        symmetric_activation: activations use zero point 0 (or 128 for uint8).
        per_channel: weights have one scale per output channel.
        reduce_range: weights use 7 bits, where pairs of products saturate in 16 bits (x86 before
            VNNI).
        operators: operators that gain from being integer there, by measurement. Those without
            weights (and Gather of a table) are integer only next to others.
        group_channels: convolutions in groups gain from so many channels a group on. Depthwise
            ones are not meant: they follow their neighbours.
        conv_pack: convolutions read input channels in packs of so many; where there are fewer (a
            first layer's 3) channels of zeros are added.
        dynamic: operators better quantized at run time (activation ranges found on the fly),
            unless what they read already is integer.
        bias: type of biases: "int32" at the scale of data times weight, or "float32" as they were.
        everywhere: it computes in integers alone: Q/DQ stand around all of `operators`.
        wide: type of activations of 16 bits, for what 8 bits spoil; "" for none.
        stores: what is computed from constants is computed once, on loading: weights of float
            operators can lie in the file as integers.
    """

    activation: Literal["uint8", "int8"] = "uint8"
    weight: Literal["uint8", "int8"] = "int8"
    symmetric_activation: bool = False
    per_channel: bool = True
    reduce_range: bool = False
    operators: frozenset[str] = INTEGER
    group_channels: int = 1
    conv_pack: int = 1
    dynamic: frozenset[str] = frozenset()
    bias: Literal["int32", "float32"] = "int32"
    everywhere: bool = False
    wide: Literal["", "uint16"] = ""
    stores: bool = False


@dataclasses.dataclass(frozen=True)
class Target:
    """What a pass needs to know about where the model will run.

    Attributes:
        name: as written after `--target`, e.g. "cpu", "cpu-avx2", "onnx".
        backend: name of the backend that lowers and measures for it, or `FILE.py:NAME` of one in
            a user's file; "" means none.
        isa: instruction set extensions that matter, strongest last, e.g. ("avx2", "avx512-vnni").
        threads: threads the target runs on.
        opset: newest default-domain opset it accepts.
        operators: operators outside the ONNX standard that it has, as "domain:Name".
        lacks: standard operators it accepts but has no kernel for (it runs their definition), so
            that writing out is as fast or faster there.
        slow: operators that its runtime fuses others into although that is slower, and forms of one
            that it computes slowly.
        joins_products: products that share an operand (Q, K and V; gate and up) run faster as one.
        channel_multiple: channel counts that are a multiple of this run at full speed.
        precisions: element types with a fast path, fastest last, e.g. ("float32", "int8").
        int8: its integer scheme, or None if integers gain nothing.
        no_int8: why there is none.
        blocks: it reads matrices of a few bits as the standard has them: DequantizeLinear with
            `block_size`, of 4 and 8 bits from opset 21 on, of 2 bits from 25 on.
        measured: the backend can time models for it on this machine.
        deploys: models are served on it; `--target auto` leaves others out.
        suffix: what the name of a model's file ends in there.
    """

    name: str
    backend: str = ""
    isa: tuple[str, ...] = ()
    threads: int = 1
    opset: int = 23
    operators: frozenset[str] = frozenset()
    lacks: frozenset[str] = frozenset()
    slow: frozenset[str] = frozenset()
    joins_products: bool = False
    channel_multiple: int = 1
    precisions: tuple[str, ...] = ("float32",)
    int8: Int8Scheme | None = Int8Scheme()
    no_int8: str = ""
    blocks: bool = False
    measured: bool = False
    deploys: bool = True
    suffix: str = ".onnx"


#: Any consumer of standard ONNX: standard operators alone, nothing measured.
ONNX = Target("onnx", blocks=True)
