"""Rows are put together as batches only where each says the same by itself."""

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from graphopt.training.joining import doubles, joins
from graphopt.training.store import Store


class EachRow(torch.nn.Module):
    def forward(self, x):
        return (x.tanh(),)


class InClips(torch.nn.Module):
    """Frames that see the mean of their clip of four."""

    def forward(self, x):
        clips = x.reshape(-1, 4, x.shape[1])
        return ((clips + clips.mean(1, keepdim=True)).reshape(x.shape),)


class AcrossRows(torch.nn.Module):
    """Takes any number of rows, and each sees the others of its run of two."""

    def forward(self, x):
        pairs = x.reshape(-1, min(2, len(x)), x.shape[1])
        return ((pairs + pairs.flip(1)).reshape(x.shape),)


def store(rows):
    made = Store()
    for k in range(2):
        x = np.random.default_rng(k).standard_normal((rows, 3)).astype(np.float32)
        made.add([x, x])
    return made.finish()


@pytest.mark.parametrize(
    ("module", "rows", "free", "fixed"),
    [
        (EachRow, 1, True, True),
        (EachRow, 4, True, True),
        (InClips, 4, False, False),
        (InClips, 8, False, False),
        (AcrossRows, 2, True, False),
    ],
)
def test_rows_of_runs_are_joined_where_they_stand_alone(module, rows, free, fixed):
    assert doubles(module(), store(rows), 1) == free
    assert joins(module(), store(rows), 1) == fixed
