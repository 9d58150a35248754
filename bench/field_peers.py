"""The peers of bench/field.py, one at a time: each reads a model and writes another.

    python bench/field_peers.py PEER MODEL OUT SAMPLES
    python bench/field_peers.py describe MODEL

SAMPLES is a folder of recorded runs, one .npz each.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np


def runs(folder: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as data:
            found.append({k: data[k] for k in data.files})
    return found


def prepared(model: Path, out: Path) -> Path:
    """The model as ONNX Runtime's quantizers ask for it."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready = out.with_suffix(".prepared.onnx")
    try:
        quant_pre_process(str(model), str(ready))
    except Exception:  # it cannot infer some models' shapes; its own advice is to skip that
        quant_pre_process(str(model), str(ready), skip_symbolic_shape=True)
    return ready


def ort_dynamic(model: Path, out: Path, samples: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    ready = prepared(model, out)
    quantize_dynamic(str(ready), str(out))
    ready.unlink()


def ort_static(model: Path, out: Path, samples: Path) -> None:
    """Q/DQ, unsigned activations, signed weights per channel: what its guide says for the CPU."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest = iter(runs(samples))

        def get_next(self) -> Any:
            return next(self.rest, None)

    ready = prepared(model, out)
    quantize_static(
        str(ready),
        str(out),
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    ready.unlink()


def nncf(model: Path, out: Path, samples: Path) -> None:
    import nncf as tool
    import onnx

    feeds = runs(samples)
    made = tool.quantize(onnx.load(model), tool.Dataset(feeds), subset_size=len(feeds))
    onnx.save(made, out)


def onnxsim(model: Path, out: Path, samples: Path) -> None:
    import onnx
    import onnxsim as tool

    made, same = tool.simplify(onnx.load(model))
    if not same:
        raise SystemExit("onnxsim's own check found other outputs")
    onnx.save(made, out)


def onnxslim(model: Path, out: Path, samples: Path) -> None:
    import onnxslim as tool

    tool.slim(str(model), str(out))


def describe(model: Path) -> dict[str, int]:
    """Bytes with external data, and nodes with those of branches and bodies, Constants left out."""
    import onnx

    def count(graph: Any) -> int:
        found = 0
        for node in graph.node:
            found += node.op_type != "Constant"
            for attribute in node.attribute:
                found += sum(count(g) for g in [*attribute.graphs, attribute.g])
        return found

    with tempfile.TemporaryDirectory() as folder:  # as one file, weights and all
        loaded = onnx.load(model)
        whole = Path(folder, "whole.onnx")
        onnx.save(loaded, whole)
        return {"bytes": whole.stat().st_size, "nodes": count(loaded.graph)}


PEERS = {
    "ort-dynamic": ort_dynamic,
    "ort-static": ort_static,
    "nncf": nncf,
    "onnxsim": onnxsim,
    "onnxslim": onnxslim,
}

if __name__ == "__main__":
    name, *paths = sys.argv[1:]
    if name == "describe":
        print(json.dumps(describe(Path(paths[0]))))
    else:
        PEERS[name](*map(Path, paths))
