"""Applications of rules as text: a law, its inputs with symbolic sizes, its nodes.

The format is that of bench/proof_rules.txt, whose head says how constants are named.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from graphopt.analyses.shapes.analysis import infer

__all__ = ["Case", "built", "cases", "constant"]

SIZES = "ABCDEF"
KINDS = {"i64": "int64", "i32": "int32", "bool": "bool", "f16": "float16", "f64": "double"}
#: Constants by the first letter of their names: drawn of a shape, or of given elements.
DRAWN: dict[str, Callable[[Any, tuple[int, ...]], Any]] = {
    "f": lambda rng, shape: rng.standard_normal(shape),
    "p": lambda rng, shape: rng.random(shape) + 0.5,
    "c": lambda rng, shape: np.full(shape, 1.25),
}
GIVEN = {"s": "f4", "k": "i8", "i": "i8", "b": "?"}


@dataclasses.dataclass(frozen=True)
class Case:
    """An application of a law: `inputs` as `x[N,4]`, a body in ONNX text, an opset, a target."""

    rule: str
    law: str
    inputs: tuple[tuple[str, str, tuple[str, ...]], ...]
    body: str
    opset: int = 24
    target: str = "onnx"
    #: A constant that nothing reads.
    beside: str = ""
    #: Why there is no application.
    reason: str = ""

    def at(self, rank: int) -> Case:
        """With `*` as so many axes."""
        axes = tuple(SIZES[:rank])
        inputs = tuple(
            (kind, name, tuple(d for x in dims for d in (axes if x == "*" else (x,))))
            for kind, name, dims in self.inputs
        )
        return dataclasses.replace(self, inputs=inputs)

    @property
    def ranks(self) -> range:
        any_rank = any("*" in dims for _, _, dims in self.inputs)
        return range(5) if any_rank else range(1)

    def freed(self) -> Iterator[tuple[str, Case]]:
        """The case with one number among its sizes a symbol."""
        for k, (kind, name, dims) in enumerate(self.inputs):
            for axis, d in enumerate(dims):
                if d.isdigit():
                    free = (*dims[:axis], "Z", *dims[axis + 1 :])
                    inputs = (*self.inputs[:k], (kind, name, free), *self.inputs[k + 1 :])
                    yield f"{name}'s axis {axis}", dataclasses.replace(self, inputs=inputs)


def cases(text: str) -> Iterator[Case]:
    """`## Rule`, then laws, each with indented lines: inputs and settings first, then nodes."""
    for section in text.split("\n## ")[1:]:
        rule, _, rest = section.partition("\n")
        for block in re.findall(r"^\S.*\n(?: .*\n)+", rest + "\n", re.M):
            law, head, *body = block.strip("\n").split("\n")
            given = re.findall(r"(?:(\w+) )?(\w+)\[([^\]]*)\]", head)
            inputs = tuple(
                (kind, name, tuple(d.strip() for d in dims.split(",") if d.strip()))
                for kind, name, dims in given
            )
            said = dict(re.findall(r"(opset|target|beside) (\w+)", head))
            yield Case(
                rule.strip(),
                law.strip(),
                inputs,
                "\n".join(body),
                int(said.get("opset", 24)),
                said.get("target", "onnx"),
                said.get("beside", ""),
                head.partition("none: ")[2],
            )


def constant(name: str) -> np.ndarray[Any, Any] | None:
    """What the name of a constant says; None for other names."""
    kind, *parts = name.split("_")
    parts = [p for p in parts if not re.fullmatch("[a-z]?", p)]  # which tells equal ones apart
    if name.startswith(("causal_", "cos_", "sin_")):
        rows = np.arange(int(parts[0]))[:, None]
        if kind == "causal":
            return np.where(rows >= rows.T, 0, -np.inf).astype("f4")
        half = rows / 10.0 ** np.arange(int(parts[1]) // 2)
        return getattr(np, kind)(np.concatenate([half, half], -1))[None, None].astype("f4")
    if "_" not in name or kind not in {**DRAWN, **GIVEN}:
        return None
    read = [2**63 - 1 if p == "end" else number(p) for p in parts]
    if kind in DRAWN:
        rng = np.random.default_rng(sum(map(ord, name)))
        return DRAWN[kind](rng, tuple(map(int, read))).astype("f4")
    scalar = kind != "k" and len(read) == 1
    return np.array(read[0] if scalar else read, GIVEN[kind])


def number(text: str) -> float | int:
    """`m0p5` is -0.5."""
    text = text.replace("inf", "INF").replace("p", ".").replace("m", "-")
    return int(text) if text.lstrip("-").isdigit() else float(text)


def built(case: Case) -> ir.Model:
    """The model of a case; ValueError where its shapes do not fit."""
    declared = []
    for kind, name, dims in case.inputs:
        shape = f"[{', '.join(dims)}]" if dims else ""
        declared.append(f"{KINDS.get(kind, 'float')}{shape} {name}")
    graph = onnx.parser.parse_graph(f"g ({', '.join(declared)}) => () {{ {case.body} }}")
    used = {case.beside, *re.findall(r"\w+", case.body)}
    for name in sorted(used - {i.name for i in graph.input}):
        value = constant(name)
        if value is not None:
            graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    read = {i for n in graph.node for i in n.input}
    made = dict.fromkeys(o for n in graph.node for o in n.output)
    for name in [n for n in made if n and n not in read and not n.startswith("dead")]:
        graph.output.append(onnx.ValueInfoProto(name=name))
    for k, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{k}"
    imports = [
        onnx.helper.make_opsetid("", case.opset),
        onnx.helper.make_opsetid("com.microsoft", 1),
    ]
    proto = onnx.helper.make_model(graph, opset_imports=imports, ir_version=10)
    model = ir.from_proto(proto)
    found = infer(model)
    for value in model.graph.outputs:
        value.dtype, dims = found.dtype(value), found.shape(value)
        if dims is not None:
            value.shape = ir.Shape([d if isinstance(d, int) else str(d) for d in dims])
    return model
