"""Tables as samples: .csv, .parquet, arrow files and data frames."""

import builtins

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.errors import MissingExtra, SamplesError
from graphopt.samples import open_samples
from graphopt.testing import parse_model

MATRIX = parse_model("y = Relu(x)", inputs={"x": ("n", 3)})
COLUMNS = parse_model(
    "y = Add(age, size)", inputs={"age": np.zeros((1, 1), np.float32), "size": ("n", 1)}
)


class Frame:
    """As much of a data frame as is asked for."""

    def __init__(self, columns):
        self.held, self.columns = columns, list(columns)

    def __getitem__(self, name):
        return self.held[name]

    def to_numpy(self):
        return np.stack(list(self.held.values()), 1)


def rows(given, model):
    runs = list(open_samples(given, model))
    return {n: np.concatenate([r[n] for r in runs]) for n in runs[0]}


def test_columns_of_numbers_are_the_columns_of_a_matrix(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,name,b,c\n1,u,2.5,3\n4,v,5,6\n")
    found = rows(path, MATRIX)["x"]
    assert found.dtype == np.float32
    assert found.tolist() == [[1, 2.5, 3], [4, 5, 6]]


def test_long_tables_come_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("graphopt.samples.tables.ROWS", 4)
    path = tmp_path / "t.csv"
    path.write_text("a,b,c\n" + "".join(f"{k},{k + 1},{k + 2}\n" for k in range(11)))
    assert rows(path, MATRIX)["x"][:, 0].tolist() == list(range(11))


def test_columns_by_name():
    table = Frame({"size": np.arange(3), "other": np.arange(3), "age": np.arange(3) + 10.0})
    model = parse_model("y = Add(age, size)", inputs={"age": ("n", 1), "size": ("n", 1)})
    found = rows(table, model)
    assert found["age"].tolist() == [[10], [11], [12]]
    assert found["size"].dtype == np.float32


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "takes 3 columns, the table has 2 of numbers"),
        ("a,b,c,d\n1,2,3,4\n", "takes 3 columns, the table has 4 of numbers .a, b, c, d."),
        ("a,b,c\n1,2,3\n1,,3\n", "input 'x' holds NaN"),
        ("a,b,c\n1,2\n", "the header has 3 columns, a row 2"),
        ("", "holds no samples"),
    ],
)
def test_tables_that_do_not_fit(tmp_path, text, message):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(SamplesError, match=message):
        list(open_samples(path, MATRIX))


def test_a_missing_column_is_named(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("age,b\n1,2\n")
    with pytest.raises(SamplesError, match="no column is called size; it has age, b"):
        open_samples(path, COLUMNS)


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "t.parquet").touch()
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match="tables"):
        open_samples(tmp_path / "t.parquet", MATRIX)


def test_parquet_and_arrow(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import ipc, parquet

    table = pyarrow.table({"a": [1.0, 4.0], "b": [2, 5], "c": [3.5, 6.5], "t": ["u", "v"]})
    parquet.write_table(table, tmp_path / "t.parquet")
    assert rows(tmp_path / "t.parquet", MATRIX)["x"].tolist() == [[1, 2, 3.5], [4, 5, 6.5]]
    folder = tmp_path / "set"
    folder.mkdir()
    ids = pyarrow.table({"ids": [[1, 2, 3], [4], [5, 6]]})
    for k in range(2):
        with ipc.new_stream(folder / f"data-0000{k}.arrow", ids.schema) as sink:
            sink.write_table(ids)
    model = parse_model("y = Neg(ids)", inputs={"ids": np.zeros((1, 1), np.int64)})
    model.graph.inputs[0].shape = ir.Shape(["n", "m"])
    runs = [r["ids"].tolist() for r in open_samples(folder, model)]
    assert runs == [[[1, 2, 3]], [[4]], [[5, 6]]] * 2


def test_pictures_in_arrow_files(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    image = pytest.importorskip("PIL.Image")
    import io

    from pyarrow import ipc

    held = []
    for k in range(2):
        file = io.BytesIO()
        image.fromarray(np.full((8, 8, 3), 100 * k, np.uint8)).save(file, "PNG")
        held.append({"bytes": file.getvalue(), "path": None})
    table = pyarrow.table({"pixels": held})
    with ipc.new_file(tmp_path / "data.arrow", table.schema) as sink:
        sink.write_table(table)
    model = parse_model("y = Relu(pixels)", inputs={"pixels": ("n", 3, 8, 8)})
    found = rows(tmp_path, model)["pixels"]
    assert found.shape == (2, 3, 8, 8)
    assert found[1].std() < 1e-6
    assert found[1].mean() > found[0].mean()
