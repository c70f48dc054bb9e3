"""The page of LLM-MQ: what it offers, and the paper's own setting."""

import pytest

from bitbudget.errors import InputError
from bitbudget.methods import METHODS, LlmMq
from bitbudget.methods.recipe import Recipe
from bitbudget.storage import Choice


def test_the_papers_setting() -> None:
    recipe = METHODS["llm-mq-paper"].recipe()
    assert recipe.choices == tuple(f"int{bits}:g128+outliers:0.5%" for bits in (2, 3, 4))
    assert (recipe.tables, recipe.estimator, recipe.labels, recipe.scaling) == ((), "first", "text", True)
    assert recipe.order == "raise" and METHODS["llm-mq"].recipe().order == "keep"


def test_every_choice_is_canonical_and_occurs_once() -> None:
    recipe = LlmMq().recipe()
    choices = [text for text in recipe.choices if text != "16bit"]
    assert "16bit" in recipe.choices
    assert [str(Choice.parse(text)) for text in choices] == choices
    assert len(set(choices)) == len(choices)
    assert {Choice.parse(text).dense[0].grid.bits for text in choices} == {2, 3, 4, 5, 6, 8}


def test_choices_that_a_user_names() -> None:
    named = METHODS["llm-mq"].offering("2,16", "128", "auto", "minmax").recipe()
    shares = ("", *(f"+outliers:{share}" for share in ("0.1%", "0.25%", "0.5%", "1%", "2%")))
    assert named.choices == ("16bit", *(f"int2:g128{share}" for share in shares))
    assert METHODS["llm-mq"].offering(None, None, None, None) == METHODS["llm-mq"]


@pytest.mark.parametrize(("bits", "groups", "outliers"), [("7", "", ""), ("x", "", ""), ("", "0", ""), ("", "", "200%")])
def test_words_that_name_no_choice(bits: str, groups: str, outliers: str) -> None:
    with pytest.raises(InputError):
        METHODS["llm-mq"].offering(bits, groups, outliers, None)


def test_a_recipe_survives_a_plan_file() -> None:
    from dataclasses import asdict

    recipe = LlmMq().recipe()
    assert Recipe.from_dict(asdict(recipe)) == recipe
