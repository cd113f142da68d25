"""Canonical rows: column mapping, answers inside a rationale, choices in every form a source may have."""

from typing import Any

import pytest

from stasc_ray.config import Questions
from stasc_ray.tasks.canonical import canonical_row
from stasc_ray.tasks.values import normalize


def canonical(values: dict[str, Any], preset: str = "canonical", **columns: str | None) -> dict[str, Any]:
    questions = Questions.model_validate({"preset": preset, "columns": columns})
    return canonical_row(values, questions.columns)


def test_equal_questions_normalize_to_the_same_text() -> None:
    assert normalize("  Caf\u00e9 \n MENU?") == normalize("cafe\u0301 menu?") != normalize("cafe menu?")


def test_canonical_row() -> None:
    given = {
        "id": 7,
        "question": " Who? ",
        "answers": ["a", "", "a", 3.0, 2.5, None],
        "documents": ["d"],
        "note": 1,
    }
    assert canonical(given) == {
        "id": "7",
        "question": "Who?",
        "answers": ["a", "3", "2.5"],
        "documents": ["d"],
        "choices": [],
    }


def test_gsm8k_answer_is_behind_the_marks() -> None:
    row = {"question": "q", "answer": "It is #### not this\n4 + 3 = <<4+3=7>>7\n#### 1,007 "}
    assert canonical(row, "gsm8k")["answers"] == ["1,007"]
    with pytest.raises(ValueError, match="no answer: expected a match of answer_pattern"):
        canonical({"question": "q", "answer": "seven"}, "gsm8k")


def test_column_mapping_overrides_preset() -> None:
    row = {"Frage": "q", "answer": 5, "Texte": ["one", " ", "two"]}
    found = canonical(row, "gsm8k", question="Frage", documents="Texte", answer_pattern=None)
    assert (found["question"], found["answers"], found["documents"]) == ("q", ["5"], ["one", "two"])


HUB_CHOICES = {"label": ["1", "2", "3"], "text": ["bank", "mall", "Big Shop"]}


@pytest.mark.parametrize(
    ("choices", "answer", "letter"),
    [
        (["bank", "mall"], 1, "B"),
        (["bank", "mall"], 0, "A"),
        (["bank", "mall"], "b", "B"),
        (["bank", "mall"], ["A"], "A"),
        (["bank", "mall"], "Mall", "B"),
        (["10", "20"], "20", "B"),
        (HUB_CHOICES, "3", "C"),
        (HUB_CHOICES, 1, "A"),  # a label before an index
        (HUB_CHOICES, "big  shop", "C"),
        ({"label": ["A", "B"], "text": ["x", "y"]}, "B", "B"),
    ],
)
def test_choice_answers_become_letters(choices: Any, answer: Any, letter: str) -> None:
    row = canonical({"id": 1, "question": "q", "choices": choices, "answer": answer}, "commonsense_qa")
    assert row["answers"] == [letter]
    assert row["choices"] == (choices["text"] if isinstance(choices, dict) else choices)


@pytest.mark.parametrize(
    ("choices", "answer", "message"),
    [
        (["bank", "mall"], 2, "expected an index from 0 to 1, found 2"),
        (["bank", "mall"], -1, "expected an index"),
        (["bank", "mall"], True, "expected an index"),
        (["bank", "mall"], "C", "fits none"),
        (["B", "A"], "A", "fits A and B"),
        (["bank", "bank"], "bank", "fits A and B"),
        (["bank"], 0, "expected 2 to 26 texts"),
        (["bank", ""], 0, "expected 2 to 26 texts"),
        (["x"] * 27, 0, "expected 2 to 26 texts"),
        ({"label": ["A"], "text": ["bank", "mall"]}, "A", "one label per text"),
        (["bank", "mall"], "", "no answer"),
        ({"label": [], "text": []}, "A", "expected 2 to 26 texts"),
    ],
)
def test_bad_choices(choices: Any, answer: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        canonical({"id": 1, "question": "q", "choices": choices, "answer": answer}, "commonsense_qa")
