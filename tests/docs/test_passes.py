"""docs/passes.md has a section for every pass, and tables of options in the passes' own words.

`python tests/docs/test_passes.py` writes the tables anew.
"""

import dataclasses
import re
import typing
from pathlib import Path

import pytest

from graphopt import plugins
from graphopt.spec import explanations, options, pass_class

PAGE = Path(__file__).parents[2] / "docs" / "passes.md"
PASSES = list(plugins.find(plugins.PASSES))


def table(name):
    cls = pass_class(name)
    explained = explanations(cls)
    rows = []
    for option, (_, default) in options(cls).items():
        shown = "" if default is dataclasses.MISSING else f"`{default!r}`"
        text = explained[option].replace("|", "\\|")
        rows.append(f"| `{option}` | {shown} | {text} |")
    return "\n".join(["| option | default | |", "|---|---|---|", *rows]) + "\n" if rows else ""


def renewed(page):
    """The page with the tables as they should be, each at the end of its section."""
    first, *sections = re.split(r"^## ", page, flags=re.MULTILINE)
    for section in sections:
        name = section.split("\n", 1)[0]
        text = re.sub(r"^\| option.*\Z", "", section, flags=re.MULTILINE | re.DOTALL).rstrip()
        first += f"## {text}\n\n{table(name)}\n".replace("\n\n\n", "\n\n")
    return first.rstrip() + "\n"


def test_the_page_has_every_pass_and_its_tables_are_current():
    page = PAGE.read_text()
    assert sorted(re.findall(r"^## (\w+)$", page, re.MULTILINE)) == PASSES
    assert renewed(page) == page, "run python tests/docs/test_passes.py"


@pytest.mark.parametrize("name", PASSES)
def test_every_option_is_explained_and_nothing_else(name):
    cls = pass_class(name)
    explained = explanations(cls)
    assert explained.keys() == options(cls).keys()
    for option, (hint, _) in options(cls).items():
        assert explained[option].endswith(".")
        if typing.get_origin(hint) is typing.Literal:
            missing = [a for a in typing.get_args(hint) if str(a) not in explained[option]]
            assert missing == [], f"{option} does not say what {missing} mean"


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text()))
