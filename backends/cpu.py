"""ONNX Runtime's CPU provider: its targets as data, lowering, measurement and profile."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import onnx_ir as ir
from graphopt.backends.ort import OrtBackend, accepted_opset

from graphopt.deploy.manifest import Manifest, write_manifest
from graphopt.deploy.processors import extensions, processors
from graphopt.formats import save
from graphopt.target import Int8Scheme, Target

__all__ = ["BACKEND", "Cpu"]

#: Operators outside the standard that the provider has kernels for and that save time there. Not
#: here: BiasGelu takes 1.1 times Add and Gelu (128 rows of 3072); Attention, three products in one,
#: 1.5 times them and the standard Attention where heads are small (16 rows of 4 * 12).
OPERATORS = frozenset(
    f"com.microsoft:{name}"
    for name in (
        "DynamicQuantizeLSTM",
        "DynamicQuantizeMatMul",
        "EmbedLayerNormalization",
        "FastGelu",
        "FusedConv",
        "FusedGemm",
        "FusedMatMul",
        "GatherBlockQuantized",
        "Gelu",
        "GroupQueryAttention",
        "GroupQueryAttention(int8)",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "MultiHeadAttention",
        "QAttention",
        "QGemm",
        "QLinearAdd",
        "QLinearAveragePool",
        "QLinearConcat",
        "QLinearGlobalAveragePool",
        "QLinearLeakyRelu",
        "QLinearMul",
        "QLinearSigmoid",
        "QLinearSoftmax",
        "QMoE",
        "QuickGelu",
    )
)

#: Standard operators without a kernel: GroupNormalization, written out by the runtime, takes twice
#: the time of Reshape and InstanceNormalization, Swish 2.8 times that of QuickGelu.
LACKS = frozenset({"GroupNormalization", "Swish"})

#: Operators the provider makes of an Add and the norm after it, one row after another in scalar
#: code: 7.3 and 1.7 times the time of the two (128 rows of 768, Zen 5). And a mean over the rows of
#: one matrix that is written with a leading axis of 1: 14 times (128 rows of 1024).
SLOW = frozenset(
    {
        "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization",
        "ReduceMean[1,rows,columns]",
    }
)

#: What the provider computes in integers between integer neighbours. A SiLU between convolutions
#: takes half the time with its Sigmoid in integers too, HardSigmoid (as an Add) 0.4 to 0.6 times
#: (32 x 160 x 160 to 256 x 14 x 14; Zen 5, 1 thread). Softmax is not here: rounding its result
#: costs more than it saves.
INTEGER = frozenset(
    {
        "Conv",
        "MatMul",
        "Gemm",
        "Add",
        "AveragePool",
        "Concat",
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "GlobalAveragePool",
        "HardSigmoid",
        "LeakyRelu",
        "MaxPool",
        "Mul",
        "Reshape",
        "Resize",
        "Sigmoid",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)

#: Unsigned activations with signed weights use the dot-product instructions of x86 everywhere.
#: Signed activations are as fast on some processors and sixty times slower on others.
_U8S8 = Int8Scheme(
    activation="uint8",
    weight="int8",
    per_channel=True,
    operators=INTEGER,
    conv_pack=4,  # 3x3, 3 to 32 channels of 224 x 224: half the time; 7x7: 0.85 times
    group_channels=32,  # 4, 8, 16, 32 channels a group: 0.5, 0.9, 1.0, 1.7 times float
    # the same speed as static products, LSTM 3 times float; ranges fit each run
    dynamic=frozenset({"Gemm", "LSTM", "MatMul"}),
    stores=True,
)

#: The targets by name: extensions, integer scheme, block of channels in the convolution layout.
TARGETS: dict[str, Target] = {
    "cpu-avx2": Target(
        "cpu-avx2",
        isa=("avx2",),
        channel_multiple=8,
        # without VNNI, sums of two products saturate in 16 bits: weights keep 7
        int8=dataclasses.replace(_U8S8, reduce_range=True),
    ),
    "cpu-avx512-vnni": Target(
        "cpu-avx512-vnni",
        isa=("avx2", "avx512", "avx512-vnni"),
        channel_multiple=16,
        int8=_U8S8,
    ),
    "cpu-amx": Target(
        "cpu-amx",
        isa=("avx2", "avx512", "avx512-vnni", "avx512-bf16", "amx-int8", "amx-bf16"),
        channel_multiple=16,
        int8=_U8S8,
    ),
    "cpu-arm": Target(
        "cpu-arm",
        isa=("neon", "dotprod"),
        channel_multiple=8,
        int8=dataclasses.replace(_U8S8, activation="int8", conv_pack=1),
    ),
}


@dataclasses.dataclass(frozen=True)
class Cpu(OrtBackend):
    """The backend object; see `graphopt.backend.Backend` for its methods."""

    name: str = "cpu"

    def targets(self) -> Sequence[str]:
        """`cpu` is this machine; the others are chosen from data and not measured."""
        return ("cpu", *TARGETS)

    def target(self, name: str) -> Target:
        """The data of one target; `cpu` has this machine's extensions and processors."""
        data = TARGETS[name if name in TARGETS else nearest_target(extensions())]
        data = dataclasses.replace(
            data,
            backend=self.name,
            operators=OPERATORS,
            lacks=LACKS,
            slow=SLOW,
            precisions=("float32", "int8"),
            opset=accepted_opset(),
        )
        if name != "cpu":
            return data
        return dataclasses.replace(
            data,
            name="cpu",
            isa=extensions(),
            threads=processors(),
            measured=True,
        )

    def lower(self, model: ir.Model, target: Target, path: Path) -> Path:
        """Write the model and its manifest; the provider lays it out itself when it opens it."""
        save(model, path)
        write_manifest(path, manifest(target))
        return path

    def how(self, path: Path, target: Target) -> Manifest:
        """As every model for `target`."""
        return manifest(target)


def manifest(target: Target) -> Manifest:
    """How a model for `target` is opened; threads are written where they were chosen."""
    chosen = target.measured and target.threads != processors()
    return Manifest(target.name, threads=target.threads if chosen else 0)


@cache
def nearest_target(isa: tuple[str, ...]) -> str:
    """The name of the strongest target whose extensions are all among `isa`."""
    able = [name for name, t in TARGETS.items() if set(t.isa) <= set(isa)]
    if able:
        return max(able, key=lambda name: len(TARGETS[name].isa))
    return "cpu-arm" if "neon" in isa else "cpu-avx2"


BACKEND = Cpu()
