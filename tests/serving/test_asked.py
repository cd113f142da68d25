"""How many tokens a request may write: what a key's limit holds while it runs."""

import pytest

from stasc_ray import config
from stasc_ray.recipes import recipe_of, section_of
from stasc_ray.serving.asked import checked
from stasc_ray.serving.schemas import CorrectRequest

SIZES = ["sampling.initial.max_tokens=10", "sampling.correction.max_tokens=100"]


@pytest.mark.parametrize(
    ("recipe", "asked", "expected"),
    [
        ("stasc", {"rounds": 1}, 110),
        ("stasc", {"rounds": 0}, 10),
        ("stasc", {"rounds": 3}, 310),
        ("stasc", {"rounds": 3, "samples": 4}, 4 * 310),
        ("stasc", {"rounds": 2, "initial_answer": "5"}, 200),
        ("stasc", {"rounds": 2, "max_tokens": 50}, 150),
        ("stasc", {"rounds": 1, "max_answer_tokens": 1000}, 1010),  # of the last turn alone
        ("stasc", {"rounds": 2, "max_answer_tokens": 1000}, 1110),
        ("stasc", {"rounds": 2, "max_answer_tokens": 1000, "policy": "until_unchanged"}, 2010),
        ("stasc", {"rounds": 1, "max_answer_tokens": 5}, 15),
        ("stasc", {"rounds": 0, "max_answer_tokens": 1000}, 1000),
        ("verdict", {"rounds": 2}, 10 + 2 * 200),  # a verdict before each correction
        ("verdict", {"rounds": 2, "max_answer_tokens": 1000}, 3 * 1000 + 200),
        ("rft", {}, 10),
    ],
)
def test_a_request_holds_what_all_its_turns_may_write(recipe, asked, expected) -> None:
    settings = config.load_config(None, [f"algorithm.recipe={recipe}", *SIZES], section_of)
    request = CorrectRequest(question="Why?", **asked)
    assert checked(request, settings, recipe_of(recipe)).most_tokens == expected
