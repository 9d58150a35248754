"""Opening samples: files, folders, functions, arrays and iterables become `Samples`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from graphopt.blame import described
from graphopt.errors import SamplesError, UsageError
from graphopt.samples.archives import MAPPED, read_npz
from graphopt.samples.images import SUFFIXES, read_images, recipe_for
from graphopt.samples.inputs import Input, inputs_of
from graphopt.samples.stream import Feeds, Samples, fit
from graphopt.samples.tables import TABLES, arrow_files, is_frame, read_frame, read_table
from graphopt.samples.tokens import token_model

__all__ = ["SampleSource", "open_samples"]

Array = np.ndarray[Any, Any]
Items = Callable[[], Iterator[object]]
#: One sample, one batch, or many: arrays by input name, or one array for a model with one input.
Item = Mapping[str, Array] | Array
#: What samples are opened from.
SampleSource = Samples | str | Path | Item | Iterable[Item] | Callable[[], Iterable[Item]]
#: Most samples in one run where the model takes any number.
BATCH = 32


def open_samples(
    given: SampleSource,
    model: ir.Model,
    *,
    preprocess: str | None = None,
    count: int | None = None,
    batch: int | None = None,
) -> Samples:
    """Samples for `model` from what the user named; read again at every iteration.

    Args:
        given: a path (.npz or .npy file, .csv or .parquet table, folder of those, of images or of a
            saved data set of Hugging Face, `file.py:function` with a function that yields samples),
            or in Python `Samples`, a dict of arrays, one array, a pandas or polars data frame, a
            function that yields samples, or an iterable of them. A sample is a dict of arrays by
            input name, or one array if the model has one input; see `stream.fit` for shapes. Of a
            language model ids are enough: masks, positions and empty caches follow.
        model: whose inputs they are for.
        preprocess: for images, `resize=256, crop=224, scale=..., mean=..., std=..., layout=NCHW`.
        count: use this many samples at most.
        batch: samples in one run that the model holds on to though it declares any number; None:
            so many as come, 32 at most.

    Raises:
        SamplesError: nothing there, nothing in it, or not what the model takes.
    """
    if isinstance(given, Samples):
        return given
    inputs = [_held(i, batch) for i in inputs_of(model)]
    source, given_items = _items(given, inputs, preprocess)
    tokens = token_model(model)
    items = given_items if tokens is None else lambda: map(tokens.completed, given_items())
    samples = Samples(
        _Again(lambda: fit(items(), inputs, source, batch=BATCH, count=count)), source
    )
    if next(iter(samples), None) is None:
        sizes = {i.batch for i in inputs if i.batch}
        size = f" (of {max(sizes)})" if sizes else ""
        raise SamplesError(
            f"{source} holds no samples, or too few for one batch of the model{size}"
        )
    return samples


def _held(one: Input, batch: int | None) -> Input:
    """An input with the batch that the model holds on to."""
    if batch is None or not one.dims or one.axis != 0 or isinstance(one.dims[0], int):
        return one
    return dataclasses.replace(one, dims=(batch, *one.dims[1:]))


class _Again:
    """An iterable that calls `start` for each iteration."""

    def __init__(self, start: Callable[[], Iterator[Feeds]]) -> None:
        self._start = start

    def __iter__(self) -> Iterator[Feeds]:
        return self._start()


def _items(given: object, inputs: list[Input], preprocess: str | None) -> tuple[str, Items]:
    """What to call it in messages, and a function that starts reading it."""
    if isinstance(given, (str, Path)):
        return str(given), _from_path(str(given), inputs, preprocess)
    if is_frame(given):
        return "table", lambda: read_frame(given, inputs)
    if isinstance(given, (Mapping, np.ndarray)):
        return "arrays", lambda: iter([given])
    if callable(given):
        return _from_function(given, getattr(given, "__name__", "function"))
    if isinstance(given, Iterator):
        kept = list(given)
        return "iterator", lambda: iter(kept)
    if isinstance(given, Iterable):
        return type(given).__name__, lambda: iter(given)
    raise SamplesError(f"samples cannot be made from {type(given).__name__}")


def _from_path(text: str, inputs: list[Input], preprocess: str | None) -> Items:
    name, _, attribute = text.rpartition(":")
    if name.endswith(".py"):
        from graphopt.user_code import load_attribute

        try:
            function = load_attribute(name, attribute, "function")
        except UsageError as error:
            raise SamplesError(f"samples {text}: {error}") from error
        return _from_function(function, text)[1]
    path = Path(text)
    if path.is_dir():
        return _from_folder(path, inputs, preprocess)
    if not path.is_file():
        what = "neither a file nor a folder" if path.exists() else "no such file or folder"
        raise SamplesError(f"samples {text}: {what}")
    if path.suffix == ".npz":
        return lambda: read_npz(path, inputs)
    if path.suffix == ".npy":
        return lambda: iter([_read_npy(path)])
    if path.suffix in TABLES:
        return lambda: read_table([path], inputs)
    if path.suffix.lower() in SUFFIXES:
        return _from_images([path], inputs, preprocess, text)
    raise SamplesError(
        f"samples {text}: give an .npz or .npy file, a .csv or .parquet table, a folder of "
        "them or of images, or file.py:function"
    )


def _from_function(function: object, name: str) -> tuple[str, Items]:
    if not callable(function):
        raise SamplesError(f"samples {name}: not a function but {type(function).__name__}")

    def start() -> Iterator[object]:
        try:
            yield from function()
        except Exception as error:
            raise SamplesError(f"samples {name}: {described(error)}") from error

    return name, start


def _from_folder(folder: Path, inputs: list[Input], preprocess: str | None) -> Items:
    def files(*suffixes: str) -> list[Path]:
        return sorted(p for p in folder.rglob("*") if p.suffix.lower() in suffixes)

    archives, arrays, images = files(".npz"), files(".npy"), files(*SUFFIXES)
    if archives:
        return lambda: (item for p in archives for item in read_npz(p, inputs))
    if arrays:
        stems = {p.stem: p for p in arrays}
        if all(i.name in stems for i in inputs):
            return lambda: iter([{i.name: _read_npy(stems[i.name]) for i in inputs}])
        if len(inputs) == 1:
            return lambda: (_read_npy(p) for p in arrays)
        names = ", ".join(f"{i.name}.npy" for i in inputs)
        raise SamplesError(f"samples {folder}: it should hold {names}")
    if images:
        return _from_images(images, inputs, preprocess, str(folder))
    tables = arrow_files(folder) or files(".parquet") or files(".csv")
    if tables:
        return lambda: read_table(tables, inputs)
    raise SamplesError(f"samples {folder}: it holds no .npz, .npy, image or table files")


def _from_images(
    files: list[Path], inputs: list[Input], preprocess: str | None, where: str
) -> Items:
    if len(inputs) != 1:
        names = ", ".join(i.name for i in inputs)
        raise SamplesError(f"samples {where}: images fit a model with one input, not {names}")
    how = recipe_for(inputs[0], preprocess)
    return lambda: read_images(files, how)


def _read_npy(path: Path) -> Array:
    try:
        _check_regular(path)
        mode: Literal["r"] | None = "r" if path.stat().st_size > MAPPED else None
        array: Array = np.load(path, mmap_mode=mode, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise SamplesError(f"samples {path}: {str(error).splitlines()[0]}") from error
    return array


def _check_regular(path: Path) -> None:
    """Raise OSError for a pipe or a device, which would be waited for."""
    if not path.is_file():
        raise OSError("not a regular file")
