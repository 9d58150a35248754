"""PyTorch, imported when it is needed, kept quiet, and its values as arrays."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from graphopt.errors import MissingExtra

__all__ = ["array_of", "evaluating", "import_torch", "leaves", "quiet"]


def import_torch(needed_for: str = "tracing a PyTorch model") -> Any:
    """The `torch` package. Raises MissingExtra if it or its ONNX exporter's package is missing."""
    try:
        import onnxscript  # noqa: F401  (what PyTorch's exporter is written in)
        import torch
    except ImportError as error:
        raise MissingExtra("torch", needed_for) from error
    return torch


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep PyTorch's exporter from printing: graphs to stderr, log lines on what it tries.

    What it prints is dropped where it fails (the error says more) and shown where it does not.
    """
    was = logging.root.manager.disable
    logging.disable(logging.ERROR)
    printed = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(printed):
            # its own use of what it deprecates
            warnings.filterwarnings("ignore", r".*treespec, LeafSpec.* is deprecated")
            # recurrent layers list their weights anew in every run
            warnings.filterwarnings("ignore", r"The tensor attributes? self\.\S*_flat_weights\[")
            yield
    finally:
        logging.disable(was)
    sys.stderr.write(printed.getvalue())


@contextlib.contextmanager
def evaluating(module: Any) -> Iterator[None]:
    """`module` in evaluation mode (no dropout, fixed statistics); each part as it was, after."""
    was = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in was:
            part.training = training


def leaves(value: Any) -> list[Any]:
    """The tensors and numbers in nested tuples, dicts and registered classes, in order."""
    import torch.utils._pytree as pytree

    found: list[Any] = pytree.tree_leaves(value)
    return found


def array_of(tensor: Any) -> np.ndarray[Any, Any]:
    """A copy of a tensor's values; bfloat16 and its like by ml_dtypes, complex as two floats."""
    import onnx_ir as ir
    import torch

    found = tensor.detach().resolve_conj().resolve_neg().cpu()
    if found.is_complex():
        found = torch.view_as_real(found)
    try:
        return np.array(found.contiguous().numpy())
    except TypeError:  # a type that NumPy itself does not know
        array: np.ndarray[Any, Any] = np.array(ir.tensor(found.contiguous()).numpy())
        return array
