"""StableHLO: portable `.mlirbc` artifacts for PJRT runtimes (XLA on CPU, GPU and TPU).

The model goes through its torch form, `torch.export`, torchax and `jax.export`, in a process of its
own. PJRT compiles the artifact when it opens it. Integers of 64 bits become 32, as JAX has them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from graphopt.backends.devices.names import Names, read_names
from graphopt.backends.devices.torch_form import TorchDevice, exported

from graphopt.backend import Arrays
from graphopt.errors import ModelError
from graphopt.formats import load
from graphopt.target import Target

__all__ = ["BACKEND", "StableHlo", "StableHloSession"]


@dataclasses.dataclass(frozen=True)
class StableHlo(TorchDevice):
    """The backend object; see `graphopt.backend.Backend` for its methods."""

    name: str = "stablehlo"
    suffix: ClassVar[str] = ".mlirbc"
    packages: ClassVar[tuple[str, ...]] = ("jax", "torchax", "torch")
    extra: ClassVar[str] = "stablehlo"
    opset: ClassVar[int] = 22
    converter: ClassVar[str] = "torchax"
    no_int8: ClassVar[str] = "XLA computes Q/DQ in floats on CPUs, beside what rounding costs"

    def open(self, path: Path, target: Target) -> StableHloSession:
        """Compile the artifact for the CPU by PJRT; its threads are those of the first opened."""
        import jax
        from jax._src.lib import xla_client  # no public function compiles an artifact

        names = read_names(path, self.name)
        with _threads(target.threads):
            device = jax.devices("cpu")[0]
        places = xla_client.DeviceList((device,))
        options = xla_client.CompileOptions()
        try:
            raw = device.client.compile_and_load(path.read_bytes(), places, options)
        except RuntimeError as error:
            said = str(error).splitlines()[0]
            raise ModelError(f"{path.name} does not open for '{self.name}': {said}") from error
        return StableHloSession(raw, device, names)


class StableHloSession:
    """A model in PJRT; `raw` is its loaded executable."""

    def __init__(self, raw: Any, device: Any, names: Names) -> None:
        self.raw, self._device, self._names = raw, device, names
        self.inputs, self.outputs = list(names["inputs"]), list(names["outputs"])

    def __call__(self, feeds: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """Run once: arrays by input name in, arrays by output name out."""
        import jax

        given = [jax.device_put(np.asarray(feeds[n]), self._device) for n in self.inputs]
        results = self.raw.execute_sharded(given).disassemble_into_single_device_arrays()
        made = {}
        for name, (result,) in zip(self.outputs, results, strict=True):
            kind = self._names["outputs"][name]["dtype"]
            made[name] = np.array(result).astype(kind, copy=False)
        return made


def convert() -> None:
    """Lower the model file to the artifact that the arguments of this process name."""
    import torch

    with _dropped_overloads(torch._ops.OpOverloadPacket):
        from torchax.export import exported_program_to_jax
    import jax

    source, path = map(Path, sys.argv[1:])
    with torch.no_grad():
        program, tensors = exported(load(source))
    weights, function = exported_program_to_jax(program)
    given = tuple(jax.numpy.asarray(t.numpy()) for t in tensors)
    jitted = jax.jit(lambda *inputs: function(weights, inputs), keep_unused=True)
    path.write_bytes(jax.export.export(jitted)(*given).mlir_module_serialized)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """XLA has so many threads in this process, if it starts in the block: it reads NPROC then."""
    before = os.environ.get("NPROC")
    os.environ["NPROC"] = str(max(count, 1))
    try:
        yield
    finally:
        del os.environ["NPROC"]
        if before is not None:
            os.environ["NPROC"] = before


@contextlib.contextmanager
def _dropped_overloads(packets: Any) -> Iterator[None]:
    """None for overloads that torch has not: torchax 0.0.13 names, when it is imported, those of
    named tensors, which torch 2.13 dropped.
    """
    real = packets.__getattr__

    def found(packet: Any, name: str) -> Any:
        try:
            return real(packet, name)
        except AttributeError:
            if name.startswith("_"):
                raise
            return None

    packets.__getattr__ = found
    try:
        yield
    finally:
        packets.__getattr__ = real


BACKEND = StableHlo()
