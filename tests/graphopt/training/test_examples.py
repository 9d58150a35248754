"""What is held out of the samples of a training."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
from graphopt.training.examples import Examples
from graphopt.training.store import Store


def examples(sizes, rows=True):
    store = Store()
    for run, size in enumerate(sizes):
        store.add([np.full((size, 2), run, np.float32)])
    return Examples(store.finish(), 1, rows=rows, size=8, seed=0)


def runs_of(batches):
    return [int(x) for batch in batches for x in np.asarray(batch.inputs[0])[:, 0]]


def test_of_many_runs_whole_ones_are_held_out():
    """Rows of one run may come from one text: they would tell nothing of others."""
    made = examples([30] * 20)
    held = runs_of(made.held((0, 1)))
    fit = runs_of(b for step in made.epoch(0, (0, 1)) for b in step)
    assert len(held) == 60
    assert len(fit) == 540
    assert not set(held) & set(fit)


@pytest.mark.parametrize("sizes", [[200], [50] * 9])
def test_of_few_runs_rows_are(sizes):
    held = runs_of(examples(sizes).held((0, 1)))
    assert len(held) == round(0.1 * sum(sizes))


@pytest.mark.parametrize(
    ("sizes", "out"), [([1000] * 11 + [700], {11}), ([1] + [900] * 11 + [800], {0, 12})]
)
def test_where_small_runs_do_not_do_the_smallest_of_the_large_goes(sizes, out):
    assert set(runs_of(examples(sizes).held((0, 1)))) == out
