"""Which words of two answers are marked as changed."""

import pytest

from stasc_ray.report.transcripts import word_diff


@pytest.mark.parametrize(
    ("left", "right", "gone", "new"),
    [
        ("47+385=432", "47+385=422", ["432"], ["422"]),
        ("the answer is Paris.", "the answer is New York.", ["Paris"], ["New York"]),
        ("same", "same", [], []),
        ("", "something", [], ["something"]),
        ("a b c", "a c", ["b"], []),
    ],
)
def test_word_diff_marks_the_changed_words(left: str, right: str, gone: list[str], new: list[str]) -> None:
    first, second = word_diff(left, right)
    assert [piece.text.strip() for piece in first if piece.changed] == gone
    assert [piece.text.strip() for piece in second if piece.changed] == new
    assert "".join(piece.text for piece in first) == left and "".join(piece.text for piece in second) == right
