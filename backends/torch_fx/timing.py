"""What a lowered module's nodes take, run one by one."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from typing import Any

import onnx_ir as ir
import torch
from graphopt.backends.torch_fx.types import tensor_of
from torch import fx

from graphopt.backend import Arrays

__all__ = ["node_times"]

RUNS = 5


class _Timed(fx.Interpreter):  # type: ignore[misc]
    """Runs a module node by node; `times` has the milliseconds of each."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.times: dict[str, list[float]] = defaultdict(list)

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and keep what it took, unless it is only a name for a tensor."""
        began = time.perf_counter()
        result = super().run_node(n)
        if n.op.startswith("call"):
            self.times[n.name].append((time.perf_counter() - began) * 1e3)
        return result


def node_times(module: fx.GraphModule, feeds: Arrays) -> dict[str, float]:
    """Milliseconds per node of the module, median over five runs after a first."""
    timed = _Timed(module)
    given = [tensor_of(ir.tensor(feeds[n])) for n in module.meta["graphopt.inputs"]]
    with torch.no_grad():
        for _ in range(RUNS + 1):
            timed.run(*given)
    return {name: statistics.median(t[1:]) for name, t in timed.times.items()}
