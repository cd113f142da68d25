"""The README says what the code says."""

import re
from pathlib import Path

from stasc_ray import config

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_the_table_of_fields_is_the_configs() -> None:
    assert config.fields_table() in README, "put the output of `stasc config --fields` into the README"


def test_every_path_in_the_readme_exists() -> None:
    paths = set(re.findall(r"(?:jobs|docs|requirements|cluster|benchmarks)/[\w./-]+\w", README))
    assert paths
    assert [path for path in sorted(paths) if not (REPOSITORY / path).exists()] == []


def test_the_learning_table_is_the_results_pages() -> None:
    page = (REPOSITORY / "docs/results.md").read_text(encoding="utf-8").splitlines()
    start = page.index("| reward on test | first answer | corrected answer | vote of three |")
    table = "\n".join(page[start : page.index("", start)])
    assert table in README, "put the table `In short` of docs/results.md into the README"
