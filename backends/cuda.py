"""ONNX Runtime's CUDA provider: half precision, fused attention, CUDA graphs, bound memory."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir
from graphopt.backends import gpu
from graphopt.backends.ort import accepted_opset

from graphopt.deploy.manifest import Manifest
from graphopt.target import Target

__all__ = ["BACKEND", "Cuda"]

PROVIDER = "CUDAExecutionProvider"

#: Operators outside the standard that the provider has fused kernels for.
OPERATORS = frozenset(
    f"com.microsoft:{name}"
    for name in (
        "Attention",
        "BiasGelu",
        "BiasSplitGelu",
        "EmbedLayerNormalization",
        "FastGelu",
        "FusedConv",
        "FusedMatMul",
        "Gelu",
        "GemmFastGelu",
        "GroupNorm",
        "GroupQueryAttention",
        "MatMulNBits",
        "MultiHeadAttention",
        "PackedMultiHeadAttention",
        "QuickGelu",
        "RotaryEmbedding",
        "SimplifiedLayerNormalization",
        "SkipGroupNorm",
        "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization",
    )
)


@dataclasses.dataclass(frozen=True)
class Cuda(gpu.GpuBackend):
    """The backend object; see `graphopt.backend.Backend` for its methods."""

    name: str = "cuda"
    provider: ClassVar[str] = PROVIDER

    def target(self, name: str) -> Target:
        """The data of one target. Q/DQ gain nothing in this provider: weight-only integers do."""
        capability, here = self.capability(name)
        return Target(
            name,
            backend=self.name,
            isa=(capability,),
            opset=accepted_opset(),
            operators=OPERATORS,
            joins_products=True,  # BERT-base, H200: 1.15 times as fast in float32, 1.09 in float16
            channel_multiple=8,  # tensor cores read half-precision channels in groups of 16 bytes
            precisions=tuple(p for p in gpu.precisions(capability) if p != "int8"),
            int8=None,
            measured=here,
        )

    def manifest(self, model: ir.Model, target: Target) -> Manifest:
        """See `manifest`."""
        return manifest(model, target)


def manifest(model: ir.Model, target: Target) -> Manifest:
    """How the model is opened: kernels are replayed as one CUDA graph where shapes are static."""
    static = gpu.fixed_shapes(model)
    convolves = any(n.op_type == "Conv" for n in model.graph)
    return Manifest(
        target.name,
        provider=PROVIDER,
        provider_options={
            "arena_extend_strategy": "kSameAsRequested",
            "cudnn_conv_algo_search": "EXHAUSTIVE" if static else "HEURISTIC",
            "cudnn_conv_use_max_workspace": "1",
            "do_copy_in_default_stream": "1",
            "enable_cuda_graph": "1" if static else "0",
            "prefer_nhwc": "1" if convolves else "0",
        },
        bind="cuda",
        extra="cuda",
    )


BACKEND = Cuda()
