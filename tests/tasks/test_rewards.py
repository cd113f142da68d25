"""The Grader: scope, users' rewards, failing rewards; and what is refused at load time."""

import pickle
import re
import time

import numpy as np
import pytest

from stasc_ray.config import Reward
from stasc_ray.tasks.rewards import REWARDS, Grader, after_marker, gradable, grader


@pytest.mark.parametrize(
    ("text", "marker", "expected"),
    [
        ("47+385=432\n432+12=444", "=", "444"),
        ("Final Answer: Rome. No.\nFinal Answer: Paris", "Final Answer:", "Paris"),
        ("**Final answer**: **Paris**", "Final Answer:", "Paris"),
        ("**Final Answer:** Paris", "Final Answer:", "Paris"),
        ("Final Answer:", "Final Answer:", ""),
        ("Paris", "Final Answer:", ""),
        ("data: 5", "A:", ""),
        ("so A: 5", "A:", "5"),
        # the line, not the rest of the text
        ("Final Answer: 72\n\nI hope this helps! Ask 1 more.", "Final Answer:", "72"),
        ("Final Answer:\n72\nDone.", "Final Answer:", "72"),
        ("**Final Answer:**\n\n**72**\n\nDone.", "Final Answer:", "72"),
        ("Final Answer: The answer is:\n72", "Final Answer:", "72"),
        ("Final Answer: Paris. I hope this helps!", "Final Answer:", "Paris."),
        ("Final Answer: Paris\nExplanation: Rome is not.", "Final Answer:", "Paris"),
        ("Final Answer: J. K. Rowling", "Final Answer:", "J. K. Rowling"),
        # or the box on it, or all of a block that spans lines
        ("Final Answer: so it is $\\boxed{\\frac{1}{2}}$, as said", "Final Answer:", "\\frac{1}{2}"),
        ("Final Answer: \\boxed{\\text{Paris}}\nRome", "Final Answer:", "Paris"),
        ("Final Answer:\n\\[\n72\n\\]\nDone.", "Final Answer:", "\\[\n72\n\\]"),
        ("Final Answer:\n```\n72\n```\nDone.", "Final Answer:", "72"),
        ("Final Answer: <answer>72</answer>", "Final Answer:", "72"),
        ("Final Answer:\n- 3\n- 5\n\nDone.", "Final Answer:", "3; 5"),
        ("Final Answer: - 3", "Final Answer:", "- 3"),
        # a question that the text goes on to ask is not the one that was asked
        ("Final Answer: 72\n\nQuestion: Tom has 3?\nFinal Answer: 3", "Final Answer:", "72"),
        ("Question: 1 + 1?\nFinal Answer: 3\nFinal Answer: 2", "Final Answer:", "2"),
        ("Final Answer: __73__", "Final Answer:", "73"),
        ("Final Answer: snake__case__x", "Final Answer:", "snake__case__x"),
    ],
)
def test_after_marker(text, marker, expected):
    assert after_marker(text, marker) == expected


def test_the_scope_decides_what_is_graded():
    text = "Rome or Paris?\nFinal Answer: Paris"
    row = {"answers": ["Rome"]}
    assert grader(Reward(), "Final Answer:")(text, row) == (1.0, None)
    assert grader(Reward(scope="after_marker"), "Final Answer:")(text, row) == (0.0, None)


def test_sandbox_setting_and_its_speed():
    grade = grader(Reward(name="exact_match", scope="after_marker"), "=")
    row = {"answers": ["444"]}
    assert grade("47+385=432\n432+12=444", row) == (1.0, None)
    assert grade("47+385=432\n432+12=434", row) == (0.0, None)
    assert grade("444", row) == (0.0, None)  # the marker is part of the task
    assert grade("47+385=", row) == (0.0, None)
    start = time.perf_counter()
    for _ in range(2000):
        grade("47+385=432\n432+12=444", row)
    assert time.perf_counter() - start < 2.0  # 0.06 s on an idle core


def test_rows_as_arrow_and_numpy_give_them():
    row = {"answers": np.array(["B"], dtype=object), "choices": np.array(["bank", "mall"], dtype=object)}
    assert grader(Reward(name="choice"), "")("the answer is B", row) == (1.0, None)
    assert grader(Reward(name="choice"), "")("a mall", row) == (1.0, None)
    assert grader(Reward(), "")("B", {"answers": ["B"], "choices": None}) == (1.0, None)


def test_too_many_words_are_worth_nothing():
    row = {"answers": ["Paris"]}
    grade = grader(Reward(max_answer_words=5), "")
    assert grade("It is Paris, in France", row) == (1.0, None)
    assert grade("It is Paris, not Rome or Berlin", row) == (0.0, None)
    after = grader(Reward(max_answer_words=2, scope="after_marker"), "Answer:")
    assert after("A long text of many words that leads to it.\nAnswer: Paris", row) == (1.0, None)
    assert grader(Reward(max_answer_words=3), "")("首都是东京", {"answers": ["东京"]}) == (0.0, None)


def test_guesses_after_the_marker_are_not_paid():
    row = {"answers": ["Berlin"]}
    text = "Final Answer: Paris, London, Rome or Berlin"
    assert grader(Reward(scope="after_marker"), "Final Answer:")(text, row) == (0.0, None)
    assert grader(Reward(), "Final Answer:")(text, row) == (1.0, None), (
        "on the whole text: the paper's reward"
    )


