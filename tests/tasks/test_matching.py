"""Normalization and the word rewards: every trap of the published in-accuracy, closed."""

import pytest

from stasc_ray.tasks.matching import exact_match, f1, in_accuracy, normalize


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Eiffel Tower!", "eiffel tower"),
        ("Beyoncé", "beyonce"),
        ("Beyonce\u0301", "beyonce"),
        ("Møller, Łódź, Straße", "moller lodz strasse"),
        ("1,000,000 and 12,34", "1000000 and 12 34"),
        ("$1,000.50", "1000.50"),
        ("3.14", "3.14"),
        ("444.", "444"),
        ("x=-5, 4-3, 1990\u20131995, \u22127", "x -5 4 3 1990 1995 -7"),
        ("U.S. Ph.D. end.Paris No.5", "us phd end paris no 5"),
        ("Einstein's and Einstein\u2019s O'Brien", "einstein and einstein obrien"),
        ("Spider-Man", "spider man"),
        ("Vitamin A", "vitamin a"),
        ("a cat in the hat", "cat in hat"),
        ("**Paris**", "paris"),
        ("हिन्दी।", "हिन्दी"),
        ("snake_case", "snake case"),
        ("%", ""),
        ("", ""),
    ],
)
def test_normalize(text, expected):
    assert normalize(text) == expected


CONTAINED = [
    ("The capital is Paris, of course.", "Paris"),
    ("the capital is paris", "Paris"),
    ("It was sung by Beyonce.", "Beyoncé"),
    ("It was sung by BEYONCÉ!", "Beyonce"),
    ("There are 1000 of them", "1,000"),
    ("There are 1,000 of them", "1000"),
    ("Final Answer:Paris", "Paris"),
    ("a London-based firm", "London"),
    ("France's capital", "France"),
    ("on 14 December 1972, at night", "December 1972"),
    # References that are words of running text count when they are stated.
    ("no", "No"),
    ("No, because it is cold.", "no"),
    ("The answer is no.", "No"),
    ("So: **yes**", "yes"),
    ("The IT department", "IT"),
    ("The U.S. won", "US"),
    ("The US won", "U.S."),
    ("it", "IT"),
    ("I watched It.", "It"),
    ("a song by The Who, of 1969", "The Who"),
    ("rich in vitamin A and iron", "Vitamin A"),
    ("The answer is A.", "A"),
    ("A", "A"),
    ("50 %.", "%"),
    ("written in C++ and C#", "C++"),
    ("written in C and Rust", "C"),
    ("首都是东京。", "东京"),
]
NOT_CONTAINED = [
    ("the evidence", "no"),
    ("there is no evidence, so yes", "no"),
    ("it is c", "IT"),
    ("It is c", "It"),
    ("let us go", "US"),
    ("who did it", "The Who"),
    ("A dog and a cat", "A"),
    ("The dog", "The"),
    ("50% of them", "%"),
    ("take a vitamin a day", "Vitamin A"),
    ("hepatitis B", "Hepatitis A"),
    ("a C++ program", "C"),
    ("C is older", "C++"),
    ("it is c", "C"),
    ("3.14", "14"),
    ("3.5", "3"),
    ("4-3", "43"),
    ("21,000", "1000"),
    ("1912", "12"),
    ("cartoon", "art"),
    ("Paris Texas", "Paris France"),
    ("", "Paris"),
    ("   ", "%"),
    ("Paris", ""),
    ("", ""),
]


@pytest.mark.parametrize(("answer", "reference"), CONTAINED)
def test_in_accuracy_finds(answer, reference):
    assert in_accuracy(answer, [reference]) == 1.0


@pytest.mark.parametrize(("answer", "reference"), NOT_CONTAINED)
def test_in_accuracy_does_not_find(answer, reference):
    assert in_accuracy(answer, [reference]) == 0.0


ODD_REFERENCES = [
    "A",
    "The",
    "an",
    "%",
    "---",
    "...",
    ")",
    "C++",
    "IT",
    "no",
    "It",
    "水",
    "Who",
    "a the",
    "U.S.",
    "🙂",
    "½",
]
ORDINARY_TEXT = (
    "It is said that there was no evidence (10% at most), so the dog, who may do a lot, let us in: yes!"
)


@pytest.mark.parametrize("reference", ODD_REFERENCES)
@pytest.mark.parametrize("reward", [in_accuracy, exact_match, f1])
def test_odd_references_score_on_themselves_and_not_on_everything(reward, reference):
    assert reward(reference, [reference]) == 1.0
    assert reward(f" {reference}\n", [reference]) == 1.0
    for answer in ("", " ", ORDINARY_TEXT, "zebra"):
        assert reward(answer, [reference]) <= (0.2 if reward is f1 else 0.0), answer


def test_any_reference_is_enough_and_none_is_zero():
    assert in_accuracy("in Rome", ["Paris", "Rome"]) == 1.0
    for reward in (in_accuracy, exact_match, f1):
        assert reward("in Rome", []) == 0.0


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("444", "444", 1.0),
        ("444.", "444", 1.0),
        ("The Beatles", "beatles", 1.0),
        ("1,234", "1234", 1.0),
        ("in Paris", "Paris", 0.0),
        ("1.5", "15", 0.0),
        ("-5", "5", 0.0),
        ("Vitamin", "Vitamin A", 0.0),
        ("C", "C++", 0.0),
        ("(B)", "B", 1.0),
        ("4", "4", 1.0),
        ("", "", 0.0),
    ],
)
def test_exact_match(answer, reference, expected):
    assert exact_match(answer, [reference]) == expected


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("the cat sat", ["cat sat"], 1.0),
        ("cat", ["cat sat"], 2 / 3),
        ("cat cat", ["cat sat"], 0.5),
        ("dog", ["cat"], 0.0),
        ("dog", ["cat", "the dog"], 1.0),
    ],
)
def test_f1(answer, references, expected):
    assert f1(answer, references) == pytest.approx(expected)
