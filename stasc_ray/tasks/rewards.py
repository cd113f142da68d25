"""How an answer is graded: by words, choices, mathematics, or a function of the user's.

A reward is a function (answer, references) -> float in [0, 1]. `grader` turns the config's reward into a
Grader. It cuts out the graded part of the text and turns a failing reward into (0.0, "what went wrong"). The
comparing itself is in matching.py and squad.py (words), choices.py (letters) and math_grader.py (values).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from stasc_ray.config import Reward, named
from stasc_ray.tasks import reasoning
from stasc_ray.tasks.choice_texts import first_alike
from stasc_ray.tasks.choices import choice_letter
from stasc_ray.tasks.final_answer import after_marker, final_answer, marker_pattern
from stasc_ray.tasks.guesses import one_of_several
from stasc_ray.tasks.matching import exact_match, f1, in_accuracy, word_count
from stasc_ray.tasks.math_grader import MathReward, can_match
from stasc_ray.tasks.squad import squad_em, squad_f1

RewardFunction = Callable[[str, Sequence[str]], float]


def choice(answer: str, references: Sequence[str]) -> float:
    """1.0 if the letter that the answer states last is a reference, else 0.0. A Grader reads the choices'
    texts too.
    """
    return float(choice_letter(answer, ()) in {reference.strip().upper() for reference in references})


def math(answer: str, references: Sequence[str]) -> float:
    """1.0 if the answer equals a reference mathematically, else 0.0; what takes computing runs in a child.

    A Grader keeps its child, which is much faster.

    Raises:
        TimeoutError: after 5 s. RuntimeError: the child failed.
    """
    reward = MathReward(timeout_s=5.0)
    try:
        return reward(answer, references)
    finally:
        reward.close()


__all__ = ["REWARDS", "Grader", "after_marker", "gradable", "grader", "load_reward", "unmatchable"]

REWARDS: dict[str, RewardFunction] = {
    "in_accuracy": in_accuracy,
    "exact_match": exact_match,
    "f1": f1,
    "math": math,
    "choice": choice,
    "squad_em": squad_em,
    "squad_f1": squad_f1,
}
_NO_ANSWER = ("squad_em", "squad_f1")
"""Here an empty answer is right where the reference is empty (SQuAD 2)."""


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
            (reward in [0, 1], None), or (0.0, what failed). An empty answer has reward 0, and so has one of
            more than `max_answer_words` and, with scope `after_marker`, one without the marker: the format is
            part of the task. There in_accuracy pays no list of guesses.
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

    def _grade(self, text: str, question_row: Mapping[str, Any]) -> float:
        start = reasoning.answer_start(text)
        graded = answer = text[start:]
        if reasoning.unfinished(text, start):
            return 0.0
        if self.reward.scope == "after_marker":
            found = final_answer(answer, self.answer_marker)
            if found is None:
                return 0.0
            graded = found
        if not graded.strip() and self.reward.name not in _NO_ANSWER:
            return 0.0
        limit = self.reward.max_answer_words
        if limit is not None and word_count(graded) > limit:
            return 0.0
        references = [str(reference) for reference in question_row["answers"]]
        if self.reward.name == "choice":
            choices = _choices(question_row)
            graded = first_alike(choice_letter(graded, choices) or "", choices)
            references = [first_alike(reference.strip().upper(), choices) for reference in references]
        guessing = self.reward.name == "in_accuracy" and self.reward.scope == "after_marker"
        if guessing and one_of_several(graded, references):
            return 0.0
        if self._function is None:
            self._function = load_reward(self.reward)
        value = float(self._function(graded, references))
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


def unmatchable(row: Mapping[str, Any], reward: Reward, answer_marker: str = "") -> str | None:
    """Why no answer to this question could ever score, or None. Nothing is known about a user's reward."""
    answers = [str(answer) for answer in row["answers"]]
    usable = [answer for answer in answers if answer.strip()]
    if reward.name not in REWARDS:
        return None
    if not usable and reward.name not in _NO_ANSWER:
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
    if literal and all(marker_pattern(answer_marker).search(answer) for answer in usable):
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


def _choices(row: Mapping[str, Any]) -> list[str]:
    choices = row.get("choices")
    return [] if choices is None else [str(choice) for choice in choices]
