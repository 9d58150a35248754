"""Device backends: convert in a folder aside, run the file in its own runtime, compare, put it.

What differs from the source is not written: a converter that takes a model and computes something
else is the fault that nobody sees until the device is in the field.
"""

from __future__ import annotations

import abc
import dataclasses
import math
import tempfile
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from graphopt.backends.devices.fixed import at_fixed_shapes, free_dimensions
from graphopt.backends.devices.quantized import in_floats, is_quantized
from graphopt.backends.devices.trial import run_apart

from graphopt.analyses.binding import bind_shapes
from graphopt.backend import Arrays, Session, Timing
from graphopt.deploy.manifest import Manifest, read_manifest, sign, write_manifest
from graphopt.deploy.processors import processors
from graphopt.errors import MissingExtra, ModelError, UsageError
from graphopt.execution.runtime import run_each
from graphopt.measuring.statistics import time_pair
from graphopt.replacing import replace_files
from graphopt.samples import stand_ins
from graphopt.target import Int8Scheme, Target
from graphopt.verification.comparison import compare_outputs

__all__ = ["FLOAT", "QUANTIZED", "Device", "difference"]

Array = np.ndarray[Any, Any]

#: Largest relative L2 error beside ONNX Runtime: other sums, other approximations of exp.
FLOAT = 1e-4
#: The same with integers, at least: a value half-way between two steps is rounded to either. Two
#: roundings of the same floats lie up to twice as far apart as one from the floats.
QUANTIZED = 0.05


class Device(abc.ABC):
    """A backend for one kind of file.

    Attributes:
        name: of the backend and of its target.
        suffix: what its files end in.
        packages: what must be importable to write and to run them.
        extra: the extra of graphopt that installs these.
        opset: the newest that its converter reads.
        int8: its quantization rules, or None where it computes no integers.
        no_int8: why it does not.
        fixed: whether it is given fixed shapes.
        apart: whether a file is tried in a process of its own, since its runtime may crash.
        exact: largest relative L2 error of its float outputs beside ONNX Runtime's.
    """

    name: str
    suffix: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ""
    opset: ClassVar[int] = 20
    int8: ClassVar[Int8Scheme | None] = None
    no_int8: ClassVar[str] = ""
    fixed: ClassVar[bool] = True
    apart: ClassVar[bool] = False
    exact: ClassVar[float] = FLOAT

    @abc.abstractmethod
    def convert(self, model: ir.Model, target: Target, path: Path) -> None:
        """Write the file at `path`, and others beside it. Raises ModelError: what it can't take."""

    @abc.abstractmethod
    def open(self, path: Path, target: Target) -> Session:
        """Open the file in its runtime."""

    def targets(self) -> Sequence[str]:
        """One, of the backend's name."""
        return (self.name,)

    def target(self, name: str) -> Target:
        """Its data. Raises MissingExtra if its packages are not installed."""
        if any(find_spec(p) is None for p in self.packages):
            raise MissingExtra(self.extra, f"target '{name}'")
        return Target(
            name,
            backend=self.name,
            threads=processors(),
            opset=self.opset,
            precisions=("float32", "int8") if self.int8 else ("float32",),
            int8=self.int8,
            no_int8=self.no_int8,
            measured=True,
            deploys=False,
            suffix=self.suffix,
        )

    def lower(self, model: ir.Model, target: Target, path: Path) -> Path:
        """Write the file, unless what it computes differs from what the model computes.

        Raises:
            ModelError: what cannot be converted, or by how much the outputs differ.
            UsageError: a file of somebody else's lies where one beside it goes.
        """
        path = path.with_suffix(self.suffix) if path.suffix == ".onnx" else path
        given = self.prepared(at_fixed_shapes(model, target) if self.fixed else model)
        with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
            made = Path(folder, path.name)
            self.convert(given, target, made)
            self.check(given, target, made)
            files = sorted(p for p in Path(folder).iterdir())
            others = tuple(p.name for p in files if p.name != path.name)
            _check_others(path, others)
            replace_files([(path.with_name(p.name), [p.read_bytes()]) for p in files])
        write_manifest(path, dataclasses.replace(self.how(model, target), files=others))
        sign(path)
        return path

    def prepared(self, model: ir.Model) -> ir.Model:
        """What is converted, and compared with the file: the model, as the device rounds it."""
        return model

    def how(self, model: ir.Model, target: Target) -> Manifest:
        """How the file of `model` is opened: by this backend."""
        sizes = free_dimensions(model) if self.fixed else {}
        return Manifest(
            target.name,
            provider=target.name,
            backend=self.name,
            extra=self.extra,
            free_dimensions=sizes,
        )

    def check(self, model: ir.Model, target: Target, made: Path) -> None:
        """Raise ModelError if the file at `made` computes something else than `model`."""
        shapes, _ = bind_shapes(model)
        feeds = list(stand_ins(model, seed=0, shapes=shapes))
        got = run_apart(made, target, feeds) if self.apart else map(self.open(made, target), feeds)
        expected = list(run_each(model, feeds))
        worst = max(map(difference, expected, got))
        limit = self.exact
        if is_quantized(model):
            floats = run_each(in_floats(model)[0], feeds)
            limit = max(QUANTIZED, 2 * _finite(map(difference, floats, expected)))
        if not worst <= limit:
            raise ModelError(
                f"the {self.suffix} file computes something else: relative L2 error {worst:.2g}, "
                f"{limit:g} at most; nothing was written. Take another target"
            )

    def session(self, path: Path, target: Target, *, beside: bool = False) -> Session:
        """Open a file; its threads do not spin."""
        return self.open(path, target)

    def measure(self, a: Path, b: Path, feeds: Arrays, target: Target, seconds: float) -> Timing:
        """Time two files on the same feeds in interleaved pairs."""
        first, second = (self.session(path, target, beside=True) for path in (a, b))
        return time_pair(lambda: first(feeds), lambda: second(feeds), seconds)

    def profile(self, path: Path, feeds: Arrays, target: Target) -> dict[str, float]:
        """Milliseconds of the whole file: runtimes name their nodes each in its own way."""
        opened = self.open(path, target)
        timing = time_pair(lambda: opened(feeds), lambda: opened(feeds), 0.1)
        return {path.stem: timing.a_ms}


def _check_others(path: Path, names: Sequence[str]) -> None:
    """Raise UsageError if a file beside `path`, which is no part of it, would be replaced."""
    known = read_manifest(path)
    for name in names:
        file = path.with_name(name)
        if file.exists() and (known is None or name not in known.files):
            raise UsageError(f"{file} is not graphopt's: move it, or name another output")


def difference(expected: Arrays, got: Arrays) -> float:
    """The largest relative L2 error of the outputs; infinite where shapes or integers differ.

    Devices may hold integers in other widths.
    """
    if not got.keys() >= expected.keys():
        return math.inf
    alike = {n: np.asarray(got[n]).astype(a.dtype, copy=False) for n, a in expected.items()}
    compared = compare_outputs([expected], [alike])
    return math.inf if any(compared.changed.values()) else compared.worst


def _finite(errors: Iterable[float]) -> float:
    """The largest that is a number."""
    return max(filter(math.isfinite, errors), default=0.0)
