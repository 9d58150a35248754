"""Images as samples, with a stated preprocessing: resize, crop, scale, normalize, lay out."""

from __future__ import annotations

import ast
import dataclasses
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from graphopt.errors import MissingExtra, SamplesError, UsageError
from graphopt.samples.inputs import Input

__all__ = ["SUFFIXES", "Preprocess", "read_images", "recipe_for"]

Array = np.ndarray[Any, Any]
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
#: Shorter side over crop, as in the evaluation of most ImageNet models (256 / 224).
_MARGIN = 256 / 224


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """What is done to each image: y = ((x of 0..255) * scale - mean) / std, after resize and crop.

    Attributes:
        resize: the shorter side becomes this long, aspect ratio kept (bilinear); 0: not resized.
        crop: height and width cut from the middle.
        scale: factor on the values 0..255.
        mean, std: one per channel, or one for all.
        layout: of the input the model takes.
        channels: of the input, in this order.
        dtype: of the input; integers are rounded.
    """

    resize: int
    crop: tuple[int, int]
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    channels: Literal["RGB", "BGR", "L"] = "RGB"
    dtype: str = "float32"


def recipe_for(one: Input, text: str | None) -> Preprocess:
    """The preprocessing: what `text` states, the rest from the shape of the model's input.

    Raises:
        UsageError: the text states an option that does not exist, or not its kind of value.
        SamplesError: the input is not an image.
    """
    given = _parse(text or "")
    dims = one.dims or ()
    if len(dims) != 4:
        raise SamplesError(f"input '{one.name}' takes {one}, which is not a batch of images")
    layout = given.get("layout") or (
        "NHWC" if dims[3] in (1, 3) and dims[1] not in (1, 3) else "NCHW"
    )
    depth = dims[1] if layout == "NCHW" else dims[3]
    sides = dims[2:] if layout == "NCHW" else dims[1:3]
    crop = given.get("crop") or tuple(d if isinstance(d, int) else 224 for d in sides)
    crop = (crop, crop) if isinstance(crop, int) else crop
    made = {
        "resize": round(min(crop) * _MARGIN),
        "channels": "L" if depth == 1 else "RGB",
        "scale": 1.0 if one.dtype.kind in "iu" else 1 / 255,
        **given,
        "layout": layout,
        "crop": crop,
        "dtype": str(one.dtype),
    }
    how = Preprocess(**made)
    if how.resize and how.resize < min(how.crop):
        raise UsageError(f"preprocess: resize={how.resize} is smaller than crop={how.crop}")
    return how


def read_images(files: Iterable[Path | BinaryIO], how: Preprocess) -> Iterator[Array]:
    """Each image as an array of batch 1. Raises SamplesError for a file that is no image."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingExtra("images", "reading images") from error
    for path in files:
        try:
            with Image.open(path) as opened:
                image = opened.convert("L" if how.channels == "L" else "RGB")
        except (OSError, UnidentifiedImageError) as error:
            raise SamplesError(f"samples {path}: not a readable image ({error})") from error
        width, height = image.size
        if how.resize:
            ratio = how.resize / min(width, height)
            width, height = max(round(width * ratio), 1), max(round(height * ratio), 1)
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        tall, wide = how.crop
        left, top = (width - wide) // 2, (height - tall) // 2
        image = image.crop((left, top, left + wide, top + tall))
        yield _values(np.asarray(image, np.float32), how)


def _values(pixels: Array, how: Preprocess) -> Array:
    """(H, W) or (H, W, 3) of 0..255 to the model's input."""
    if pixels.ndim == 2:
        pixels = pixels[:, :, np.newaxis]
    if how.channels == "BGR":
        pixels = pixels[:, :, ::-1]
    mean, std = np.array(how.mean, np.float32), np.array(how.std, np.float32)
    values: Array = (pixels * np.float32(how.scale) - mean) / std
    if how.layout == "NCHW":
        values = values.transpose(2, 0, 1)
    dtype = np.dtype(how.dtype)
    if dtype.kind in "iu":
        values = np.rint(values)
    return np.ascontiguousarray(values[np.newaxis]).astype(dtype)


def _parse(text: str) -> dict[str, Any]:
    """`resize=256, mean=(0.5, 0.5, 0.5), layout=NCHW` as a dict; bare words are text."""
    if not text.strip():
        return {}
    try:
        call = ast.parse(f"_({text})", mode="eval").body
        assert isinstance(call, ast.Call)
        assert not call.args
        given = {str(k.arg): _literal(k.value) for k in call.keywords}
    except (SyntaxError, ValueError, TypeError, ZeroDivisionError, AssertionError) as error:
        raise UsageError(
            f"preprocess: cannot read '{text}'; write resize=256, crop=224, mean=(0.5, 0.5, 0.5)"
        ) from error
    return {name: _fit(name, value) for name, value in given.items()}


def _literal(node: ast.expr) -> Any:
    """A literal, a bare word, or one number over another (1/255)."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return ast.literal_eval(node.left) / ast.literal_eval(node.right)
    return ast.literal_eval(node)


def _fit(name: str, value: Any) -> Any:
    from graphopt.errors import nearest

    known = {f.name for f in dataclasses.fields(Preprocess)} - {"dtype"}
    if name not in known:
        raise UsageError(
            f"preprocess: no option '{name}'{nearest(name, known)}. It takes: "
            f"{', '.join(sorted(known))}"
        )
    hints = typing.get_type_hints(Preprocess)
    words = typing.get_args(hints[name]) if name in ("layout", "channels") else ()
    numbers = value if isinstance(value, (tuple, list)) else (value,)
    plain = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in numbers)
    if name in ("mean", "std"):
        good, value = plain and len(numbers) in (1, 3), tuple(map(float, numbers)) if plain else ()
    elif name == "crop":
        good = plain and len(numbers) <= 2 and all(isinstance(v, int) and v > 0 for v in numbers)
        value = tuple(numbers) * 2 if len(numbers) == 1 else tuple(numbers)
    elif name == "resize":
        good = isinstance(value, int) and plain and value >= 0
    else:
        good = value in words if words else plain
    if not good:
        takes = " or ".join(words) or "a number, or one per channel for mean and std"
        raise UsageError(f"preprocess: '{name}' takes {takes}, not {value!r}")
    return value
