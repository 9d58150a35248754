"""ONNX Runtime's TensorRT provider: explicit Q/DQ, engine and timing caches, shape profiles."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

import onnx_ir as ir
from graphopt.backends import gpu

from graphopt.deploy.manifest import Manifest
from graphopt.target import Int8Scheme, Target

__all__ = ["BACKEND", "PROFILE", "TensorRt"]

PROVIDER = "TensorrtExecutionProvider"

#: The Q/DQ that TensorRT takes: signed and symmetric throughout (any other zero point is refused),
#: weights per channel, biases in float, around operators with weights and the additions between.
INT8 = Int8Scheme(
    activation="int8",
    weight="int8",
    symmetric_activation=True,
    per_channel=True,
    operators=frozenset(
        {"Add", "AveragePool", "Conv", "ConvTranspose", "Gemm", "GlobalAveragePool", "MatMul"}
    ),
    bias="float32",
)

#: Least, usual and greatest size of a dynamic dimension: the first of an input, and the others.
PROFILE = {"batch": (1, 1, 16), "other": (1, 128, 512)}

#: Element types by the provider option that lets TensorRT use them.
FLAGS = {
    "trt_fp16_enable": ir.DataType.FLOAT16,
    "trt_bf16_enable": ir.DataType.BFLOAT16,
    "trt_int8_enable": ir.DataType.INT8,
}


@dataclasses.dataclass(frozen=True)
class TensorRt(gpu.GpuBackend):
    """The backend object; see `graphopt.backend.Backend` for its methods."""

    name: str = "tensorrt"
    provider: ClassVar[str] = PROVIDER

    def target(self, name: str) -> Target:
        """The data of one target."""
        capability, here = self.capability(name)
        types = gpu.precisions(capability)
        return Target(
            name,
            backend=self.name,
            isa=(capability,),
            opset=20,
            joins_products=True,  # as it does itself where it finds them; not measured yet
            channel_multiple=32 if "int8" in types else 8,
            precisions=types,
            int8=INT8 if "int8" in types else None,
            measured=here,
        )

    def manifest(self, model: ir.Model, target: Target) -> Manifest:
        """See `manifest`."""
        return manifest(model, target)


def manifest(model: ir.Model, target: Target) -> Manifest:
    """How the model is opened: caches beside it, the types it holds, profiles of its shapes."""
    used = {t for t in _types(model.graph.all_nodes()) if t is not None}
    flags = {option: "1" for option, dtype in FLAGS.items() if dtype in used}
    static = gpu.fixed_shapes(model)
    return Manifest(
        target.name,
        provider=PROVIDER,
        provider_options={
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": "trt-cache",
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": "trt-cache",
            "trt_builder_optimization_level": "5",
            "trt_cuda_graph_enable": "1" if static else "0",
            **flags,
            **profile_options(model),
        },
        fallbacks=("CUDAExecutionProvider",),
        bind="cuda",
        extra="tensorrt",
    )


def profile_options(model: ir.Model) -> dict[str, str]:
    """`trt_profile_min_shapes` and so on, as `x:1x3x224x224,y:...`; none for static inputs."""
    shapes = {
        v.name: v.shape
        for v in model.graph.inputs
        if v.name not in model.graph.initializers and v.shape is not None
    }
    if all(isinstance(d, int) for s in shapes.values() for d in s):
        return {}
    options = {}
    for k, which in enumerate(("min", "opt", "max")):
        sizes = {
            name: [
                d if isinstance(d, int) else PROFILE["other" if axis else "batch"][k]
                for axis, d in enumerate(shape)
            ]
            for name, shape in shapes.items()
        }
        text = (f"{name}:{'x'.join(map(str, size))}" for name, size in sizes.items() if size)
        options[f"trt_profile_{which}_shapes"] = ",".join(text)
    return options


def _types(nodes: Iterable[ir.Node]) -> Iterable[ir.DataType | None]:
    for node in nodes:
        for value in (*node.inputs, *node.outputs):
            if value is not None:
                tensor = value.const_value
                yield value.dtype if tensor is None else tensor.dtype


BACKEND = TensorRt()
