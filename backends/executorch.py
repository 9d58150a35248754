"""ExecuTorch: `.pte` programs for PyTorch's runtime on phones, computed by XNNPACK.

The model goes through its torch form and `torch.export`, in a process of its own.
"""

from __future__ import annotations

import dataclasses
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from graphopt.backends.devices.names import Names, read_names
from graphopt.backends.devices.quantized import in_pairs, is_quantized
from graphopt.backends.devices.steps import in_steps
from graphopt.backends.devices.torch_form import TorchDevice, exported

from graphopt.backend import Arrays
from graphopt.errors import ModelError
from graphopt.formats import load
from graphopt.target import Int8Scheme, Target

__all__ = ["BACKEND", "ExecuTorch", "ExecuTorchSession"]

#: Registers the kernels of Q/DQ that XNNPACK leaves, once imported.
KERNELS = "executorch.kernels.quantized"


@dataclasses.dataclass(frozen=True)
class ExecuTorch(TorchDevice):
    """The backend object; see `graphopt.backend.Backend` for its methods."""

    name: str = "executorch"
    suffix: ClassVar[str] = ".pte"
    packages: ClassVar[tuple[str, ...]] = ("executorch", "torch")
    extra: ClassVar[str] = "executorch"
    opset: ClassVar[int] = 22
    converter: ClassVar[str] = "ExecuTorch"
    #: XNNPACK's: activations int8 with any zero point, weights int8 without, biases floats.
    int8: ClassVar[Int8Scheme | None] = Int8Scheme(
        activation="int8",
        weight="int8",
        bias="float32",
        operators=frozenset(
            {
                *("Add", "Concat", "Conv", "Flatten", "Gemm", "GlobalAveragePool", "MatMul"),
                *("MaxPool", "Mul", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"),
            }
        ),
    )

    def convert(self, model: ir.Model, target: Target, path: Path) -> None:
        """Write the program, recurrent layers as steps that XNNPACK takes as one."""
        super().convert(in_steps(model), target, path)

    def open(self, path: Path, target: Target) -> ExecuTorchSession:
        """Open the program in the portable runtime with XNNPACK; its threads are the process's."""
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime

        import_module(KERNELS)
        names = read_names(path, self.name)
        if portable_lib._threadpool_get_thread_count() != max(target.threads, 1):
            portable_lib._unsafe_reset_threadpool(max(target.threads, 1))
        try:
            program = Runtime.get().load_program(path)
            raw = program.load_method("forward")
        except RuntimeError as error:
            raise ModelError(f"{path.name} does not open for '{self.name}': {error}") from error
        return ExecuTorchSession(raw, program, names)


class ExecuTorchSession:
    """A model in ExecuTorch; `raw` is its method."""

    def __init__(self, raw: Any, program: Any, names: Names) -> None:
        self.raw, self._program = raw, program
        self.inputs, self.outputs = list(names["inputs"]), list(names["outputs"])

    def __call__(self, feeds: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """Run once: arrays by input name in, arrays by output name out."""
        import torch

        given = [torch.from_numpy(np.array(feeds[n], order="C")) for n in self.inputs]
        made = self.raw.execute(given)
        return {n: r.clone().numpy() for n, r in zip(self.outputs, made, strict=True)}


def convert() -> None:
    """Lower the model file to the program file that the arguments of this process name."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    import_module(KERNELS)
    source, path = map(Path, sys.argv[1:])
    model = load(source)
    integers = is_quantized(model)
    with torch.no_grad():
        program, _ = exported(in_pairs(model) if integers else model, integers=integers)
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        path.write_bytes(lowered.to_executorch().buffer)


BACKEND = ExecuTorch()
