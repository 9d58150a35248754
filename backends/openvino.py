"""OpenVINO's CPU device: as a plugin of ONNX Runtime where it finds an Intel processor, natively
elsewhere.

Both compile the same file with the same properties. The plugin registers with stock ONNX Runtime
and looks for Intel devices alone; the `openvino` package runs on every x86 and ARM processor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import onnx_ir as ir
from graphopt.backends.openvino_forms import in_its_forms
from graphopt.backends.ort import OrtBackend

from graphopt.deploy.manifest import Manifest, write_manifest
from graphopt.deploy.processors import extensions, processors, saturates
from graphopt.errors import MissingExtra
from graphopt.formats import save
from graphopt.target import Int8Scheme, Target

__all__ = ["BACKEND", "OpenVino"]

PLUGIN, NATIVE, EXTRA = "onnxruntime_ep_openvino", "openvino", "openvino"

#: "openvino" computes in bfloat16 where the processor has it; "openvino-f32" never does.
PRECISIONS = {"openvino": "", "openvino-f32": "f32"}

#: How OpenVINO's CPU device computes a convolution or product between Q/DQ pairs, by the types of
#: data and weights: in integers, in float, or, where "refused", in integers on some processors and
#: not at all on others ("No suitable implementations", Intel with AMX; Zen 5 runs it).
FORMS = {
    ("uint8", "int8"): "integer",
    ("int8", "int8"): "refused",
    ("uint8", "uint8"): "float",
    ("int8", "uint8"): "float",
}

#: Q/DQ that OpenVINO's low-precision transformations fuse: unsigned activations, signed symmetric
#: weights per channel, and followers between them (ResNet-50: 1.9 times bfloat16 with followers,
#: 1.6 without, NNCF's own placement 1.8; Zen 5, 1 thread, one run). Signed symmetric activations
#: lose a bit on everything that is positive and gain nothing; unsigned weights run in float.
INT8 = Int8Scheme(
    activation="uint8",
    weight="int8",
    per_channel=True,
    operators=frozenset(
        {
            "Conv",
            "MatMul",
            "Gemm",
            "Add",
            "AveragePool",
            "Concat",
            "DepthToSpace",
            "Flatten",
            "GlobalAveragePool",
            "MaxPool",
            "Mul",
            "Reshape",
            "Resize",
            "Slice",
            "SpaceToDepth",
            "Split",
            "Squeeze",
            "Transpose",
            "Unsqueeze",
        }
    ),
)


@dataclasses.dataclass(frozen=True)
class OpenVino(OrtBackend):
    """The backend object; see `graphopt.backend.Backend` for its methods."""

    name: str = "openvino"

    def targets(self) -> Sequence[str]:
        """`openvino` may compute in bfloat16, `openvino-f32` computes in float32."""
        return tuple(PRECISIONS)

    def target(self, name: str) -> Target:
        """The data of one target. Raises MissingExtra if neither package is installed."""
        if find_spec(PLUGIN) is None and find_spec(NATIVE) is None:
            raise MissingExtra(EXTRA, f"target '{name}'")
        isa = extensions()
        half = {"avx512-bf16", "amx-bf16"} & set(isa) and name == "openvino"
        return Target(
            name,
            backend=self.name,
            isa=isa,
            threads=processors(),
            opset=20,
            channel_multiple=16 if "avx512" in isa else 8,
            precisions=("float32", "bfloat16", "int8") if half else ("float32", "int8"),
            # before VNNI its pairs of products saturate too: a product of random 8-bit weights is
            # 18 % off, of 7-bit ones exact and as fast (Zen 3)
            int8=dataclasses.replace(INT8, reduce_range=saturates(isa)),
            measured=True,
        )

    def lower(self, model: ir.Model, target: Target, path: Path) -> Path:
        """Write the model and its manifest; OpenVINO compiles it when it opens it."""
        save(in_its_forms(model), path)
        write_manifest(path, manifest(target))
        return path

    def how(self, path: Path, target: Target) -> Manifest:
        """As every model for `target`."""
        return manifest(target)


def manifest(target: Target) -> Manifest:
    """How a model for `target` is opened, by the plugin or natively."""
    precision = PRECISIONS[target.name]
    return Manifest(
        target.name,
        provider="OpenVINOExecutionProvider",
        plugin=PLUGIN,
        device={"ov_device": "CPU"},
        native=NATIVE,
        properties={
            "PERFORMANCE_HINT": "LATENCY",
            **({"INFERENCE_PRECISION_HINT": precision} if precision else {}),
        },
        extra=EXTRA,
        threads=target.threads if target.threads != processors() else 0,
    )


BACKEND = OpenVino()
