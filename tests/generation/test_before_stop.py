"""How much of a growing text can be shown if it may have to end before a stop string."""

import pytest

from stasc_ray.generation.engines import before_stop


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("The end", (), "The end"),
        ("The e", ("end",), "The"),  # ` e` may become ` end`: two characters are held back
        ("The end is", ("end",), "The "),
        ("The END, end", ("end", "END"), "The "),
        ("a", ("long stop string",), ""),
    ],
)
def test_what_may_become_a_stop_string_is_held_back(text, stop, shown) -> None:
    assert text[: before_stop(text, stop)] == shown
