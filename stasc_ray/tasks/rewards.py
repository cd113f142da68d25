"""How an answer is graded: in_accuracy, exact_match, f1, math, choice, or a function of the user's.

A reward is a function (answer, references) -> float in [0, 1]. `grader` turns the config's reward into a
Grader. It cuts out the graded part of the text and turns a failing reward into (0.0, "what went wrong"). The
comparing itself is in matching.py (words), choices.py (letters) and math_grader.py (a child process that runs
SymPy).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

from stasc_ray.config import Reward, named
from stasc_ray.tasks.choices import choice_letter
from stasc_ray.tasks.matching import exact_match, f1, in_accuracy
from stasc_ray.tasks.math_grader import MathReward, can_match

RewardFunction = Callable[[str, Sequence[str]], float]


def choice(answer: str, references: Sequence[str]) -> float:
    """1.0 if the letter that the answer states last is a reference, else 0.0. A Grader reads the choices'
    texts too.
    """
    return float(choice_letter(answer, ()) in {reference.strip().upper() for reference in references})


def math(answer: str, references: Sequence[str]) -> float:
    """1.0 if the answer equals a reference mathematically (math-verify), else 0.0; in a child process of its
    own.

    A Grader keeps its child, which is much faster.

    Raises:
        TimeoutError: after 5 s. RuntimeError: math-verify failed.
    """
    reward = MathReward(timeout_s=5.0)
    try:
        return reward(answer, references)
    finally:
        reward.close()


REWARDS: dict[str, RewardFunction] = {
    "in_accuracy": in_accuracy,
    "exact_match": exact_match,
    "f1": f1,
    "math": math,
    "choice": choice,
}


class Grader:
    """Grades answers by one reward. Picklable; a copy loads the user's function, or starts its child, at
    first use.
    """

    def __init__(self, reward: Reward, answer_marker: str):
        """Keep the settings; load nothing yet. `grader` also checks them."""
        self.reward = reward
        self.answer_marker = answer_marker
        self._function: RewardFunction | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the loaded function behind: it may hold a process, or not be importable under pickle's
        rules.
        """
        return {**self.__dict__, "_function": None}

    def __call__(self, answer: str, question_row: Mapping[str, Any]) -> tuple[float, str | None]:
        """Grade one answer to one question.

        Args:
            answer: the text as generated.
            question_row: a Question row; `answers` and, for `choice`, `choices` are read.

        Returns:
            (reward in [0, 1], None), or (0.0, what failed). An empty answer has reward 0, and so has, with
            scope
            `after_marker`, an answer without the marker: the format is part of the task.
        """
        # The one broad `except` here: a reward is arbitrary code of the user's (or SymPy's) on arbitrary text
        # of a model's, and one bad answer among a million must not end the run. It is kept, counted and
        # reported.
        try:
            return self._grade(answer, question_row), None
        except Exception as error:
            return 0.0, f"{type(error).__name__}: {error}"[:300]

    def close(self) -> None:
        """End the child process of `math`; the next call would start another."""
        if isinstance(self._function, MathReward):
            self._function.close()

    def _grade(self, answer: str, question_row: Mapping[str, Any]) -> float:
        if self.reward.scope == "after_marker":
            answer = after_marker(answer, self.answer_marker)
        if not answer.strip():
            return 0.0
        references = [str(reference) for reference in question_row["answers"]]
        if self.reward.name == "choice":
            answer = choice_letter(answer, _choices(question_row)) or ""
        if self._function is None:
            self._function = load_reward(self.reward)
        value = float(self._function(answer, references))
        if not 0.0 <= value <= 1.0:  # NaN fails both comparisons
            raise ValueError(f"reward {self.reward.name}: expected a number in [0, 1], found {value}")
        return value


def grader(reward: Reward, answer_marker: str) -> Grader:
    """Make the Grader of a run, and load its reward once so that a wrong name is known now.

    Raises:
        ValueError: no such reward, a user function that cannot be imported or called, `after_marker` without
            a marker.
    """
    if reward.scope == "after_marker" and not answer_marker.strip():
        raise ValueError("reward.scope = 'after_marker' needs prompts.answer_marker, which is empty")
    load_reward(reward)
    return Grader(reward, answer_marker)


def load_reward(reward: Reward) -> RewardFunction:
    """Look up a shipped reward, or import a user's `package.module:function`.

    Raises:
        ValueError: no such reward; the module or the function does not exist, or it is not callable.
    """
    name = reward.name
    if name == "math":
        return MathReward(reward.timeout_s)
    function = named("reward.name", name, REWARDS, "function")
    if not callable(function):
        raise ValueError(f"reward.name: {name!r} is a {type(function).__name__}, expected a function")
    return cast(RewardFunction, function)


def after_marker(text: str, marker: str) -> str:
    """What follows the last `marker`, without Markdown emphasis around it; "" if there is no marker.

    Case and emphasis inside the marker do not matter: `**Final answer**:` is `Final Answer:`.
    """
    end = None
    for match in _marker_pattern(marker).finditer(text):
        end = match.end()
    return "" if end is None else text[end:].strip().strip("*`").strip()


def unmatchable(row: Mapping[str, Any], reward: Reward, answer_marker: str = "") -> str | None:
    """Why no answer to this question could ever score, or None. Nothing is known about a user's reward."""
    answers = [str(answer) for answer in row["answers"]]
    usable = [answer for answer in answers if answer.strip()]
    if reward.name not in REWARDS:
        return None
    if not usable:
        return "has no reference that is not empty"
    if reward.name == "math" and not any(map(can_match, usable)):
        return f"has no mathematical reference: {usable}"
    if reward.name == "choice":
        letters = [chr(ord("A") + number) for number in range(len(_choices(row)))]
        if not letters:
            return "has no choices"
        if not {answer.strip().upper() for answer in usable} & set(letters):
            return f"expects {usable}, but its choices are {letters[0]} to {letters[-1]}"
    literal = (
        reward.scope == "after_marker"
        and reward.name in ("in_accuracy", "exact_match")
        and answer_marker.strip()
    )
    if literal and all(_marker_pattern(answer_marker).search(answer) for answer in usable):
        return (
            f"expects {usable}, which contains the answer marker {answer_marker!r}: only what follows counts"
        )
    return None


def gradable(
    rows: Sequence[dict[str, Any]], reward: Reward, answer_marker: str, *, skip: bool
) -> list[dict[str, Any]]:
    """The questions that some answer can score on.

    Args:
        skip: leave the others out instead of refusing them.

    Raises:
        ValueError: how many there are that can never score, and the first five with id and reason.
    """
    problems = {row["id"]: found for row in rows if (found := unmatchable(row, reward, answer_marker))}
    if problems and not skip:
        shown = "\n".join(f"  {id!r} {problem}" for id, problem in list(problems.items())[:5])
        raise ValueError(
            f"reward {reward.name}: expected references that an answer can match, found {len(problems)} "
            f"question(s) "
            f"that can never score; correct or remove them, or choose another reward:\n{shown}"
        )
    return [row for row in rows if row["id"] not in problems]


@lru_cache(maxsize=16)
def _marker_pattern(marker: str) -> re.Pattern[str]:
    parts = re.findall(r"\w+|[^\w\s]", marker)
    boundary = r"(?<!\w)" if parts[0][0].isalnum() else ""  # the marker "A:" is not in "data:"
    return re.compile(boundary + r"[\s*_`]*".join(map(re.escape, parts)), re.IGNORECASE)


def _choices(row: Mapping[str, Any]) -> list[str]:
    choices = row.get("choices")
    return [] if choices is None else [str(choice) for choice in choices]
