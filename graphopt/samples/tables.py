"""Tables as samples: pandas and polars data frames, .csv and .parquet, folders of arrow files.

Columns that are called as the model's inputs are those; for a model with one matrix as its input
the columns of numbers are its columns, in order, where there are as many.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.errors import MissingExtra, SamplesError
from graphopt.samples.inputs import Input

__all__ = ["TABLES", "arrow_files", "is_frame", "read_frame", "read_table"]

Array = np.ndarray[Any, Any]
Columns = Mapping[str, Sequence[Any] | Array]
#: What files of tables end in.
TABLES = (".csv", ".parquet", ".arrow")
#: Rows that are held at a time.
ROWS = 4096


def is_frame(given: object) -> bool:
    """Whether it is a data frame: it has named columns."""
    return hasattr(given, "columns") and hasattr(given, "to_numpy")


def arrow_files(folder: Path) -> list[Path]:
    """Of a data set that Hugging Face's `datasets` saved: the parts in order."""
    return sorted(folder.rglob("*.arrow"))


def read_frame(frame: Any, inputs: Sequence[Input]) -> Iterator[dict[str, Array]]:
    """The rows of a data frame. Raises SamplesError where columns and inputs do not fit."""
    return _matched(iter([{str(c): np.asarray(frame[c]) for c in frame.columns}]), inputs, "table")


def read_table(paths: Iterable[Path], inputs: Sequence[Input]) -> Iterator[dict[str, Array]]:
    """The rows of files of one table, so many at a time.

    Raises:
        SamplesError: one is no such file, or its columns do not fit the inputs.
        MissingExtra: .parquet and .arrow files need pyarrow.
    """
    for path in paths:
        parts = _csv(path) if path.suffix == ".csv" else _arrow(path)
        yield from _matched(parts, inputs, f"samples {path}")


def _csv(path: Path) -> Iterator[Columns]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file)
            names = next(rows, [])
            while part := list(itertools.islice(rows, ROWS)):
                odd = next((k for k, row in enumerate(part) if len(row) != len(names)), None)
                if odd is not None:
                    raise SamplesError(
                        f"samples {path}: the header has {len(names)} columns, "
                        f"a row {len(part[odd])}"
                    )
                columns = zip(*part, strict=True)
                yield {n: _typed(values) for n, values in zip(names, columns, strict=True)}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SamplesError(f"samples {path}: {error}") from error


def _typed(values: Sequence[str]) -> Array:
    """Numbers where all are, an empty one being NaN; else text."""
    try:
        return np.array([float(v) if v.strip() else np.nan for v in values])
    except ValueError:
        return np.array(values, object)


def _arrow(path: Path) -> Iterator[Columns]:
    try:
        import pyarrow as pa
        from pyarrow import ipc, parquet
    except ImportError as error:
        raise MissingExtra("tables", f"reading {path.name}") from error
    try:
        if path.suffix == ".parquet":
            with parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(ROWS):
                    yield batch.to_pydict()
            return
        with pa.memory_map(str(path)) as mapped:
            try:  # what `datasets` writes
                batches = iter(ipc.open_stream(mapped))
            except pa.ArrowInvalid:
                whole = ipc.open_file(mapped)
                batches = (whole.get_batch(k) for k in range(whole.num_record_batches))
            for batch in batches:
                yield batch.to_pydict()
    except (OSError, pa.ArrowException) as error:
        raise SamplesError(f"samples {path}: {str(error).splitlines()[0]}") from error


def _matched(
    parts: Iterator[Columns], inputs: Sequence[Input], where: str
) -> Iterator[dict[str, Array]]:
    """Columns as the arrays that inputs take; rows of different lengths come one by one."""
    for columns in parts:
        chosen = {i.name: i.name for i in inputs if i.name in columns}
        if len(chosen) < len(inputs):
            if len(inputs) != 1 or not _is_matrix(inputs[0]):
                missing = ", ".join(i.name for i in inputs if i.name not in columns)
                raise SamplesError(
                    f"{where}: no column is called {missing}; it has {', '.join(columns)}"
                )
            yield {inputs[0].name: _matrix(columns, inputs[0], where)}
            continue
        arrays = {i.name: _column(columns[i.name], i) for i in inputs}
        if all(a is not None for a in arrays.values()):
            yield {n: a for n, a in arrays.items() if a is not None}
            continue
        for k in range(len(columns[inputs[0].name])):
            yield {i.name: _row(columns[i.name][k], i) for i in inputs}


def _is_matrix(one: Input) -> bool:
    return one.dims is not None and len(one.dims) == 2 and one.dtype.kind in "fiu"


def _matrix(columns: Columns, one: Input, where: str) -> Array:
    assert one.dims is not None
    numbers = {n: np.asarray(c) for n, c in columns.items()}
    numbers = {n: c for n, c in numbers.items() if c.dtype.kind in "fiub" and c.ndim == 1}
    want = one.dims[1]
    if not numbers or (isinstance(want, int) and want != len(numbers)):
        raise SamplesError(
            f"{where}: input '{one.name}' takes {want} columns, the table has {len(numbers)} of "
            f"numbers ({', '.join(numbers)}): leave out what is no feature"
        )
    return np.stack([c.astype(one.dtype) for c in numbers.values()], 1)


def _column(values: Sequence[Any] | Array, one: Input) -> Array | None:
    """A column as an array with rows in front; None where its rows have different lengths."""
    first = next(iter(values), None)
    if isinstance(first, dict) and isinstance(first.get("bytes"), bytes):
        return None  # pictures
    try:
        array = np.asarray(list(values))
    except ValueError:
        return None
    if array.dtype.kind == "O" and one.dtype.kind != "O":
        return None
    array = array.astype(one.dtype)
    if one.dims is not None and len(one.dims) == 2 and array.ndim == 1:
        array = array[:, np.newaxis]
    return array


def _row(value: Any, one: Input) -> Array:
    """One row as a batch of one; a picture is decoded."""
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        from graphopt.samples.images import read_images, recipe_for

        return next(iter(read_images([io.BytesIO(value["bytes"])], recipe_for(one, None))))
    return np.asarray(value, one.dtype)[np.newaxis]