def test_squads_rewards_know_questions_without_an_answer():
    grade = grader(Reward(name="squad_em", scope="after_marker"), "Answer:")
    for references in ([], [""]):
        row = {"id": "q", "answers": references}
        assert grade("Answer:", row) == (1.0, None)
        assert grade("Answer: Paris", row) == (0.0, None)
        assert grade("no marker", row) == (0.0, None)
        assert gradable([row], Reward(name="squad_em"), "", skip=False) == [row]


USER_REWARD = """
import numpy as np
def good(answer, references): return np.float32(0.25)
def boolean(answer, references): return answer in references
def raises(answer, references): raise KeyError("no such thing")
def too_big(answer, references): return 1.5
def not_a_number(answer, references): return float("nan")
def text(answer, references): return "high"
def nothing(answer, references): return None
constant = 3
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    (tmp_path / "own_rewards_of_a_test.py").write_text(USER_REWARD)
    (tmp_path / "broken_rewards_of_a_test.py").write_text("def f(:")
    monkeypatch.syspath_prepend(tmp_path)
    return "own_rewards_of_a_test"


def test_a_users_reward(user_module):
    row = {"answers": ["yes"]}
    assert grader(Reward(name=f"{user_module}:good"), "")("yes", row) == (0.25, None)
    assert grader(Reward(name=f"{user_module}:boolean"), "")("yes", row) == (1.0, None)
    assert grader(Reward(name=f"{user_module}:raises"), "")("", row) == (0.0, None)  # empty is graded here


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("raises", "KeyError: 'no such thing'"),
        ("too_big", r"expected a number in \[0, 1\], found 1.5"),
        ("not_a_number", r"expected a number in \[0, 1\], found nan"),
        ("text", "ValueError"),
        ("nothing", "TypeError"),
    ],
)
def test_a_failing_reward_is_zero_with_its_error(user_module, function, message):
    value, error = grader(Reward(name=f"{user_module}:{function}"), "")("yes", {"answers": ["yes"]})
    assert value == 0.0
    assert error is not None
    assert re.search(message, error)


def test_a_malformed_row_is_an_error_of_that_row():
    value, error = grader(Reward(), "")("yes", {})
    assert (value, error) == (0.0, "KeyError: 'answers'")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("in_acuracy", "did you mean 'in_accuracy'"),
        ("zzz", "expected one of in_accuracy, exact_match, f1, math, choice"),
        ("no_such_module_xyz:f", "No module named"),
        ("own_rewards_of_a_test:absent", "no attribute 'absent'"),
        ("own_rewards_of_a_test:constant", "is a int, expected a function"),
        ("broken_rewards_of_a_test:f", "invalid syntax"),
        (":f", "can't import"),
        ("own_rewards_of_a_test:", "can't import"),
    ],
)
def test_a_wrong_reward_name_is_refused_at_load_time(user_module, name, message):
    with pytest.raises(ValueError, match=message):
        grader(Reward(name=name), "")


def test_after_marker_needs_a_marker():
    with pytest.raises(ValueError, match="answer_marker"):
        grader(Reward(scope="after_marker"), " ")


@pytest.mark.parametrize("name", [*REWARDS, "own_rewards_of_a_test:good"])
def test_graders_pickle_before_and_after_use(user_module, name):
    grade = grader(Reward(name=name), "=")
    row = {"answers": ["7"], "choices": []}
    first = grade("7", row)
    copy = pickle.loads(pickle.dumps(grade))
    assert isinstance(copy, Grader)
    assert copy("7", row) == first
    grade.close()
    copy.close()


@pytest.mark.parametrize(
    ("reward", "row", "message"),
    [
        (Reward(), {"answers": []}, "no reference that is not empty"),
        (Reward(), {"answers": ["", " "]}, "no reference that is not empty"),
        (Reward(name="math"), {"answers": ["$ $"]}, "no mathematical reference"),
        (Reward(name="choice"), {"answers": ["A"], "choices": []}, "has no choices"),
        (Reward(name="choice"), {"answers": ["A"]}, "has no choices"),
        (Reward(name="choice"), {"answers": ["D"], "choices": ["x", "y"]}, "its choices are A to B"),
        (
            Reward(name="exact_match", scope="after_marker"),
            {"answers": ["x=5"]},
            "contains the answer marker '='",
        ),
    ],
)
def test_references_that_never_match_are_refused_with_the_id(reward, row, message):
    rows = [{"id": "fine", "answers": ["A"], "choices": ["x"]}, {"id": "bad-7", **row}]
    with pytest.raises(ValueError, match=message) as caught:
        gradable(rows, reward, "=", skip=False)
    assert "'bad-7'" in str(caught.value)
    assert "'fine'" not in str(caught.value)
    assert gradable(rows, reward, "=", skip=True) == rows[:1], "or it is left out"


@pytest.mark.parametrize("reference", ["A", "The", "%", "---", "C++", "no"])
def test_odd_references_that_can_match_are_accepted(reference):
    rows = [{"id": "q", "answers": ["", reference]}]
    assert gradable(rows, Reward(), "=", skip=False) == rows
