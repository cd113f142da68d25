"""docs/methods.md: what its table of the field names exists, and a config that a row names does what the row says."""

import re
from pathlib import Path

import pytest

from stasc_ray import config
from stasc_ray.recipes import RECIPES, section_of
from stasc_ray.recipes.policies import POLICIES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
TABLE = PAGE.partition("## The field")[2].partition("\n## ")[0]
ROWS = re.findall(r"^\| (?!system)([^|-][^|]*) \| (.*) \|$", TABLE, re.MULTILINE)
OTHERS = {"critic", "solution", "stasc compare"}
"""Words of rows that are a field alone, or a command."""


def test_the_table_has_rows() -> None:
    assert len(ROWS) > 35


@pytest.mark.parametrize(("system", "here"), ROWS, ids=[name for name, _ in ROWS])
def test_a_row_names_what_exists(system: str, here: str) -> None:
    recipes: list[str] = []
    given: dict[str, str] = {}
    for words in re.findall("`([^`]+)`", here):
        field, is_value, value = words.partition(" = ")
        if words in RECIPES:
            recipes.append(words)
        elif is_value:
            fields = {name for recipe in recipes for name in RECIPES[recipe].section.model_fields}
            assert field in fields, f"{field} is no field of {', '.join(recipes)}"
            given[field] = value.strip('"')
        elif words.endswith(".toml"):
            section = config.load_config(ROOT / "jobs/configs" / Path(words).name, [], section_of).algorithm
            assert section.recipe == recipes[-1]
            assert {name: str(getattr(section, name)) for name in given} == given, words
        else:
            assert words in POLICIES or words in OTHERS, words
