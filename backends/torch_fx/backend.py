"""The torch target as a backend object: its data, `.pt2` artifacts and running them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.backend import Arrays, Timing
from graphopt.deploy.processors import processors
from graphopt.errors import MissingExtra
from graphopt.measuring.statistics import time_pair
from graphopt.target import Target
from graphopt.tracing.torch_side import array_of

__all__ = ["BACKEND", "TorchFx"]


@dataclasses.dataclass(frozen=True)
class TorchFx:
    """The backend object; see `graphopt.backend.Backend` for its methods."""

    name: str = "torch"

    def targets(self) -> Sequence[str]:
        """One target: torch as it is installed."""
        return ("torch",)

    def target(self, name: str) -> Target:
        """Its data: standard operators in float32. It trains models and serves none.

        Raises MissingExtra if torch is not installed.
        """
        if find_spec("torch") is None:
            raise MissingExtra("torch", "target 'torch'")
        return Target(
            name,
            backend=self.name,
            threads=processors(),
            int8=None,
            no_int8="the torch form trains on floats",
            measured=True,
            deploys=False,
        )

    def lower(self, model: ir.Model, target: Target, path: Path) -> Path:
        """Write a `.pt2` program, or an ONNX file for `session` to lower, as `path` is called."""
        if path.suffix == ".pt2":
            from graphopt.backends.torch_fx.programs import save_program

            return save_program(model, path)
        from graphopt.formats import save

        save(model, path)
        return path

    def session(self, path: Path, target: Target, *, beside: bool = False) -> Any:
        """Open a program, or a model file as the lowered module."""
        if path.suffix == ".pt2":
            from graphopt.backends.torch_fx.programs import open_program, run_program

            program, names = open_program(path)
            return lambda feeds: run_program(program, names, feeds)
        from graphopt.backends.torch_fx import lowering

        from graphopt.formats import load

        module = lowering.lower(load(path))
        return lambda feeds: run_module(module, feeds, target.threads)

    def measure(self, a: Path, b: Path, feeds: Arrays, target: Target, seconds: float) -> Timing:
        """Time two artifacts on the same feeds in interleaved pairs."""
        first, second = self.session(a, target), self.session(b, target)
        return time_pair(lambda: first(feeds), lambda: second(feeds), seconds)

    def profile(self, path: Path, feeds: Arrays, target: Target) -> dict[str, float]:
        """Milliseconds per node of the module, median over five runs."""
        from graphopt.backends.torch_fx import lowering
        from graphopt.backends.torch_fx.timing import node_times

        from graphopt.formats import load

        return node_times(lowering.lower(load(path)), feeds)


def run_module(module: Any, feeds: Arrays, threads: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Outputs by name for arrays by input name, without gradients.

    `threads` is torch's number for the whole process; 0 leaves it.
    """
    import torch
    from graphopt.backends.torch_fx.types import tensor_of

    if threads and threads != torch.get_num_threads():
        torch.set_num_threads(threads)
    with torch.no_grad():
        given = [tensor_of(ir.tensor(feeds[n])) for n in module.meta["graphopt.inputs"]]
        results = module(*given)
    names = module.meta["graphopt.outputs"]
    return {n: array_of(r) for n, r in zip(names, results, strict=True)}


BACKEND = TorchFx()
