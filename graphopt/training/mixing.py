"""Mixup: inputs between samples, which the original answers as it does the samples themselves.

    x = p a + (1 - p) b,  p ~ U(0, 1),  t = teacher(x)

A student that sees the same few thousand samples in every epoch learns those; between them there
are always others, and a teacher says what belongs to each (Zhang et al., mixup, ICLR 2018; Beyer et
al., Knowledge distillation: a good teacher is patient and consistent, CVPR 2022).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.samples.meaning import meaning_of

__all__ = ["continuous", "drawn", "mix", "mixable"]

Array = np.ndarray[Any, Any]
#: Inputs of which half of one and half of another is one too, by what they mean: no ids, no masks.
_CONTINUOUS = frozenset({"grid", "image", "normal", "positive", "split", "timestep"})


def continuous(model: ir.Model) -> bool:
    """Whether what lies between two inputs of the model is an input of it."""
    given = (v for v in model.graph.inputs if not v.is_initializer() and v.dtype is not None)
    return all(meaning_of(v, model).kind in _CONTINUOUS for v in given)


def mixable(runs: Iterable[Sequence[Array]]) -> bool:
    """Whether between the rows of any runs lie others: floats, the same shape in all of them."""
    forms = {tuple((a.dtype, a.shape[1:]) for a in arrays) for arrays in runs}
    return len(forms) == 1 and all(dtype.kind == "f" for dtype, _ in next(iter(forms)))


def drawn(rows: int, seed: Sequence[int]) -> tuple[Array, Array]:
    """For each row of a step another one of it, and its own part p in the mixture, float32."""
    rng = np.random.default_rng(seed)
    return rng.permutation(rows), rng.random(rows, np.float32)


def mix(a: Array, b: Array, parts: Array) -> Array:
    """p a + (1 - p) b, row by row, in the type of `a`."""
    p = parts.reshape(-1, *[1] * (a.ndim - 1)).astype(a.dtype)
    made: Array = b + p * (a - b)
    return made
