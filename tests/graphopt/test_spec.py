import dataclasses
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt import Pass
from graphopt.errors import UsageError
from graphopt.pass_ import _FILES, format_pass
from graphopt.spec import format_spec, parse, pass_class

FILE = '''
from dataclasses import dataclass
from typing import Literal
from graphopt import Pass

@dataclass(frozen=True)
class Mine(Pass):
    """Does nothing."""
    ratio: float = 0.5
    count: int = 1
    kind: Literal["a", "b"] = "a"
    names: tuple[str, ...] = ()
    maybe: float | None = None
    flag: bool = False

    def __post_init__(self):
        if self.count < 0:
            raise ValueError("count must not be negative")

    def run(self, model, ctx):
        return 0

class NotAPass: pass
'''


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.py").write_text(FILE)
    return "./my.py:Mine"


def test_an_item_is_a_name_or_a_path_with_literal_options(file):
    one, two = parse(f'{file}(ratio=1, names=("x, y", "z)")), fuse')
    assert one.ratio == 1.0
    assert one.names == ("x, y", "z)")
    assert format_pass(two) == "fuse"


@pytest.mark.parametrize(
    "options",
    [
        "",
        "(ratio=0.25)",
        "(kind='b', names=('a', 'b'))",
        "(maybe=None)",
        "(maybe=2)",
        "(flag=True)",
    ],
)
def test_str_and_parse_are_inverses(file, options):
    passes = parse(file + options)
    assert parse(format_spec(passes)) == passes
    assert parse(str(passes[0])) == passes


@given(
    ratio=st.floats(allow_nan=False, allow_infinity=False),
    count=st.integers(0),
    names=st.lists(st.text(), max_size=3).map(tuple),
)
def test_every_option_value_survives_the_round_trip(tmp_path_factory, ratio, count, names):
    folder = tmp_path_factory.getbasetemp() / "spec"
    folder.mkdir(exist_ok=True)
    if not (folder / "my.py").exists():
        (folder / "my.py").write_text(FILE)
    cls = pass_class(f"{folder}/my.py:Mine")
    one = cls(ratio=ratio, count=count, names=names)
    assert parse(str(one)) == [one]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("(ratoi=1)", "no option 'ratoi' (did you mean 'ratio'?)"),
        ("(ratio='x')", "option 'ratio' takes number, not 'x'"),
        ("(count=1.5)", "option 'count' takes integer, not 1.5"),
        ("(count=True)", "option 'count' takes integer, not True"),
        ("(kind='bb')", "option 'kind' takes 'a' or 'b', not 'bb' (did you mean 'b'?)"),
        ("(names=(1,))", "option 'names' takes tuple of text"),
        ("(count=-1)", "count must not be negative"),
        ("(ratio=1, ratio=2)", "is given twice"),
        ("(0.5)", "options are written option=value"),
        ("(ratio=open('x'))", "must be a literal"),
        ("(ratio=", "unbalanced brackets"),
    ],
)
def test_a_wrong_option_is_named_with_what_it_takes(file, options, says):
    with pytest.raises(UsageError) as caught:
        parse(file + options)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("fues", "no pass is called 'fues' (did you mean 'fuse'?)"),
        ("", "the pipeline is empty"),
        ("fuse,,fuse", "an empty item"),
        ("./none.py:Mine", "no such file"),
        ("./my.py:Nine", "has no pass 'Nine' (did you mean 'Mine'?)"),
        ("./my.py:NotAPass", "is not a subclass of graphopt.Pass"),
    ],
)
def test_a_wrong_item_is_explained(file, spec, says):
    with pytest.raises(UsageError) as caught:
        parse(spec)
    assert says in str(caught.value)


def test_colons_and_brackets_in_text_and_folders_are_no_syntax(tmp_path, monkeypatch):
    odd = tmp_path / "a (b)"
    odd.mkdir()
    (odd / "my.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    (one,) = parse("./a (b)/my.py:Mine(names=('x:y(', '\\\\'))")
    assert one.names == ("x:y(", "\\")
    with pytest.raises(UsageError, match="takes: "):
        parse("fuse(names=('a:b',))")


def test_a_file_that_raises_is_a_users_mistake(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.py").write_text("1 / 0")
    with pytest.raises(UsageError, match="ZeroDivisionError"):
        parse("./bad.py:X")


def test_a_class_made_in_python_has_a_spec():
    @dataclasses.dataclass(frozen=True)
    class Local(Pass):
        kind: Literal["x"] = "x"

        def run(self, model, ctx):
            return 0

    assert str(Local()).endswith("Local")
    assert Local not in _FILES
