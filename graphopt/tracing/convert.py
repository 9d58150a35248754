"""From a program of `torch.export` to a model, names and module paths kept.

PyTorch's ONNX exporter translates; its optimizer is not used, since it makes one tensor of equal
ones (biases that are all zero) and names folded weights anew. Constants are folded here, parameters
are left as they are: a Linear's weight stays `[out, in]`, with a Transpose behind it that runtimes
and the `fold` pass compute once.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as common

from graphopt.errors import ModelError
from graphopt.graph.building import Names
from graphopt.io.reading import graphs_of
from graphopt.tracing.blame import conversion_failed
from graphopt.tracing.recurrent import any_number_of_steps
from graphopt.tracing.torch_side import array_of, quiet

__all__ = ["convert"]

#: Constants below this many elements are folded; what parameters decide always, but for operators
#: whose result may be much larger than what they read.
_SMALL = 8192
_GROWING = frozenset(
    {"ConstantOfShape", "Expand", "Gather", "GatherElements", "GatherND", "OneHot", "Tile"}
)


def convert(
    program: Any, names_of_symbols: dict[str, str], names: Mapping[str, Any]
) -> tuple[ir.Model, Any]:
    """The model of a traced program, and the program as it was when it became that model.

    Args:
        program: a `torch.export.ExportedProgram`.
        names_of_symbols: names for its dynamic axes.
        names: names of the model that the program was before, as `Captured.names`.

    Raises:
        ModelError: an operator has no form in ONNX, with the line that uses it.
    """
    import torch

    _check_outputs(program)
    try:
        with quiet(), torch.no_grad(), any_number_of_steps():
            made = torch.onnx.export(program, dynamo=True, optimize=False, verbose=False)
    except Exception as error:
        raise conversion_failed(error, program) from error
    if made is None:
        raise ModelError("PyTorch's ONNX exporter gave no model")
    model: ir.Model = made.model
    _own_weights(model)
    _make_unique(model)
    given = _Renaming(model)
    for path, name in names.get("weights", {}).items():
        if name and name != path and path in model.graph.initializers:
            given.give(model.graph.initializers[path], name)
    with quiet():
        _fold(model)
    _rename_symbols(model, names_of_symbols)
    _separate_outputs(model)
    given = _Renaming(model)
    for value, name in zip(list(model.graph.inputs), names.get("inputs", ()), strict=False):
        given.give(value, name)
    _name_outputs(model, given, names.get("outputs") or output_names(program))
    _name_nodes(model)
    common.ClearMetadataAndDocStringPass()(model)
    for graph in graphs_of(model):
        for value in _values(graph):
            value.metadata_props.clear()
    return model, made.exported_program


def _check_outputs(program: Any) -> None:
    for k, spec in enumerate(program.graph_signature.output_specs):
        value = getattr(spec.arg, "value", None)
        if spec.kind.name == "USER_OUTPUT" and value is not None:
            raise ModelError(
                f"output {k} of the module is {value!r} in every run, not a tensor: return tensors "
                "alone"
            )


def output_names(program: Any) -> list[str]:
    """A name for every flat output: its key in nested dicts and classes, else its position."""
    spec = program.call_spec.out_spec
    paths = list(_paths(spec)) if spec is not None else []
    specs = [s for s in program.graph_signature.output_specs if s.kind.name == "USER_OUTPUT"]
    if len(specs) == len(paths):  # None is an output of the module, not of the model
        paths = [p for p, s in zip(paths, specs, strict=True) if _is_value(s)]
    names = ["_".join(p) for p in paths]
    if names == [""]:
        return ["output"]
    return [n if n and not n[0].isdigit() else f"output_{n}" for n in names]


def _is_value(spec: Any) -> bool:
    return type(spec.arg).__name__ != "ConstantArgument"


def _paths(spec: Any) -> Iterator[tuple[str, ...]]:
    children = spec.children()
    if spec.is_leaf():
        yield ()
        return
    keys = getattr(spec.context, "_fields", spec.context)
    if not (
        isinstance(keys, (list, tuple))
        and len(keys) == len(children)
        and all(isinstance(k, (str, int)) for k in keys)
    ):
        keys = range(len(children))
    for key, child in zip(keys, children, strict=True):
        for rest in _paths(child):
            yield (str(key), *rest)


def _own_weights(model: ir.Model) -> None:
    """Copies of the module's tensors, which training it on would change."""
    for graph in graphs_of(model):
        for name, value in graph.initializers.items():
            tensor = value.const_value
            if tensor is not None and hasattr(tensor, "raw"):
                array = array_of(tensor.raw)
                value.const_value = ir.Tensor(array, dtype=tensor.dtype, name=name)


def _make_unique(model: ir.Model) -> None:
    """Other names for values that are called as a parameter is (`val_3`, in a lowered model)."""
    parameters = {n for g in graphs_of(model) for n in g.initializers}
    taken = {v.name for g in graphs_of(model) for v in _values(g)}
    for graph in graphs_of(model):
        for value in (v for n in graph for v in n.outputs):
            if value.name in parameters:
                k = 1
                while f"{value.name}_{k}" in taken:
                    k += 1
                value.name = f"{value.name}_{k}"
                taken.add(value.name)


