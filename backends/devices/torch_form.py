"""Devices that PyTorch writes for: the torch form of a model at fixed shapes, exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import onnx_ir as ir
from graphopt.backends.devices.device import Device
from graphopt.backends.devices.names import write_names
from graphopt.backends.devices.process import run_function

from graphopt.analyses.binding import bind_shapes
from graphopt.formats import save
from graphopt.samples import stand_ins
from graphopt.target import Target

__all__ = ["TorchDevice", "exported"]


class TorchDevice(Device):
    """A device whose module has `convert`, which lowers in a process of its own.

    Attributes:
        converter: what does it, as errors call it.
    """

    converter: ClassVar[str]

    def convert(self, model: ir.Model, target: Target, path: Path) -> None:
        """Write the artifact, and the names of inputs and outputs beside it."""
        source = path.with_suffix(".onnx")
        save(model, source)
        run_function(type(self).__module__, "convert", [source, path], path.parent, self.converter)
        source.unlink()
        write_names(model, path)


def exported(model: ir.Model, *, integers: bool = False) -> tuple[Any, tuple[Any, ...]]:
    """The program of `torch.export`, and the inputs it was exported with.

    With `integers` it has PyTorch's own Q/DQ, as compilers of devices read them.
    """
    import torch
    from graphopt.backends.torch_fx.lowering import lower
    from graphopt.backends.torch_fx.types import tensor_of

    shapes, _ = bind_shapes(model)
    feeds = next(iter(stand_ins(model, shapes=shapes)))
    module = lower(model, integers=integers)
    given = tuple(tensor_of(ir.tensor(feeds[n])) for n in module.meta["graphopt.inputs"])
    return torch.export.export(module, given), given
