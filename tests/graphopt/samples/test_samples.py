"""Samples from every source: cut into the model's batches, checked against its inputs."""

from __future__ import annotations

import io
import itertools
import os
import zipfile
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.analyses.binding import bind_shapes
from graphopt.errors import SamplesError, UsageError
from graphopt.samples import Samples, archives, open_samples
from graphopt.samples.inputs import inputs_of

Dims = tuple[int | str | None, ...]


def taking(**inputs: tuple[str, Dims]) -> ir.Model:
    """A model with these inputs: name=(dtype, dims)."""
    values = [
        ir.Value(
            name=n,
            type=ir.TensorType(getattr(ir.DataType, dtype)),
            shape=ir.Shape(list(dims)),
        )
        for n, (dtype, dims) in inputs.items()
    ]
    graph = ir.Graph(values, [], nodes=[], opset_imports={"": 20}, name="g")
    return ir.Model(graph, ir_version=10)


IMAGE = taking(x=("FLOAT", (1, 3, 4, 4)))
TOKENS = taking(ids=("INT64", ("batch", "seq")), mask=("INT64", ("batch", "seq")))


def array(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def shapes(samples: Samples, name: str = "x") -> list[tuple[int, ...]]:
    return [f[name].shape for f in samples]


def fails(given: object, model: ir.Model = IMAGE, *words: str, **options: object) -> None:
    with pytest.raises(SamplesError) as caught:
        list(open_samples(given, model, **options))
    for word in words:
        assert word in str(caught.value), caught.value
    assert "\n" not in str(caught.value)


# --- cutting into runs ----------------------------------------------------------------------


def test_more_samples_than_the_fixed_batch():
    samples = open_samples({"x": array(5, 3, 4, 4)}, IMAGE)
    assert shapes(samples) == [(1, 3, 4, 4)] * 5
    assert np.array_equal(np.concatenate([f["x"] for f in samples]), array(5, 3, 4, 4))


def test_a_further_leading_axis():
    assert shapes(open_samples({"x": array(5, 1, 3, 4, 4)}, IMAGE)) == [(1, 3, 4, 4)] * 5


def test_a_missing_batch_axis():
    assert shapes(open_samples([array(3, 4, 4)] * 2, IMAGE)) == [(1, 3, 4, 4)] * 2


def test_single_samples_are_gathered_into_a_fixed_batch():
    model = taking(x=("FLOAT", (2, 3)))
    samples = open_samples([{"x": array(1, 3) + k} for k in range(5)], model)
    assert shapes(samples) == [(2, 3)] * 2
    assert [f["x"][1, 0] for f in samples] == [1, 3]


def test_a_free_batch_is_cut_at_most():
    model = taking(x=("FLOAT", ("n", 3)))
    assert shapes(open_samples({"x": array(70, 3)}, model)) == [(32, 3), (32, 3), (6, 3)]
    assert shapes(open_samples({"x": array(7, 3)}, model, batch=4)) == [(4, 3)]


def test_a_free_axis_that_is_no_batch_is_not_cut():
    model = taking(x=("FLOAT", ("sequence", 1, 3)))
    assert shapes(open_samples({"x": array(70, 1, 3)}, model)) == [(70, 1, 3)]


def test_inputs_are_cut_together():
    tokens = {"ids": array(40, 6, dtype="int64"), "mask": array(40, 6, dtype="int64")}
    runs = list(open_samples(tokens, TOKENS))
    assert [len(r["ids"]) for r in runs] == [32, 8]
    assert all(np.array_equal(r["ids"], r["mask"]) for r in runs)


def test_an_input_without_batch_goes_to_every_run():
    model = taking(x=("FLOAT", (1, 3)), scale=("FLOAT", ()), anchor=("FLOAT", (1,)))
    given = {"x": array(4, 3), "scale": np.float32(2), "anchor": array(1)}
    runs = list(open_samples(given, model))
    assert len(runs) == 4
    assert all(r["scale"] == 2 and r["anchor"].shape == (1,) for r in runs)


def test_count_limits_the_samples():
    model = taking(x=("FLOAT", ("n", 3)))
    assert shapes(open_samples({"x": array(70, 3)}, model, count=40)) == [(32, 3), (8, 3)]
    assert len(shapes(open_samples({"x": array(9, 3, 4, 4)}, IMAGE, count=4))) == 4


# --- one file or one dict as one run --------------------------------------------------------

VOICE = taking(x=("FLOAT", ("batch", 4)), state=("FLOAT", (2, "batch", 3)), rate=("INT64", ()))
TIME_MAJOR = taking(x=("FLOAT", ("T", "N", 3)), lengths=("INT32", ("N",)))
CACHED = taking(x=("FLOAT", ("B", "S", 4)), past=("FLOAT", (3, 2, "B", "P", 4)))
STATIC_STATE = taking(x=("FLOAT", (None, 4)), h0=("FLOAT", (4, 1, 6)))
CROSSED = taking(x=("FLOAT", (None, 4)), y=("FLOAT", (None, 5)))
FIXED_STATE = taking(x=("FLOAT", (1, 4)), state=("FLOAT", (2, 1, 3)))


def run_of(model: ir.Model, **sizes: int) -> dict[str, np.ndarray]:
    """One run's arrays, each dynamic axis as long as `sizes` says (by name, or by input)."""
    return {
        v.name: array(
            *(d if isinstance(d, int) else sizes.get(d.value or v.name, 1) for d in v.shape),
            dtype=v.dtype.numpy().name,
        )
        for v in model.graph.inputs
    }


@pytest.mark.parametrize(
    ("model", "sizes"),
    [
        (VOICE, [{"batch": 1}, {"batch": 2}, {"batch": 40}]),
        (TIME_MAJOR, [{"T": 9, "N": 2}, {"T": 3, "N": 3}, {"T": 50, "N": 50}]),
        (CACHED, [{"B": 1, "S": 1, "P": 5}, {"B": 3, "S": 2, "P": 3}]),
        (STATIC_STATE, [{"x": 1}, {"x": 70}]),
        (CROSSED, [{"x": 3, "y": 5}]),
        (FIXED_STATE, [{}]),
    ],
)
@pytest.mark.parametrize("kind", ["dicts", "function", "folder"])
def test_a_run_is_passed_on_as_it_is(tmp_path, model, sizes, kind):
    """Leading axes that disagree are no batch, whatever sizes the runs have."""
    runs = [run_of(model, **s) for s in sizes]
    given: object = runs
    if kind == "function":
        given = lambda: iter(runs)  # noqa: E731
    elif kind == "folder":
        for k, run in enumerate(runs):
            np.savez(tmp_path / f"{k}.npz", **run)
        given = tmp_path
    found = list(open_samples(given, model))
    assert len(found) == len(runs)
    for have, want in zip(found, runs, strict=True):
        assert all(np.array_equal(have[n], want[n]) for n in want)


def test_a_state_is_repeated_for_samples_cut_to_a_fixed_batch():
    given = {"x": array(5, 4), "state": array(2, 1, 3)}
    runs = list(open_samples(given, FIXED_STATE))
    assert [r["x"].tolist() for r in runs] == array(5, 1, 4).tolist()
    assert all(np.array_equal(r["state"], array(2, 1, 3)) for r in runs)


def test_a_stack_of_states_beside_rows():
    given = {"x": array(5, 4), "state": array(5, 2, 1, 3), "rate": np.int64(8000)}
    runs = list(open_samples(given, VOICE))
    assert [r["x"].shape for r in runs] == [(1, 4)] * 5
    assert np.array_equal(runs[3]["state"], array(5, 2, 1, 3)[3])


def test_a_parameter_is_not_doubled_where_samples_fill_no_batch():
    model = taking(x=("FLOAT", (2, 3)), anchor=("FLOAT", (4,)))
    runs = list(open_samples([{"x": array(1, 3), "anchor": array(4)}] * 4, model))
    assert [(r["x"].shape, r["anchor"].shape) for r in runs] == [((2, 3), (4,))] * 2


def test_a_missing_batch_axis_is_added_where_the_batch_is():
    (run,) = open_samples([{"x": array(9, 3), "lengths": array(1, dtype="int32")}], TIME_MAJOR)
    assert run["x"].shape == (9, 1, 3)


@pytest.mark.parametrize("name", ["?", ""])
def test_axes_of_no_name_are_not_tied(name):
    model = taking(x=("FLOAT", ("batch", 3, name, name)))
    (one,) = inputs_of(model)
    assert one.dims == ("batch", 3, None, None)
    (run,) = open_samples({"x": array(2, 3, 4, 6)}, model)
    assert bind_shapes(model, like=run)[0] == {"x": (1, 3, 4, 6)}


def test_thousands_of_small_files(tmp_path):
    """More than a process may keep open."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for k in range(300):
        np.savez(tmp_path / f"{k}.npz", x=array(1, 3, 4, 4) + k)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
    try:
        runs = list(open_samples(tmp_path, IMAGE))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert sum(r["x"][0, 0, 0, 0] for r in runs) == sum(range(300))


# --- sources --------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("key", ["x", "in:x", "arr_0"])
def test_npz(tmp_path, save, key):
    save(tmp_path / "s.npz", **{key: array(5, 3, 4, 4), "out:y": array(2)})
    samples = open_samples(tmp_path / "s.npz", IMAGE)
    for _ in range(2):
        assert np.array_equal(np.concatenate([f["x"] for f in samples]), array(5, 3, 4, 4))


def test_npz_of_odd_arrays(tmp_path):
    """Fortran order and empty others are read, not mapped."""
    np.savez(tmp_path / "s.npz", x=np.asfortranarray(array(5, 3, 4, 4)), empty=array(0))
    (first, *_) = open_samples(tmp_path / "s.npz", IMAGE)
    assert np.array_equal(first["x"], array(5, 3, 4, 4)[:1])


def test_npy_is_mapped(tmp_path):
    np.save(tmp_path / "s.npy", array(5, 3, 4, 4))
    assert len(list(open_samples(str(tmp_path / "s.npy"), IMAGE))) == 5


def test_folder_of_npz(tmp_path):
    for k in range(3):
        np.savez(tmp_path / f"{k}.npz", x=array(2, 3, 4, 4) + k)
    assert [f["x"].min() for f in open_samples(tmp_path, IMAGE)] == [0, 48, 1, 49, 2, 50]


def test_folder_of_npy_by_input(tmp_path):
    for name in ("ids", "mask"):
        np.save(tmp_path / f"{name}.npy", array(4, 6, dtype="int64"))
    assert len(list(open_samples(tmp_path, TOKENS))) == 1


def test_folder_of_npy_of_one_input(tmp_path):
    for k in range(3):
        np.save(tmp_path / f"{k}.npy", array(3, 4, 4))
    assert len(list(open_samples(tmp_path, IMAGE))) == 3


def test_function_in_a_file(tmp_path):
    (tmp_path / "calib.py").write_text(
        "import numpy as np\n"
        "def feeds():\n"
        "    for k in range(3):\n"
        "        yield {'x': np.full((1, 3, 4, 4), k, np.float32)}\n"
    )
    samples = open_samples(f"{tmp_path}/calib.py:feeds", IMAGE)
    for _ in range(2):
        assert [f["x"].max() for f in samples] == [0, 1, 2]


def test_python_sources():
    item = {"x": array(1, 3, 4, 4)}
    for given in ([item] * 3, lambda: iter([item] * 3), (item for _ in range(3))):
        samples = open_samples(given, IMAGE)
        assert len(list(samples)) == len(list(samples)) == 3
    assert len(list(open_samples(array(3, 3, 4, 4), IMAGE))) == 3
    assert open_samples(samples, IMAGE) is samples


def test_a_generator_function_is_streamed():
    """Nothing is kept: an endless source works with a count."""

    def endless():
        for k in itertools.count():
            yield {"x": np.full((1, 3, 4, 4), k, np.float32)}

    assert len(list(open_samples(endless, IMAGE, count=5))) == 5


def test_digest_tells_samples_apart(tmp_path):
    np.savez(tmp_path / "s.npz", x=array(5, 3, 4, 4))
    same = [open_samples(s, IMAGE).digest() for s in (tmp_path / "s.npz", {"x": array(5, 3, 4, 4)})]
    other = open_samples({"x": array(5, 3, 4, 4) + 1}, IMAGE).digest()
    fewer = open_samples({"x": array(5, 3, 4, 4)}, IMAGE, count=4).digest()
    assert same[0] == same[1]
    assert len({same[0], other, fewer}) == 3


# --- what does not fit ----------------------------------------------------------------------


def test_missing_file_or_folder(tmp_path):
    fails(tmp_path / "none.npz", IMAGE, "no such file")
    fails(f"{tmp_path}/none.py:f", IMAGE, "no such file")


def test_a_file_that_is_not_what_it_says(tmp_path):
    for name in ("s.npz", "s.npy"):
        (tmp_path / name).write_bytes(b"not numpy at all")
        fails(tmp_path / name, IMAGE, name)
    (tmp_path / "s.txt").write_text("x")
    fails(tmp_path / "s.txt", IMAGE, ".npz")


def test_pickled_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "s.npz", x=np.array([{}], dtype=object))
    fails(tmp_path / "s.npz", IMAGE, "pickle")


def test_empty_sources(tmp_path):
    fails([], IMAGE, "no samples")
    fails(tmp_path, IMAGE, "holds no")
    fails({"x": array(0, 3, 4, 4)}, IMAGE, "no samples")
    fails({"x": array(1, 3)}, taking(x=("FLOAT", (2, 3))), "too few")


def test_wrong_name():
    fails({"xs": array(1, 3, 4, 4)}, IMAGE, "'x'", "did you mean 'xs'", "xs")
    fails({"ids": array(1, 3, dtype="int64")}, TOKENS, "'mask'", "ids")


def test_wrong_name_in_a_file(tmp_path):
    np.savez(tmp_path / "s.npz", image=array(1, 3, 4, 4))
    fails(tmp_path / "s.npz", IMAGE, "'x'", "image")


def test_wrong_shape():
    fails({"x": array(1, 3, 5, 4)}, IMAGE, "'x'", "float32[1, 3, 4, 4]", "float32[1, 3, 5, 4]")
    fails({"x": array(3, 4)}, IMAGE, "float32[3, 4]")


def test_wrong_type():
    fails({"x": array(1, 3, 4, 4, dtype="float64")}, IMAGE, "'x'", "float32", "float64", "astype")


def test_inputs_of_different_length():
    given = {"ids": array(4, 6, dtype="int64"), "mask": array(5, 6, dtype="int64")}
    fails(given, TOKENS, "'ids' 4", "'mask' 5")


def test_nan():
    x = array(1, 3, 4, 4)
    x[0, 0, 0, 0] = np.nan
    fails({"x": x}, IMAGE, "'x'", "NaN")


def test_one_array_for_several_inputs():
    fails([array(1, 2)], TOKENS, "ids, mask")


def test_pairs_with_labels():
    """What data loaders yield; which of the two is the input is not guessed."""
    fails([(array(1, 3, 4, 4), array(1))], IMAGE, "tuple", "dict of arrays named x")


def test_a_function_that_raises(tmp_path):
    (tmp_path / "calib.py").write_text("def feeds():\n    raise ValueError('no\\nluck')\n")
    fails(f"{tmp_path}/calib.py:feeds", IMAGE, "calib.py:feeds", "ValueError: no")
    (tmp_path / "data.py").write_text("feeds = 3\n")
    fails(f"{tmp_path}/data.py:feeds", IMAGE, "not a function")


def test_inputs_that_are_no_tensors_are_not_asked_for():
    value = ir.Value(name="s", type=ir.SequenceType(ir.TensorType(ir.DataType.FLOAT)))
    graph = ir.Graph([value], [], nodes=[], opset_imports={"": 20})
    assert inputs_of(ir.Model(graph, ir_version=10)) == []


# --- images ---------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    image = pytest.importorskip("PIL.Image")
    for k, size in enumerate([(40, 20), (20, 60)]):
        pixels = np.full((size[1], size[0], 3), (255, 0, 51), np.uint8)
        image.fromarray(pixels).save(tmp_path / f"{k}.png")
    return tmp_path


def test_images_follow_the_stated_preprocessing(photos):
    how = "resize=8, crop=4, scale=1/255, mean=(0.5, 0.5, 0.2), std=(0.5, 0.5, 0.1), layout=NCHW"
    runs = list(open_samples(photos, IMAGE, preprocess=how))
    assert len(runs) == 2
    assert runs[0]["x"].dtype == np.float32
    for run in runs:
        assert run["x"].shape == (1, 3, 4, 4)
        assert np.allclose(run["x"][0, :, 2, 2], [1, -1, 0], atol=1e-6)


def test_images_fit_the_input_by_default(photos):
    (first, _) = open_samples(photos, IMAGE)
    assert np.allclose(first["x"][0, :, 0, 0], [1, 0, 0.2], atol=1e-6)
    last = taking(x=("UINT8", ("n", 6, 5, 3)))
    (first, _) = open_samples(photos, last)
    assert first["x"].shape == (1, 6, 5, 3)
    assert first["x"][0, 0, 0].tolist() == [255, 0, 51]
    gray = taking(x=("FLOAT", (1, 1, 6, 5)))
    assert next(iter(open_samples(photos, gray)))["x"].shape == (1, 1, 6, 5)
    bgr = open_samples(photos, IMAGE, preprocess="channels=BGR")
    assert np.allclose(next(iter(bgr))["x"][0, :, 0, 0], [0.2, 0, 1], atol=1e-6)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("resize", "cannot read"),
        ("size=8", "did you mean 'resize'"),
        ("layout=NWHC", "NCHW or NHWC"),
        ("mean='grey'", "'mean'"),
        ("resize=2", "smaller than crop"),
    ],
)
def test_preprocessing_that_cannot_be(photos, text, word):
    with pytest.raises(UsageError, match=word):
        open_samples(photos, IMAGE, preprocess=text)


def test_images_that_cannot_be(photos):
    (photos / "2.png").write_bytes(b"no image")
    fails(photos, IMAGE, "2.png", "not a readable image")
    fails(photos, TOKENS, "one input")
    fails(photos, taking(x=("FLOAT", (1, 3))), "not a batch of images")


# --- archives -------------------------------------------------------------------------------


def test_compressed_archives_are_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "PART", 4 * 3 * 8 * 8 * 100)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 3, 8, 8)).astype(np.float32)
    np.savez_compressed(tmp_path / "big.npz", x=x)
    np.savez(tmp_path / "plain.npz", x=x)
    model = taking(x=("FLOAT", ("n", 3, 8, 8)))
    items = list(archives.read_npz(tmp_path / "big.npz", inputs_of(model)))
    assert [len(i["x"]) for i in items] == [96] * 5 + [20]
    got = [f["x"] for f in open_samples(tmp_path / "big.npz", model)]
    want = [f["x"] for f in open_samples(tmp_path / "plain.npz", model)]
    assert [len(g) for g in got] == [len(w) for w in want]
    assert all(np.array_equal(g, w) for g, w in zip(got, want, strict=True))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_headers_that_claim_more_than_there_is(tmp_path, compression):
    header = io.BytesIO()
    described = {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 3, 8, 8)}
    np.lib.format.write_array_header_1_0(header, described)
    with zipfile.ZipFile(tmp_path / "lie.npz", "w", compression) as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(64))
    fails(tmp_path / "lie.npz", IMAGE, "lie.npz", "claims")


def test_npz_that_opens_to_hundreds_of_times_its_size_is_refused_unopened(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "DOUBTED", 1 << 20)
    zeros, noise = np.zeros((40, 3, 64, 64), np.float32), array(40, 3, 64, 64)
    model = taking(x=("FLOAT", ("n", 3, 64, 64)))
    np.savez_compressed(tmp_path / "bomb.npz", x=zeros)
    unread = archives._Member._read
    monkeypatch.setattr(archives._Member, "_read", lambda *_: pytest.fail("it was decompressed"))
    fails(tmp_path / "bomb.npz", model, "bomb.npz", "times its size", "numpy.savez")
    monkeypatch.setattr(archives._Member, "_read", unread)
    np.savez(tmp_path / "plain.npz", x=zeros)  # as large as it claims to be
    np.savez_compressed(tmp_path / "mask.npz", x=noise, unused=zeros)
    for name, want in (("plain.npz", zeros), ("mask.npz", noise)):
        first = next(iter(open_samples(tmp_path / name, model)))
        np.testing.assert_array_equal(first["x"], want[:32])


@pytest.mark.parametrize("name", ["pipe.npz", "pipe.npy"])
def test_pipes_are_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    fails(tmp_path / name, IMAGE, name)
    fails(tmp_path, IMAGE, "not a regular file")
