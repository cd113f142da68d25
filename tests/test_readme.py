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
