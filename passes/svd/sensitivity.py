"""Sensitivity: how far the model's outputs move when one layer loses a known share of its own.

Each layer in turn gets a truncated weight, the others stay; weights are fed as inputs, so one
session serves all. A layer weighs in the budget by the square root of its outputs' relative squared
movement over its own relative squared error: the geometric mean of "every layer's own error counts
alike" and "only the outputs' movement counts". Movements do not add up to the end once many layers
are approximated (normalization and saturation absorb early ones, and late layers move outputs
without changing what they mean), and on a ResNet, a transformer and an LSTM the mean beat both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

import numpy as np
import onnx_ir as ir
from graphopt.passes.svd.layers import Array, Layer, Use
from graphopt.passes.svd.spectrum import Spectrum

from graphopt.calibration.sensitivity import movement
from graphopt.execution.runtime import run_each
from graphopt.graph.constants import constant_array
from graphopt.samples import Feeds

__all__ = ["sensitivities"]

#: Runs of the samples each layer is tried on.
RUNS = 1
#: Share of a layer's squared output that is taken away.
SHARE = 0.05


def sensitivities(
    model: ir.Model, spectra: Mapping[Layer, Spectrum], samples: Iterable[Feeds]
) -> dict[Layer, float]:
    """Root of the outputs' relative squared movement per relative squared error of each layer.

    Layers inside subgraphs are left out (they weigh 1).
    """
    clone = model.clone()
    nodes = {n.name: n for n in clone.graph}
    fed: dict[Layer, list[tuple[str, Use]]] = {}
    plain: dict[str, Array] = {}
    for layer in spectra:
        for use in layer.uses:
            node, array = nodes.get(use.node.name), constant_array(use.weight)
            if node is None or array is None or use.node.graph is not model.graph:
                continue
            name = f"graphopt:{len(plain)}"
            kind = ir.TensorType(ir.DataType.from_numpy(array.dtype))
            value = ir.Value(name=name, type=kind, shape=ir.Shape(array.shape))
            node.replace_input_with(list(use.node.inputs).index(use.weight), value)
            clone.graph.inputs.append(value)
            plain[name] = array
            fed.setdefault(layer, []).append((name, use))
    runs = list(islice(iter(samples), RUNS))
    lost: list[tuple[Layer, float]] = []

    def feeds() -> Iterator[Feeds]:
        for run in runs:
            yield {**run, **plain}
        for layer, given in fed.items():
            changed, error = _truncated(layer, spectra[layer])
            lost.append((layer, error))
            weights = {name: layer.stored(changed, use) for name, use in given}
            for run in runs:
                yield {**run, **plain, **weights}

    results = run_each(clone, feeds())
    reference = [next(results) for _ in runs]
    moved: dict[Layer, float] = {}
    for k, outputs in enumerate(results):
        layer, error = lost[k // len(runs)]
        far = movement([reference[k % len(runs)]], [outputs]) / max(error, 1e-12) / len(runs)
        moved[layer] = moved.get(layer, 0.0) + far
    return {layer: far**0.5 for layer, far in moved.items()}


def _truncated(layer: Layer, spectrum: Spectrum) -> tuple[Array, float]:
    """M with about `SHARE` of its squared output taken away, and how much it was."""
    matrix = layer.matrix()
    errors = spectrum.errors()
    rank = max(int(np.searchsorted(-errors, -SHARE)), 1)
    rank = min(rank, len(errors) - 1)
    basis = spectrum.basis(matrix, rank)
    changed = (matrix.astype(np.float64) @ basis) @ basis.T
    return changed.astype(matrix.dtype), float(errors[rank])
