"""Dead leaves: invented images of shapes of all sizes that cover each other, as things do.

Edges, corners, bars and flat parts at every scale excite the filters of a vision network much as
its own images do (Lee, Mumford and Huang 2001; networks learn from them alone: Baradad et al.,
arXiv:2106.05963).
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["dead_leaves"]

Array = np.ndarray[Any, Any]

#: Shapes in an image, at least and less than.
SHAPES = (2, 24)
#: Their radii as shares of the image; small ones are more frequent.
RADII = (0.03, 0.5)
#: Values of images as models are fed lie within.
LARGEST = 3.0
#: Widths of bars and rings.
LINES = (0.02, 0.06)


def dead_leaves(shape: tuple[int, int, int, int], rng: np.random.Generator) -> Array:
    """Images [batch, channels, height, width], float32, about of mean 0 and deviation 1.

    Blur, contrast, brightness and noise differ from image to image.
    """
    if 0 in shape:  # an empty cache of keys has the form of images
        return np.zeros(shape, np.float32)
    return np.stack([_image(shape[1:], rng) for _ in range(shape[0])]).astype(np.float32)


def _image(shape: tuple[int, int, int], rng: np.random.Generator) -> Array:
    image = np.full(shape, rng.normal())
    for _ in range(rng.integers(*SHAPES)):
        _cover(image, rng)
    for _ in range(rng.integers(3)):
        p = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="edge")
        beside = p[:, :-2, 1:-1] + p[:, 2:, 1:-1] + p[:, 1:-1, :-2] + p[:, 1:-1, 2:]
        image = (beside + 2 * image) / 6
    image = (image - image.mean()) / max(image.std(), 0.1)
    image = image * rng.uniform(0.4, 1.3) + 0.3 * rng.normal()
    image = image + rng.uniform(0, 0.3) * rng.standard_normal(shape)
    return np.asarray(np.clip(image, -LARGEST, LARGEST))


def _cover(image: Array, rng: np.random.Generator) -> None:
    """Put an ellipse, a rectangle, a bar or a ring somewhere."""
    _, height, width = image.shape
    radius = 1 / rng.uniform(1 / RADII[1], 1 / RADII[0])
    (y0, x0), angle = rng.uniform(-0.1, 1.1, 2), rng.uniform(0, np.pi)
    flat, line, kind = rng.uniform(0.15, 1), rng.uniform(*LINES), rng.integers(4)
    reach = 2 * radius + line
    rows, columns = (
        slice(max(0, int((at - reach) * size)), max(0, int((at + reach) * size) + 1))
        for at, size in ((y0, height), (x0, width))
    )
    y = np.arange(height)[rows, None] / height - y0
    x = np.arange(width)[None, columns] / width - x0
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    distance = np.hypot(along, across / flat)
    inside = [
        distance < radius,
        (abs(along) < radius) & (abs(across) < radius * flat),
        (abs(along) < 2 * radius) & (abs(across) < line),
        abs(distance - radius) < line,
    ][kind]
    image[:, rows, columns][:, inside] = rng.normal(size=(len(image), 1))
