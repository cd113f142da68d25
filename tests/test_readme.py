"""The README says what the code says."""

import re
from pathlib import Path

from stasc_ray import config
from stasc_ray.recipes import RECIPES

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_the_table_of_fields_is_the_configs() -> None:
    table = config.fields_table({name: recipe.section for name, recipe in RECIPES.items()})
    page = (REPOSITORY / "docs/config.md").read_text(encoding="utf-8")
    assert page.endswith(table + "\n"), "put the output of `stasc config --fields` into docs/config.md"


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 220


def test_every_path_in_the_readme_exists() -> None:
    paths = set(re.findall(r"(?:jobs|docs|requirements|cluster|benchmarks)/[\w./-]+\w", README))
    assert paths
    assert [path for path in sorted(paths) if not (REPOSITORY / path).exists()] == []


def test_the_learning_table_is_the_results_pages() -> None:
    page = (REPOSITORY / "docs/results.md").read_text(encoding="utf-8").splitlines()
    start = page.index("| reward on test | first answer | corrected answer | vote of three |")
    table = "\n".join(page[start : page.index("", start)])
    assert table in README, "put the table `In short` of docs/results.md into the README"
