"""Samples and accuracy of the glyph models for `graphopt pack`; GLYPHS is the folder they are in.

    GLYPHS=DIR graphopt pack DIR/vgg16.onnx --samples bench/storage_glyphs.py:few \\
        --eval bench/storage_glyphs.py:accuracy --max-drop 0.5 -o vgg16.gopt
"""

import os
from pathlib import Path

import numpy as np

HELD = np.load(Path(os.environ["GLYPHS"], "glyphs.npz"))


def prepared(images):
    """[n, 1, 32, 32] float32 as the models take them, of uint8."""
    return ((images / 255 - 0.5) / 0.25).astype(np.float32).reshape(-1, 1, 32, 32)


def every():
    """All 12,000 training glyphs, without labels."""
    yield {"x": prepared(HELD["x_train"])}


def varied():
    """The same, and as many that are shifted by up to 2 pixels and blended with another.

    For models that know the training glyphs by heart, whose outputs for these say little.
    """
    yield from every()
    rng = np.random.default_rng(0)
    x = HELD["x_train"].reshape(-1, 32, 32).astype(np.float32)
    wide = np.pad(x, ((0, 0), (2, 2), (2, 2)), mode="edge")
    size = x.shape[-1]
    shifted = np.stack(
        [
            w[a : a + size, b : b + size]
            for w, (a, b) in zip(wide, rng.integers(5, size=(len(x), 2)), strict=True)
        ]
    )
    share = rng.uniform(0, 0.5, size=(len(x), 1, 1)).astype(np.float32)
    yield {"x": prepared((1 - share) * shifted + share * shifted[rng.permutation(len(x))])}


def few():
    """The first 1,024 of them."""
    yield {"x": prepared(HELD["x_train"][:1024])}


def accuracy(predict):
    """Percent of the 4,000 validation glyphs."""
    x, y = HELD["x_val"], HELD["y_val"]
    right = 0
    for k in range(0, len(x), 50):
        (scores,) = predict({"x": prepared(x[k : k + 50])}).values()
        right += int((scores.argmax(1) == y[k : k + 50]).sum())
    return 100 * right / len(x)
