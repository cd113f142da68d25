import pytest
from harness.served import serving


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """One endpoint for a module's tests."""
    with serving(tmp_path_factory.mktemp("served")) as found:
        yield found
