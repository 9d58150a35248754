"""LSTM and GRU while tracing: shapes by formula, where PyTorch unrolls them over time.

Unrolled, the number of steps is fixed. The layer itself stays one operator of the traced program,
so all that tracing needs of it is the shape of what it returns.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["any_number_of_steps"]


@contextlib.contextmanager
def any_number_of_steps() -> Iterator[None]:
    """Trace and decompose programs without fixing the steps of their LSTM and GRU layers."""
    import torch
    from torch._decomp import global_decomposition_table

    table = global_decomposition_table["post_autograd"]
    operators = [torch.ops.aten.lstm.input, torch.ops.aten.gru.input]
    kernels = [dict(one.py_kernels) for one in operators]
    unrolled = [table[one] for one in operators]
    try:
        for one, whole in zip(operators, unrolled, strict=True):
            table[one] = _shapes_of(whole)
            one.py_kernels.update(dict.fromkeys(one.py_kernels, table[one]))
            one._dispatch_cache.clear()
        yield
    finally:
        for one, kept, whole in zip(operators, kernels, unrolled, strict=True):
            table[one] = whole
            one.py_kernels.clear()
            one.py_kernels.update(kept)
            one._dispatch_cache.clear()


def _shapes_of(unrolled: Callable[..., Any]) -> Callable[..., Any]:
    """The layer on tensors without values; `unrolled` on those that have some, or projections."""

    def shaped(x: Any, state: Any, *rest: Any, **options: Any) -> Any:
        import torch
        from torch._guards import detect_fake_mode

        *_, bidirectional, _ = rest
        states = state if isinstance(state, (list, tuple)) else [state]
        size = states[0].shape[-1]
        if detect_fake_mode([x]) is None or any(s.shape[-1] != size for s in states):
            return unrolled(x, state, *rest, **options)
        y = x.new_empty((*x.shape[:-1], size * (2 if bidirectional else 1)))
        return y, *(torch.empty_like(s) for s in states)

    return shaped
