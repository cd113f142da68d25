"""The slow tests here start a whole endpoint: they have a marker of their own, `served`, and `make test-serving` runs them."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name in ("test_served.py", "test_page.py"):
            item.add_marker("served")
