import base64
import gzip
import json
import math
import re

import numpy as np
import onnx
import pytest

from graphopt import Budget, load, optimize
from graphopt.page.run import Watched

LAYER = """
    h{k} = MatMul({x}, w{k})
    a{k} = Add(h{k}, b{k})
    g{k} = Relu(a{k})
    m{k} = MatMul(g{k}, u{k})
    r{k} = Add(m{k}, {x})
"""


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """A file of four residual layers and a head, every node of it with a name."""
    lines, last = [], "x"
    for k in range(4):
        lines.append(LAYER.format(k=k, x=last))
        last = f"r{k}"
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]>\n'
        f"net (float[n, 64] x) => (float[n, 10] y) {{ {''.join(lines)} y = MatMul({last}, v) }}"
    )
    rng = np.random.default_rng(0)
    shapes = {"v": (64, 10)}
    for k in range(4):
        shapes |= {f"w{k}": (64, 128), f"b{k}": (128,), f"u{k}": (128, 64)}
    for name, shape in shapes.items():
        array = rng.normal(size=shape).astype(np.float32) / 8
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    path = tmp_path_factory.mktemp("page") / "net.onnx"
    onnx.save(proto, path)
    return path


@pytest.fixture(scope="session")
def run(source):
    """The report of a run over it, and its page."""
    watched = Watched()
    samples = {"x": np.random.default_rng(1).normal(size=(64, 64)).astype(np.float32)}
    result = optimize(
        load(source),
        "prune(ratio=0.3), fuse, int8",
        samples=samples,
        budget=Budget(max_disagreement=math.inf),
        measure=False,
        source_path=source,
        watch=watched.watch,
    )
    return result, watched.page(result.report)


@pytest.fixture(scope="session")
def unpacked():
    """The data of a page."""

    def unpack(page):
        packed = re.search(rb'<script type="text/plain" id="data">(.*?)</script>', page)[1]
        return json.loads(gzip.decompress(base64.b64decode(packed)))

    return unpack
