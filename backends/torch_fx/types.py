"""Element types: ONNX's names in torch, and arrays as tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from graphopt.errors import ModelError

__all__ = ["array_of", "tensor_of", "torch_dtype"]

_TYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.UINT16: torch.uint16,
    ir.DataType.UINT32: torch.uint32,
    ir.DataType.UINT64: torch.uint64,
    ir.DataType.BOOL: torch.bool,
    ir.DataType.COMPLEX64: torch.complex64,
    ir.DataType.COMPLEX128: torch.complex128,
    # torch has no type below 8 bits: the same numbers in the next larger one
    ir.DataType.INT4: torch.int8,
    ir.DataType.UINT4: torch.uint8,
}


def torch_dtype(dtype: ir.DataType | int) -> Any:
    """The torch type of an ONNX element type. Raises ModelError if there is none."""
    found = _TYPES.get(ir.DataType(dtype))
    if found is None:
        raise ModelError(f"torch has no element type for {ir.DataType(dtype).name}")
    return found


def tensor_of(tensor: ir.TensorProtocol) -> Any:
    """A copy of the numbers as a torch tensor."""
    dtype = torch_dtype(tensor.dtype)
    array = np.array(tensor.numpy(), order="C").reshape(tensor.shape.numpy())
    if array.dtype.kind in "biufc":
        return torch.from_numpy(array).to(dtype)
    if dtype is torch.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array.astype(np.int16)).to(dtype)


def array_of(tensor: Any, dtype: ir.DataType) -> np.ndarray[Any, Any]:
    """The numbers of a torch tensor as an array of ONNX type `dtype`."""
    held = tensor.detach().cpu()
    if held.dtype is torch.bfloat16:
        held = held.float()
    array: np.ndarray[Any, Any] = held.numpy().astype(dtype.numpy())
    return array
