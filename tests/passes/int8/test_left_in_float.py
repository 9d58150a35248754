"""What int8 leaves in float is named, the largest first, with its share of the bytes."""

import numpy as np
from graphopt.passes.int8 import Int8

from graphopt.context import Context
from graphopt.samples import Samples
from graphopt.testing import parse_model

RNG = np.random.default_rng(0)


def note_of(layers=()):
    sizes = {"u": (64, 128), "v": (128, 32), "z": (32, 8)}
    model = parse_model(
        "a = MatMul(x, u) b = Relu(a) c = MatMul(b, v) d = Relu(c) y = MatMul(d, z)",
        inputs={"x": (16, 64)},
        constants={k: RNG.normal(size=s).astype(np.float32) for k, s in sizes.items()},
    )
    for node in model.graph:
        node.name = f"make_{node.outputs[0].name}"
    feeds = {"x": RNG.normal(size=(16, 64)).astype(np.float32)}
    ctx = Context(model, samples=Samples([feeds]))
    Int8(layers=layers).run(model, ctx)
    return [n for n in ctx.notes if n.startswith("left in float")]


def test_the_largest_come_first():
    (note,) = note_of((("make_[cy]", "float"),))
    assert note == (
        "left in float: make_c (33 % of the bytes): layers= says so; "
        "make_y (2 % of the bytes): layers= says so."
    )


def test_nothing_is_said_where_all_is_integer():
    assert note_of() == []
