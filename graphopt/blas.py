"""BLAS threads: NumPy's matrix products, solvers and decompositions on one thread, for equal sums.

OpenBLAS and MKL divide a sum between their threads, so the last bits of a product or a solution
depend on how many there are, and with them which units a pass cuts. At the sizes of one layer the
threads mostly wait for each other anyway.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache

import numpy as np  # noqa: F401  (its BLAS is found once it is loaded)
from threadpoolctl import ThreadpoolController

__all__ = ["one_thread"]


def one_thread() -> AbstractContextManager[object]:
    """Keep BLAS to one thread while the context is open; ONNX Runtime and PyTorch keep theirs."""
    limited: AbstractContextManager[object] = _controller().limit(limits=1, user_api="blas")
    return limited


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()
