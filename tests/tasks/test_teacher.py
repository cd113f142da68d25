"""What a task says of its questions: the sandbox's worked solutions and its critic; functions by name."""

import pytest

from stasc_ray.tasks import sandbox, teacher

ROW = {"question": "What is 47 + 385 + 12?", "answers": ["444"]}
RIGHT = "7+5+2=14\n4+8+1+1=14\n3+1=4\n=444"


def test_the_sandbox_works_its_own_questions_out():
    assert sandbox.solution(ROW) == RIGHT
    for row in sandbox.questions("train", 50, seed=3):
        assert sandbox.solution(row).endswith(f"\n={row['answers'][0]}")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (RIGHT, ""),
        (f" {RIGHT}\n", ""),
        ("7+5+2=14\n4+8+1=13\n3+1=4\n=434", "4+8+1=13"),
        ("7+5+2=14\n4+8+1+1=14\n3+1=4\n=434", "=434"),
        ("7+5+2=14\n4+8+1+1=14", "3+1=4"),
        (f"{RIGHT}\n=444", "=444"),
        ("", "7+5+2=14"),
    ],
)
def test_the_first_wrong_column_is_named(answer: str, expected: str):
    assert sandbox.first_wrong_column(answer, ROW) == expected


def test_another_question_than_a_sum_is_refused():
    with pytest.raises(ValueError, match=r"expected a question such as 'What is 47.*found 'Which river\?'"):
        sandbox.first_wrong_column("=4", {"question": "Which river?", "answers": ["4"]})


def test_functions_are_named_as_rewards_are():
    assert teacher.load("algorithm.solution", "reference", teacher.SOLUTIONS)(ROW) == "444"
    path = f"{__name__}:praises"
    assert teacher.load("algorithm.critic", path, teacher.CRITICS) is praises
    for name, message in {
        "sandbx": r"algorithm\.critic: did you mean 'sandbox'",
        f"{__name__}:blames": r"algorithm\.critic: can't import .*blames",
        f"{__name__}:ROW": r"algorithm\.critic: .* is a dict, expected a function",
    }.items():
        with pytest.raises(ValueError, match=message):
            teacher.load("algorithm.critic", name, teacher.CRITICS)


def praises(answer: str, question_row: dict) -> str:
    return ""
