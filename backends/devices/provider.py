"""Devices behind a provider of ONNX Runtime that is not on this machine: known from data alone."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import onnx_ir as ir
from graphopt.backends.devices.fixed import at_fixed_shapes
from graphopt.backends.devices.limits import Fall, Limit, falls_off
from graphopt.backends.ort import OrtBackend

from graphopt.deploy.manifest import write_manifest
from graphopt.formats import save
from graphopt.target import Target

__all__ = ["ProviderDevice"]


class ProviderDevice(OrtBackend):
    """A backend that writes ONNX at fixed shapes and says what the device would not take.

    Attributes:
        title: what the provider is called.
        operators: what it has, as far as no limit says otherwise.
        limits: of single operators.
    """

    title: ClassVar[str]
    operators: ClassVar[frozenset[str]]
    limits: ClassVar[tuple[Limit, ...]]

    def lower(self, model: ir.Model, target: Target, path: Path) -> Path:
        """Write the model at fixed shapes, and the manifest that opens it on the device."""
        save(at_fixed_shapes(model, target), path)
        write_manifest(path, self.how(path, target))
        return path

    def falls_off(self, model: ir.Model) -> list[Fall]:
        """The nodes that the provider would leave to the CPU, and why."""
        return falls_off(model, self.operators, self.limits, self.title)
