"""The slow tests here start a whole endpoint: they have a marker of their own, `served`, and `make test-serving` runs them."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "serving" in item.path.parts and item.get_closest_marker("slow"):
            item.add_marker("served")
