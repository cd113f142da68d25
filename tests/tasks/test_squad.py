"""squad_em and squad_f1 against vectors worked out by hand from the official script's rules."""

import pytest

from stasc_ray.tasks.squad import squad_em, squad_f1


@pytest.mark.parametrize(
    ("answer", "references", "exact", "overlap"),
    [
        ("The Eiffel Tower!", ["eiffel tower"], 1, 1.0),  # case, article, punctuation
        ("a cat in the hat", ["cat in hat"], 1, 1.0),
        ("Denver Broncos won", ["Denver Broncos"], 0, 0.8),  # P 2/3, R 1
        ("Broncos", ["Denver Broncos", "The Broncos"], 1, 1.0),  # the best reference
        ("cat cat", ["cat sat"], 0, 0.5),  # words are counted
        ("Spider-Man", ["Spiderman"], 1, 1.0),  # punctuation is dropped, not parted
        ("Spider Man", ["Spider-Man"], 0, 0.0),
        ("3.14", ["314"], 1, 1.0),  # the script's own accident
        ("1,000", ["1000"], 1, 1.0),
        ("-5", ["5"], 1, 1.0),
        ("Beyonce", ["Beyonc\u00e9"], 0, 0.0),  # accents stay
        ("end\u2013start", ["endstart"], 0, 0.0),  # only ASCII punctuation is dropped
        ("Vitamin A", ["Vitamin"], 1, 1.0),  # an article, wherever it stands
        ("U.S.", ["US"], 1, 1.0),
        ("\u4e1c\u4eac\u90fd", ["\u4e1c\u4eac"], 0, 0.0),  # words are parted by spaces alone
        ("True", ["yes"], 0, 0.0),
        ("", ["Paris"], 0, 0.0),
        ("", [""], 1, 1.0),  # no answer is right where there is none
        ("", [], 1, 1.0),
        ("Paris", [""], 0, 0.0),
        ("the", [""], 1, 1.0),  # empty in the normal form
        ("Paris", ["", "Paris"], 1, 1.0),  # empty references are left out
        ("", ["", "Paris"], 0, 0.0),
        ("the", ["Paris"], 0, 0.0),
    ],
)
def test_the_official_rules(answer, references, exact, overlap):
    assert squad_em(answer, references) == exact
    assert squad_f1(answer, references) == pytest.approx(overlap)
