"""Reading a choice from an answer: letters, articles that look like letters, texts."""

import pytest

from stasc_ray.tasks.choices import choice_letter

CHOICES = ["bank", "library", "department store", "store", "New York"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(b)", "B"),
        ("B.", "B"),
        ("**B**", "B"),
        ("B) library", "B"),
        ("B. library", "B"),
        ("A bank", "A"),
        ("**B.** library", "B"),
        ("The answer is B", "B"),
        ("the answer is: (B).", "B"),
        ("The correct answer is **B**, I think.", "B"),
        ("Answer: B", "B"),
        ("**Answer:** B", "B"),
        ("The answer is option B because of it.", "B"),
        ("I choose option B here", "B"),
        ("So it must be B.", "B"),
        ("So it must be A.", "A"),
        ("The answer is A because banks are guarded.", "A"),
        ("\\boxed{\\text{B}}", "B"),
        # A statement counts more than a mention, and the last one counts.
        ("(A) no. (C) maybe. The answer is B. Not (D).", "B"),
        ("The answer is C. Wait, the answer is B.", "B"),
        ("A. bank\nB. library\nC. department store\n\nAnswer: B", "B"),
        ("First I thought (A), but (B) fits", "B"),
        # "A" and "I" before another word are words.
        ("The answer is A place with money", None),
        ("A revolving door is safe", None),
        ("I think so", None),
        ("The answer is I do not know", None),
        # Letters beyond the choices do not count.
        ("The answer is F", None),
        ("F", None),
        # Texts.
        ("library", "B"),
        ("The LIBRARY.", "B"),
        ("new york", "E"),
        ("It is not a bank, it is a library", "B"),
        ("a department store", "C"),
        ("a department store or rather any store", "D"),
        ("libraries", None),
        ("", None),
        ("I do not know", None),
    ],
)
def test_choice_letter(text, expected):
    assert choice_letter(text, CHOICES) == expected


def test_without_choices_any_letter_counts():
    assert choice_letter("The answer is K", ()) == "K"
    assert choice_letter("nothing", ()) is None


def test_a_choice_that_is_a_number_or_contains_another():
    assert choice_letter("4", ["3", "4", "14"]) == "B"
    assert choice_letter("it is 14", ["3", "4", "14"]) == "C"


def test_an_empty_choice_never_matches():
    assert choice_letter("anything at all", ["", "%"]) is None
