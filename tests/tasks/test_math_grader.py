"""The math reward: verdicts, hangs, crashes, threads, and no process left behind."""

import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from stasc_ray.config import Reward
from stasc_ray.tasks.math_grader import MathReward, decide_quickly
from stasc_ray.tasks.rewards import grader

HANGS = "the answer is $9^{9^{9^{9}}}$"  # SymPy tries to write it out
COMPUTED = ("so it is $2\\sqrt{3}$ meters", "\\sqrt{12}")
"""An answer that takes the child, and its reference."""


@pytest.fixture(scope="module")
def reward():
    reward = MathReward(timeout_s=30.0)
    yield reward
    reward.close()


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("444", "444", True),
        (" $444$. ", "444", True),
        ("\\$1,000", "1000", True),
        ("18.00", "18", True),
        ("-5", "5", False),
        ("17", "18", False),
        ("so \\boxed{3}, no, \\boxed{ \\dfrac{1}{2} }", "\\frac{1}{2}", True),
        ("\\boxed{\\left( 3, \\frac{\\pi}{2} \\right)}", "(3,\\frac{\\pi}{2})", True),
        ("\\boxed{\\text{Evelyn}}", "\\text{Evelyn}", True),
        ("0.5", "\\frac{1}{2}", True),
        ("so it is 18 dollars", "18", True),
        ("12,34", "1234", False),
        ("2\\sqrt{3}", "\\sqrt{12}", None),
        ("x^2", "x", None),
        ("\\frac{\\frac{", "18", False),
        ("5", "$ $", False),
    ],
)
def test_what_needs_no_sympy(answer, reference, expected):
    assert decide_quickly(answer, reference) is expected


def test_plain_answers_start_no_process():
    reward = MathReward(timeout_s=1.0)
    assert [reward("444", ["444"]), reward("434", ["444"]), reward("", ["x"])] == [1.0, 0.0, 0.0]
    assert reward._child is None


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("She makes 9 * 2 = 18 dollars.", "18", 1.0),
        ("She makes 9 * 2 = 19 dollars.", "18", 0.0),
        ("#### 1,000", "1000", 1.0),
        ("$\\frac12$", "0.5", 1.0),
        ("\\boxed{(3,\\pi/2)}", "\\left( 3, \\frac{\\pi}{2} \\right)", 1.0),
        ("The answer is $2x + x^2$.", "x(x+2)", 1.0),
        ("The answer is $2x + x^3$.", "x(x+2)", 0.0),
        ("no idea", "18", 0.0),
        ("\\frac{\\frac{\\\\}}{ } \\begin{", "18", 0.0),
        ("\x00\ud83d\n{}", "18", 0.0),
    ],
)
def test_verdicts_of_math_verify(reward, answer, reference, expected):
    assert reward(answer, ["no", reference]) == expected


@pytest.mark.slow
def test_a_hang_is_killed_its_error_kept_and_the_next_answer_graded():
    grade = grader(Reward(name="math", timeout_s=2.0), "")
    answer, row = COMPUTED[0], {"answers": [COMPUTED[1]]}
    assert grade(answer, row) == (1.0, None)
    assert isinstance(grade._function, MathReward)
    hung = grade._function._child
    start = time.monotonic()
    value, error = grade(HANGS, row)
    assert time.monotonic() - start < 10
    assert (value, error) == (
        0.0,
        "TimeoutError: math grader: took longer than 2 s to grade an answer; killed",
    )
    assert hung is not None
    assert hung.poll() is not None  # dead and reaped
    assert grade(answer, row) == (1.0, None)
    second = grade._function._child
    grade.close()
    grade.close()
    assert second is not None
    assert second.poll() is not None


@pytest.mark.slow
def test_a_dead_child_is_an_error_once(reward):
    answer, references = COMPUTED[0], [COMPUTED[1]]
    assert reward(answer, references) == 1.0
    reward._child.kill()
    with pytest.raises(RuntimeError, match="died with exit status -9"):
        reward(answer, references)
    assert reward(answer, references) == 1.0


def test_threads_other_than_the_main_one_share_a_child(reward):
    answers = [f"so it is {number}\\sqrt{{3}}" for number in range(40)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda answer: reward(answer, ["\\sqrt{147}"]), answers))
    assert found == [float(number == 7) for number in range(40)]


def test_a_copy_has_its_own_child(reward):
    assert reward(COMPUTED[0], [COMPUTED[1]]) == 1.0
    assert reward._child is not None
    copy = pickle.loads(pickle.dumps(reward))
    assert (copy.timeout_s, copy._child) == (reward.timeout_s, None)
