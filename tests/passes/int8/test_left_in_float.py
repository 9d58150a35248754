"""What int8 tells: what stays in float, the largest first, and where its integers are right."""

import numpy as np
import pytest
from graphopt.passes.int8 import Int8, told

from graphopt.backend import find_target
from graphopt.context import Context
from graphopt.samples import Samples
from graphopt.target import ONNX
from graphopt.testing import parse_model

RNG = np.random.default_rng(0)


def note_of(layers=()):
    return [n for n in notes_of(ONNX, layers) if n.startswith("left in float")]


def notes_of(target, layers=()):
    sizes = {"u": (64, 128), "v": (128, 32), "z": (32, 8)}
    model = parse_model(
        "a = MatMul(x, u) b = Relu(a) c = MatMul(b, v) d = Relu(c) y = MatMul(d, z)",
        inputs={"x": (16, 64)},
        constants={k: RNG.normal(size=s).astype(np.float32) for k, s in sizes.items()},
    )
    for node in model.graph:
        node.name = f"make_{node.outputs[0].name}"
    feeds = {"x": RNG.normal(size=(16, 64)).astype(np.float32)}
    ctx = Context(model, target=target, samples=Samples([feeds]))
    Int8(layers=layers).run(model, ctx)
    return ctx.notes


def test_the_largest_come_first():
    (note,) = note_of((("make_[cy]", "float"),))
    assert note == (
        "left in float: make_c (33 % of the bytes): layers= says so; "
        "make_y (2 % of the bytes): layers= says so."
    )


def test_nothing_is_said_where_all_is_integer():
    assert note_of() == []


@pytest.mark.parametrize(
    ("name", "isa", "said"),
    [
        ("onnx", ("avx2",), "--target cpu-avx2"),
        ("onnx", ("avx2", "avx512-vnni"), "--target cpu-avx2"),
        ("cpu-avx512-vnni", ("avx2",), "as they do not on cpu-avx512-vnni"),
        ("cpu-avx512-vnni", ("avx2", "avx512-vnni"), ""),
        ("cpu-avx2", ("avx2",), ""),
        ("tensorrt-sm80", ("avx2",), ""),
    ],
)
def test_that_integers_are_right_on_some_processors_alone_is_said(monkeypatch, name, isa, said):
    monkeypatch.setattr(told, "extensions", lambda: isa)
    notes = notes_of(find_target(name))
    found = [n for n in notes if "saturate" in n]
    assert [said in n for n in found] == ([True] if said else [])
