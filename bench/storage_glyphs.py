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


def invented():
    """The same, and three of each that are turned, sheared, bent, shifted, lit anew and blended.

    36,000 glyphs that no model has seen, drawn from the 12,000 alone.
    """
    yield from every()
    rng = np.random.default_rng(0)
    x = HELD["x_train"].reshape(-1, 32, 32).astype(np.float32)
    for _ in range(3):
        made = bent(x, rng)
        share = rng.uniform(-0.5, 0.5, size=(len(x), 1, 1)).clip(0).astype(np.float32)
        made = (1 - share) * made + share * made[rng.permutation(len(x))]
        middle = made.mean((1, 2), keepdims=True)
        contrast = rng.uniform(0.6, 1.3, size=middle.shape).astype(np.float32)
        light = rng.uniform(-30, 30, size=middle.shape).astype(np.float32)
        noise = rng.normal(size=made.shape).astype(np.float32)
        noise *= rng.uniform(0, 15, size=middle.shape).astype(np.float32)
        yield {"x": prepared(((made - middle) * contrast + middle + light + noise).clip(0, 255))}


def bent(x, rng):
    """Images [n, 32, 32] under an affine map and a smooth displacement of each one's own."""
    from scipy.ndimage import gaussian_filter, map_coordinates

    n, size = len(x), x.shape[-1]
    turn, shear = rng.uniform(-0.2, 0.2, (2, n))
    scale, squeeze = rng.uniform(0.85, 1.15, (2, n))
    rows = np.stack([np.cos(turn) * scale, np.sin(turn) * scale + shear], 1)
    columns = np.stack([-np.sin(turn) * squeeze, np.cos(turn) * squeeze], 1)
    matrix = np.stack([rows, columns], 1)
    shift = rng.uniform(-2, 2, (n, 2, 1))
    field = gaussian_filter(rng.uniform(-1, 1, (n, 2, size, size)), (0, 0, 4, 4)) * 15
    at = np.indices((size, size)).reshape(2, -1) - (size - 1) / 2
    at = matrix @ at + shift + field.reshape(n, 2, -1) + (size - 1) / 2
    where = np.broadcast_to(np.arange(n)[:, None], at[:, 0].shape)
    made = map_coordinates(x, (where, at[:, 0], at[:, 1]), order=1, mode="nearest")
    return made.reshape(x.shape)


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
