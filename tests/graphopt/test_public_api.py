"""The public API is what public_api.txt lists: a change of it is made there too, on purpose.

`python tests/graphopt/test_public_api.py` writes the list anew; the diff is the change.
"""

import dataclasses
import inspect
import re
from importlib import import_module
from pathlib import Path

import graphopt.passes
import pytest

import graphopt
from graphopt import plugins
from graphopt.spec import options, pass_class, type_name

ROOT = Path(__file__).parents[2]
LIST = Path(__file__).parent / "public_api.txt"
#: What extending graphopt takes, beside the names at the top. The docs import from these alone.
MODULES = (
    "graphopt.analyses.cost",
    "graphopt.analyses.dims",
    "graphopt.backend",
    "graphopt.conformance",
    "graphopt.errors",
    "graphopt.execution.runtime",
    "graphopt.formats",
    "graphopt.graph.constants",
    "graphopt.measuring.statistics",
    "graphopt.target",
    "graphopt.testing",
)
IMPORTED = re.compile(r"^\s*from (graphopt[\w.]*) import ([\w, ]+)$", re.MULTILINE)


def public():
    """One line a name: of the packages, of the modules, each pass's options with their defaults."""
    lines = [f"graphopt.{name}" for name in sorted(graphopt.__all__)]
    lines += [f"graphopt.passes.{name}" for name in sorted(graphopt.passes.__all__)]
    for name in MODULES:
        lines += [f"{name}.{attribute}" for attribute in sorted(import_module(name).__all__)]
    for name in plugins.find(plugins.PASSES):
        for option, (hint, default) in options(pass_class(name)).items():
            given = "" if default is dataclasses.MISSING else f" = {default!r}"
            lines.append(f"{name}({option}: {type_name(hint)}{given})")
    for field in dataclasses.fields(graphopt.Target):
        lines.append(f"Target({field.name}: {field.type})")
    for group in (plugins.BACKENDS, plugins.FORMATS, plugins.PASSES):
        lines += [f"{group}: {name}" for name in plugins.find(group)]
    return lines


def test_the_public_api_is_the_list():
    assert public() == LIST.read_text().splitlines(), (
        "run python tests/graphopt/test_public_api.py and read the diff"
    )


@pytest.mark.parametrize("name", ["graphopt", "graphopt.passes", *MODULES])
def test_every_public_name_exists_and_says_what_it_is(name):
    module = import_module(name)
    for attribute in module.__all__:
        found = getattr(module, attribute)
        if inspect.isroutine(found) or inspect.isclass(found):
            assert inspect.getdoc(found), f"{name}.{attribute} has no docstring"


def test_a_name_that_is_not_there_is_told():
    with pytest.raises(AttributeError, match="module 'graphopt' has no attribute 'optimise'"):
        _ = graphopt.optimise
    assert set(graphopt.__all__) <= set(dir(graphopt))


@pytest.mark.parametrize(
    "page", ["README.md", *(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md"))]
)
def test_the_docs_import_public_names_alone(page):
    for module, names in IMPORTED.findall((ROOT / page).read_text()):
        if module.startswith("graphopt.backends."):
            continue
        assert module in ("graphopt", "graphopt.passes", *MODULES), f"{module} in {page}"
        public = import_module(module).__all__
        assert [n for n in re.split(r",\s*", names) if n not in public] == []


if __name__ == "__main__":
    LIST.write_text("\n".join(public()) + "\n")
