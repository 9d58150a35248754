"""ONNX Runtime's CUDA provider: half precision, fused attention, CUDA graphs, bound memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir
from graphopt.backends import gpu
from graphopt.backends.ort import accepted_opset, node_times, open_for, time_models

from graphopt.backend import Arrays, Timing
from graphopt.deploy.manifest import Manifest, read_manifest, write_manifest
from graphopt.deploy.sessions import OpenVinoSession, OrtSession
from graphopt.formats import save
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
class Cuda:
    """The backend object; see `graphopt.backend.Backend` for its methods."""

    name: str = "cuda"

    def targets(self) -> Sequence[str]:
        """`cuda` is this machine's GPU (or an sm80 where there is none)."""
        return (self.name, *(f"{self.name}-{c}" for c in gpu.CAPABILITIES))

    def target(self, name: str) -> Target:
        """The data of one target. Q/DQ gain nothing in this provider: weight-only integers do."""
        here = gpu.capability() if name == self.name else None
        capability = here or name.removeprefix(self.name).removeprefix("-") or gpu.DEFAULT
        return Target(
            name,
            backend=self.name,
            isa=(capability,),
            opset=accepted_opset(),
            operators=OPERATORS,
            joins_products=True,  # one launch where there were three; not measured yet
            channel_multiple=8,  # tensor cores read half-precision channels in groups of 16 bytes
            precisions=tuple(p for p in gpu.precisions(capability) if p != "int8"),
            int8=None,
            measured=here is not None and _installed(),
        )

    def lower(self, model: ir.Model, target: Target, path: Path) -> Path:
        """Write the model, its manifest and the script that runs it; needs no GPU."""
        gpu.check_script(path)
        save(model, path)
        write_manifest(path, manifest(model, target))
        gpu.write_script(path)
        return path

    def session(
        self, path: Path, target: Target, *, beside: bool = False
    ) -> OrtSession | OpenVinoSession:
        """Open the model on the GPU. Raises MissingExtra without ONNX Runtime's GPU build."""
        return open_for(path, _written(path, target), beside=beside)

    def measure(self, a: Path, b: Path, feeds: Arrays, target: Target, seconds: float) -> Timing:
        """Time two models on the same feeds in interleaved pairs."""
        return time_models(a, b, _written(a, target), feeds, seconds)

    def profile(self, path: Path, feeds: Arrays, target: Target) -> dict[str, float]:
        """Milliseconds per node as the runtime ran it."""
        return node_times(path, _written(path, target), feeds)


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


def _written(path: Path, target: Target) -> Manifest:
    """The manifest beside the model, which depends on the model."""
    return read_manifest(path) or Manifest(target.name, PROVIDER, extra="cuda")


def _installed() -> bool:
    import onnxruntime as ort

    return PROVIDER in ort.get_available_providers()


BACKEND = Cuda()
