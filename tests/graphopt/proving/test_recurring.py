"""Proof reuse: once for layers that repeat, and never where what it rests on is another."""

import numpy as np
import pytest

from graphopt.proving import windows
from graphopt.proving.numbering import numbered
from graphopt.proving.regions import check
from graphopt.testing import parse_model

RNG = np.random.default_rng(0)
W = {f"w{k}": RNG.standard_normal((8, 8)).astype(np.float32) for k in range(3)}
LAYERS = "m0 = MatMul(x, w0) {} m1 = MatMul(h0, w1) {} m2 = MatMul(h1, w2) {}"


def layers(text, last=None):
    each = [text.replace("@", str(k)) for k in range(3)]
    return LAYERS.format(*each[:2], last or each[2]) + " y = Identity(h2)"


def compared(before, after, constants, others=None):
    old = parse_model(before, inputs={"x": ("N", 8)}, constants=constants)
    new = parse_model(after, inputs={"x": ("N", 8)}, constants=others or constants)
    return windows.windows_of(numbered(old), new, check)


@pytest.fixture
def proofs(monkeypatch):
    made, prove = [], windows.proved

    def counted(*window):
        made.append(window)
        return prove(*window)

    monkeypatch.setattr(windows, "proved", counted)
    return made


def test_layers_of_one_form_are_proved_once(proofs):
    found = compared(layers("a@ = Relu(m@) h@ = Relu(a@)"), layers("h@ = Relu(m@)"), W)
    assert [w.verdict for w in found.windows] == ["proved"] * 3
    assert len(proofs) == 1


def folded(*factors):
    """h = (m c) d against h = m e, e as good as c d but for factors."""
    rows = {k: RNG.standard_normal(8).astype(np.float32) for k in ("c0", "d0", "c1", "d1")}
    rows |= {"c2": rows["c1"] + 1, "d2": rows["d1"]}
    others = {f"e{k}": rows[f"c{k}"] * rows[f"d{k}"] * np.float32(f) for k, f in enumerate(factors)}
    return compared(
        layers("a@ = Mul(m@, c@) h@ = Mul(a@, d@)"),
        layers("h@ = Mul(m@, e@)"),
        W | rows,
        W | others,
    )


def test_a_proof_that_read_constants_holds_for_those_alone(proofs):
    assert [w.verdict for w in folded(1, 1, 1).windows] == ["proved"] * 3
    assert len(proofs) == 3
    wrong = [w.verdict for w in folded(1, 1, 1.01).windows]
    assert wrong[:3] == ["proved", "proved", "refuted"]


def test_a_constant_that_is_not_the_same_everywhere_is_asked_again():
    zeros = {f"z{k}": np.zeros(8, np.float32) for k in range(2)}
    bumped = np.zeros(8, np.float32)
    bumped[5] = 1
    text, without = layers("h@ = Add(m@, z@)"), layers("h@ = Identity(m@)")
    found = compared(text, without, W | zeros | {"z2": np.zeros(8, np.float32)})
    assert {w.verdict for w in found.windows} <= {"proved"}
    found = compared(text, without, W | zeros | {"z2": bumped})
    assert found.windows[-1].verdict == "refuted"
    assert found.open == ("y",)


def test_another_attribute_is_another_form():
    text, new = "h@ = Softmax<axis=1>(m@)", "h@ = Softmax<axis=-1>(m@)"
    found = compared(layers(text), layers(new, last="h2 = Softmax<axis=0>(m2)"), W)
    assert [w.verdict for w in found.windows][:2] == ["proved", "proved"]
    assert found.open == ("y",)
