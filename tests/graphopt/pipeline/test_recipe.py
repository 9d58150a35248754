import dataclasses
import json

import pytest

from graphopt.errors import InputError
from graphopt.formats import save
from graphopt.graph import provenance
from graphopt.pipeline.recipe import Decision, Recipe, portable, read
from graphopt.testing import parse_model

RECIPE = Recipe(
    graphopt="0.1.0",
    target="cpu",
    seed=3,
    source="ab" * 32,
    samples=None,
    validated=False,
    versions={"onnx": "1.18"},
    steps=(
        Decision("fuse", True),
        Decision("int8", True, (("Int8", "conv 1"),), {"int8.float": ["fc"]}),
        Decision("svd(rank=4)", False),
    ),
)


def test_text_and_recipe_are_inverses():
    assert Recipe.from_text(RECIPE.to_text()) == RECIPE


def test_the_text_is_compact_and_sorted_and_leaves_defaults_out():
    text = RECIPE.to_text()
    data = json.loads(text)
    assert text == json.dumps(data, sort_keys=True, separators=(",", ":"))
    assert data["steps"][0] == {"spec": "fuse"}
    assert data["steps"][2] == {"spec": "svd(rank=4)", "kept": False}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"steps": 3}', '{"steps": [], "more": 1}'])
def test_anything_else_is_no_recipe(text):
    with pytest.raises(InputError, match="not a graphopt recipe"):
        Recipe.from_text(text)


def test_a_recipe_is_read_from_a_model_a_report_and_a_file_of_its_own(tmp_path):
    model = parse_model("y = Relu(x)")
    save(model, tmp_path / "without.onnx")
    model.metadata_props[provenance.RECIPE] = RECIPE.to_text()
    save(model, tmp_path / "with.onnx")
    (tmp_path / "recipe.json").write_text(RECIPE.to_text())
    (tmp_path / "report.json").write_text(json.dumps({"recipe": json.loads(RECIPE.to_text())}))
    for name in ("with.onnx", "recipe.json", "report.json"):
        assert read(tmp_path / name) == RECIPE
    with pytest.raises(InputError, match="holds no recipe"):
        read(tmp_path / "without.onnx")
    with pytest.raises(InputError, match="No such file"):
        read(tmp_path / "absent.json")


def test_equal_recipes_have_equal_text_whatever_order_their_facts_came_in():
    facts = {"b": 1, "a": 2}
    one = dataclasses.replace(RECIPE, steps=(Decision("fuse", True, (), facts),))
    other = dataclasses.replace(
        RECIPE, steps=(Decision("fuse", True, (), dict(sorted(facts.items()))),)
    )
    assert one.to_text() == other.to_text()


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("/home/me/my.py:MyPass(k=2)", "my.py:MyPass(k=2)"),
        ("./my.py:MyPass", "./my.py:MyPass"),
        ("fuse, /a/b/c.py:P", "fuse, c.py:P"),
        ('distill(data="/data/x.py:f")', 'distill(data="/data/x.py:f")'),
    ],
)
def test_a_recipe_names_no_folder(spec, expected):
    assert portable(spec) == expected