def _fold(model: ir.Model) -> None:
    """Inline functions, fold constants, lift them out of nodes, drop what is unused."""
    from onnxscript import optimizer

    common.InlinePass()(model)
    model.functions.clear()
    parameters = set(model.graph.initializers)

    def behind(value: ir.Value | None) -> set[str]:
        """The parameters that a constant was computed from."""
        if value is None:
            return set()
        folded: set[str] = value.meta.get(optimizer.FOLDED_FROM_KEY, set())
        return {value.name or "", *folded} & parameters

    def should_fold(node: ir.Node) -> bool | None:
        if node.op_type == "Transpose" and node.inputs[0] in model.graph.initializers.values():
            return False
        return True if node.op_type not in _GROWING and any(map(behind, node.inputs)) else None

    optimizer.fold_constants_ir(model, input_size_limit=_SMALL, should_fold=should_fold)
    sources = {n: behind(v) for n, v in model.graph.initializers.items() if n not in parameters}
    common.RemoveUnusedNodesPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.LiftSubgraphInitializersToMainGraphPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    for name in [n for n, v in model.graph.initializers.items() if not v.uses()]:
        if not model.graph.initializers[name].is_graph_output():
            del model.graph.initializers[name]
    _keep_names(model, sources)


def _keep_names(model: ir.Model, sources: dict[str, set[str]]) -> None:
    """A tensor computed from one parameter that is gone otherwise takes that parameter's name."""
    initializers = model.graph.initializers
    made: dict[str, list[ir.Value]] = {}
    for name, value in initializers.items():
        if len(sources.get(name, ())) == 1:
            made.setdefault(next(iter(sources[name])), []).append(value)
    given = _Renaming(model)
    for parameter, values in made.items():
        if parameter not in initializers and len(values) == 1:
            given.give(values[0], parameter)


class _Renaming:
    """Names given to values; whatever has such a name already is given another."""

    def __init__(self, model: ir.Model) -> None:
        self._names = Names(model)
        self._values = {v.name: v for graph in graphs_of(model) for v in _values(graph)}

    def give(self, value: ir.Value, name: str) -> None:
        """Name a value, and its tensor."""
        other = self._values.get(name)
        if other is None:
            self._names.fresh(name)  # taken from now on
        elif other is not value:
            self._put(other, self._names.fresh(name))
        self._put(value, name)
        if value.const_value is not None:
            value.const_value.name = name

    def _put(self, value: ir.Value, name: str) -> None:
        if self._values.get(value.name) is value:
            del self._values[value.name]
        value.name = name
        self._values[name] = value


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _rename_symbols(model: ir.Model, names: dict[str, str]) -> None:
    """`s77*5` -> `batch*5` in every shape."""
    if not names:
        return
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b")
    for graph in graphs_of(model):
        for value in _values(graph):
            if value.shape is not None:
                value.shape = ir.Shape(
                    d
                    if isinstance(d, int) or d.value is None
                    else ir.SymbolicDim(pattern.sub(lambda m: names[m[1]], d.value))
                    for d in value.shape
                )


def _separate_outputs(model: ir.Model) -> None:
    """Outputs that are inputs, weights or each other get an Identity of their own."""
    graph = model.graph
    seen: set[ir.Value] = set()
    names = Names(model)
    for k, value in enumerate(list(graph.outputs)):
        if value.producer() is None or value in seen:
            node = ir.node("Identity", [value])
            graph.append(node)
            copy = node.outputs[0]
            copy.type, copy.shape = value.type, value.shape
            copy.name = names.fresh(f"{value.name}_copy")
            graph.outputs[k] = copy
        seen.add(value)


def _name_outputs(model: ir.Model, given: _Renaming, names: list[str]) -> None:
    outputs = list(model.graph.outputs)
    if len(names) != len(outputs):
        return
    inputs = {v.name for v in model.graph.inputs}
    for value, name in zip(outputs, names, strict=True):
        given.give(value, name if name not in inputs else f"{name}_output")


def _name_nodes(model: ir.Model) -> None:
    """Name every node by the path of its module and its operator."""
    taken: dict[str, int] = {}
    for node in model.graph.all_nodes():
        path = _module_path(node)
        stem = f"{path}/{node.op_type}" if path else node.op_type
        count = taken[stem] = taken.get(stem, -1) + 1
        node.name = f"{stem}_{count}" if count else stem


def _module_path(node: ir.Node) -> str:
    """`bert.encoder.layer.0`, from what the exporter wrote on the node."""
    text = node.metadata_props.get("pkg.torch.onnx.name_scopes", "")
    scopes: list[str] = ast.literal_eval(text) if text else []
    return next((s for s in reversed(scopes[:-1]) if s and not s.startswith("_empty_nn")), "")
