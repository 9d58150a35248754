"""`graphopt view`: the page of one model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import onnx_ir as ir

from graphopt.page.cards import Card, cards
from graphopt.page.document import document
from graphopt.page.graph import Stages
from graphopt.page.html import element, text
from graphopt.page.layers import layer_rows, layer_section
from graphopt.pipeline.state import State

__all__ = ["model_page"]


def model_page(
    name: str,
    model: ir.Model,
    shapes: Mapping[str, tuple[int, ...]],
    ms: Mapping[str, float] | None = None,
) -> bytes:
    """The page of a model.

    Args:
        name: what it is called.
        model: every node of it has a name.
        shapes: concrete shapes of its inputs, at which costs are counted.
        ms: milliseconds of one run by node.
    """
    figures = State(model, shapes).figures()
    stages = Stages(name, model, shapes, ms)
    opsets = ", ".join(f"{k or 'ai.onnx'} {v}" for k, v in model.graph.opset_imports.items())
    producer = " ".join(filter(None, (model.producer_name, model.producer_version)))
    lead = ", ".join(filter(None, (f"made by {producer}" if producer else "", f"opset {opsets}")))
    common = Counter(figures.operators or {}).most_common(12)
    body = [
        element(
            "header",
            element("h1", text(name)),
            element("p", text(lead), class_="lead"),
            cards([Card("Size", "bytes"), Card("Parameters", "params"), Card("Nodes", "nodes"),
                   Card("MACs", "macs"), Card("Peak activations", "peak_activation_bytes")],
                  figures, None),
            element("ul", *(element("li", text(f"{op} ×{n}"), class_="chip") for op, n in common),
                    class_="chips"),
        ),
        element("main", stages.html(), layer_section(pair=False)),
    ]  # fmt: skip
    data = stages.data() | {"layers": layer_rows(stages)}
    return document(name, "\n".join(body), data)
