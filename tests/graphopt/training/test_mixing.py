"""Rows between samples, and what the teacher says of them."""

import numpy as np
import pytest

pytest.importorskip("torch")

from graphopt.testing import parse_model
from graphopt.training.examples import Examples
from graphopt.training.mixing import continuous, drawn, mix, mixable
from graphopt.training.store import Store

X = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)


def examples(mixing=None, size=8):
    store = Store()
    for at in range(0, len(X), 10):
        store.add([X[at : at + 10], twice([X[at : at + 10]])[0]])
    return Examples(store.finish(), 1, rows=True, size=size, seed=3, mixing=mixing)


def twice(inputs):
    return [2 * inputs[0].sum(axis=1, keepdims=True)]


def rows_of(some, number, share=(0, 1)):
    return [b.inputs[0].numpy() for step in some.epoch(number, share) for b in step]


def test_a_row_lies_between_two_of_its_step():
    plain, mixed = rows_of(examples(), 0), rows_of(examples(twice), 0)
    assert [a.shape for a in plain] == [a.shape for a in mixed]
    for a, x in zip(plain, mixed, strict=True):
        low, high = a.min(axis=0) - 1e-6, a.max(axis=0) + 1e-6
        assert ((x >= low) & (x <= high)).all()
        others, parts = drawn(len(a), (3, 0, 0))
        assert sorted(others) == list(range(len(a)))
        assert parts.min() >= 0
        assert parts.max() < 1
    others, parts = drawn(len(plain[0]), (3, 0, 0))
    wanted = parts[:, None] * plain[0] + (1 - parts[:, None]) * plain[0][others]
    np.testing.assert_allclose(mixed[0], wanted, atol=1e-6)


def test_the_teacher_says_what_belongs_to_it():
    for step in examples(twice).epoch(1, (0, 1)):
        for batch in step:
            (want,) = twice([batch.inputs[0].numpy()])
            np.testing.assert_array_equal(batch.targets[0].numpy(), want)


def test_epochs_differ_and_come_again():
    first, again, other = (np.concatenate(rows_of(examples(twice), k)) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.isin(first, other).all()


def test_what_is_held_out_is_as_it_was():
    some = examples(twice)
    held = np.concatenate([b.inputs[0].numpy() for b in some.held((0, 1))])
    assert all((row == X).all(axis=1).any() for row in held)


def test_two_processes_see_the_rows_of_one():
    whole = rows_of(examples(twice), 0)
    parts = [rows_of(examples(twice), 0, (k, 2)) for k in (0, 1)]
    for rows, a, b in zip(whole, *parts, strict=True):
        np.testing.assert_array_equal(rows[0::2], a)
        np.testing.assert_array_equal(rows[1::2], b)


@pytest.mark.parametrize(
    ("runs", "able"),
    [
        ([[X], [X[:3]]], True),
        ([[X, X.astype(np.float64)]], True),
        ([[X], [X[:, :2]]], False),
        ([[X, np.zeros(40, np.int64)]], False),
        ([], False),
    ],
)
def test_rows_that_can_be_mixed(runs, able):
    assert mixable(runs) is able


def test_the_type_stays():
    a, b = X.astype(np.float16), -X.astype(np.float16)
    assert mix(a, b, np.full(40, 0.5, np.float32)).dtype == np.float16


@pytest.mark.parametrize(
    ("text", "able"),
    [
        ("y = Relu(x)", True),
        ("s = Sqrt(x)  y = Relu(s)", True),
        ("i = Cast <to = 7> (x)  y = Gather(t, i)", False),  # ids in floats, as Keras takes them
        ("p = Mul(x, mask)  y = Relu(p)", False),
    ],
)
def test_between_ids_and_between_masks_lies_nothing(text, able):
    inputs = {"x": ("N", 8), **({"mask": ("N", 8)} if "mask" in text else {})}
    model = parse_model(text, inputs=inputs, constants={"t": X} if "Gather" in text else {})
    assert continuous(model) is able
