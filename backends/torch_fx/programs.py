"""Programs: a model as a `.pt2` file, which PyTorch opens without graphopt.

    program = torch.export.load("model.opt.pt2")
    outputs = program.module()(*inputs)

Dynamic axes stay dynamic. A program knows neither the names of a model's values nor its recipe:
these lie in the file beside it (`graphopt.json`), and `graphopt.load` reads them.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analyses.binding import bind_shapes
from graphopt.errors import ModelError
from graphopt.execution.runtime import run
from graphopt.replacing import replace_files
from graphopt.samples import stand_ins
from graphopt.tracing import EXTRA, quiet
from graphopt.verification.comparison import compare_outputs

__all__ = ["open_program", "run_program", "save_program"]

Arrays = Mapping[str, np.ndarray[Any, Any]]
#: Largest relative L2 difference to ONNX Runtime: about a thousand float32 roundings. With integers
#: a value half way between two of them may become either; bfloat16 has 8 bits.
_TOLERANCE, _INTEGER_TOLERANCE = 1e-3, 5e-2
_CHUNK = 1 << 22


def save_program(model: ir.Model, path: Path) -> Path:
    """Write `model` as a program to `path`, which then holds all of it or what it held before.

    The file is opened and run before it is put in place.

    Raises:
        ModelError: an operator has no lowering, a dynamic axis would be lost, the written program
            computes something else than the model, or the file cannot be written.
    """
    import torch

    shapes, _ = bind_shapes(model)
    feeds = next(iter(stand_ins(model, shapes=shapes)))
    with quiet(), torch.no_grad():
        program = _exported(model, feeds)
    told = json.dumps({"names": _names(model, program), "metadata": dict(model.metadata_props)})
    try:
        with tempfile.TemporaryDirectory(prefix="graphopt-", dir=path.parent) as folder:
            written = Path(folder, "program.pt2")
            with quiet():
                torch.export.save(program, written, extra_files={EXTRA: told})
            _compare(model, written, feeds)
            replace_files([(Path(os.path.realpath(path)), _chunks(written))])
    except OSError as error:
        raise ModelError(f"{path} cannot be written: {error.strerror or error}") from error
    return path


def open_program(path: Path) -> tuple[Any, dict[str, Any]]:
    """A program that `save_program` wrote, and the names of its inputs and outputs."""
    import torch

    extra = {EXTRA: ""}
    with quiet():
        program = torch.export.load(path, extra_files=extra)
    return program.module(), json.loads(extra[EXTRA])["names"]


def run_program(module: Any, names: Mapping[str, Any], feeds: Arrays) -> dict[str, Any]:
    """Outputs by name for arrays by input name."""
    import torch

    with torch.no_grad():
        results = module(*(_tensor(feeds[n]) for n in names["inputs"]))
    return {n: _array(r) for n, r in zip(names["outputs"], results, strict=True)}


def _exported(model: ir.Model, feeds: Arrays) -> Any:
    import torch
    from graphopt.backends.torch_fx import lowering
    from torch.export import Dim
    from torch.fx.experimental import _config

    module = lowering.lower(model)
    values = {v.name: v for v in model.graph.inputs}
    names = module.meta["graphopt.inputs"]
    given = tuple(_tensor(feeds[n]) for n in names)
    axes = [
        {k: Dim.AUTO for k, d in enumerate(values[n].shape or ()) if not isinstance(d, int)}
        for n in names
    ]
    with _config.patch(backed_size_oblivious=True):
        program = torch.export.export(module, given, dynamic_shapes=tuple(axes))
    placeholders = {n.name: n.meta["val"] for n in program.graph.nodes if n.op == "placeholder"}
    for name, placed, wanted in zip(names, program.graph_signature.user_inputs, axes, strict=True):
        for axis in wanted:
            size = placeholders[placed].shape[axis]
            if isinstance(size, int) or size.node.expr.is_number:
                raise ModelError(
                    f"axis {axis} of '{name}' is dynamic in the model, and PyTorch would fix it "
                    f"at {size}: write .onnx instead"
                )
    program.graph_module.meta["graphopt.parameters"] = module.meta["graphopt.parameters"]
    return program


def _names(model: ir.Model, program: Any) -> dict[str, Any]:
    inputs = [v for v in model.graph.inputs if not v.is_initializer()]
    weights = program.graph_module.meta.pop("graphopt.parameters")
    return {
        "inputs": [v.name for v in inputs],
        "outputs": [v.name for v in model.graph.outputs],
        "weights": {path: w.name for path, w in weights.items() if w.name != path},
        "axes": {
            v.name: [None if isinstance(d, int) else d.value for d in v.shape or ()] for v in inputs
        },
    }


def _compare(model: ir.Model, written: Path, feeds: Arrays) -> None:
    module, names = open_program(written)
    found = compare_outputs(
        [_wide(_expected(model, feeds))], [_wide(run_program(module, names, feeds))]
    )
    integers = any("Quantize" in n.op_type or "Integer" in n.op_type for n in model.graph)
    coarse = _INTEGER_TOLERANCE if integers or _has_bfloat16(model) else _TOLERANCE
    if found.worst > coarse:
        reason = found.broken or f"outputs differ by {found.worst:.2g} (relative L2)"
        raise ModelError(
            f"the program computes something else in PyTorch than the model in ONNX Runtime: "
            f"{reason}; nothing was written. Write .onnx instead, and please report it"
        )


def _expected(model: ir.Model, feeds: Arrays) -> Arrays:
    """Outputs in ONNX Runtime; of bfloat16, most of which it lacks, in ONNX's own evaluator."""
    try:
        return run(model, feeds)
    except ModelError as error:
        if not _has_bfloat16(model):
            raise
        from onnx.reference import ReferenceEvaluator

        try:
            evaluator = ReferenceEvaluator(ir.to_proto(model))
            outputs = evaluator.run(None, dict(feeds))
        except Exception:  # it has its limits too: what the runtime said is the answer
            raise error from None
        return dict(zip(evaluator.output_names, outputs, strict=True))


def _has_bfloat16(model: ir.Model) -> bool:
    values = [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]
    return any(v.dtype is ir.DataType.BFLOAT16 for v in values)


def _wide(outputs: Arrays) -> Arrays:
    """bfloat16 and its like as float32, which comparing takes."""
    return {n: a.astype(np.float32) if a.dtype.kind == "V" else a for n, a in outputs.items()}


def _array(tensor: Any) -> np.ndarray[Any, Any]:
    import torch
    from graphopt.backends.torch_fx.types import array_of

    if tensor.dtype is torch.bfloat16:  # NumPy has none of its own
        return array_of(tensor, ir.DataType.BFLOAT16)
    array: np.ndarray[Any, Any] = tensor.numpy()
    return array


def _tensor(array: np.ndarray[Any, Any]) -> Any:
    from graphopt.backends.torch_fx.types import tensor_of

    return tensor_of(ir.tensor(array))


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk
