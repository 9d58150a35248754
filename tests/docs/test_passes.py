"""docs/passes has a page for every pass, which ends with its options in the pass's own words.

`python tests/docs/test_passes.py` writes the tables anew.
"""

import dataclasses
import re
import typing
from pathlib import Path

import pytest

from graphopt import plugins
from graphopt.spec import explanations, options, pass_class

PAGES = Path(__file__).parents[2] / "docs" / "passes"
PASSES = list(plugins.find(plugins.PASSES))


def table(name):
    cls = pass_class(name)
    explained = explanations(cls)
    rows = []
    for option, (_, default) in options(cls).items():
        shown = "" if default is dataclasses.MISSING else f"`{default!r}`"
        text = explained[option].replace("|", "\\|")
        rows.append(f"| `{option}` | {shown} | {text} |")
    head = ["## Options", "", "| option | default | meaning |", "|---|---|---|"]
    return "\n".join(["", *head, *rows]) + "\n" if rows else ""


def renewed(name, page):
    """The page with the table as it should be, at its end."""
    return re.sub(r"\n## Options\n.*\Z", "", page, flags=re.DOTALL) + table(name)


def test_every_pass_has_a_page():
    pages = {p.stem for p in PAGES.glob("*.md")} - {"index"}
    assert pages == set(PASSES)
    index = (PAGES / "index.md").read_text()
    assert sorted(re.findall(r"^\| \[`(\w+)`\]\(\1\.md\)", index, re.MULTILINE)) == PASSES


@pytest.mark.parametrize("name", PASSES)
def test_a_page_says_when_not_to_use_it_and_has_the_current_options(name):
    page = (PAGES / f"{name}.md").read_text()
    assert page.startswith(f"# {name}\n")
    assert "\n## When not to use it\n" in page
    assert renewed(name, page) == page, "run python tests/docs/test_passes.py"


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
    for name in PASSES:
        path = PAGES / f"{name}.md"
        path.write_text(renewed(name, path.read_text()))
