"""What a task can say about its questions besides the references: worked solutions, and critiques of answers.

A config names one of these functions, as it names a reward. A model that can't criticize yet learns its first
critiques from a critic. Pure.
"""

from collections.abc import Callable, Mapping
from typing import Any, cast

from stasc_ray.config import named
from stasc_ray.tasks import sandbox

Solution = Callable[[Mapping[str, Any]], str]
"""Gives the worked solution of a Question row, as a model should write it."""
Critic = Callable[[str, Mapping[str, Any]], str]
"""Gives what is wrong with an answer to a Question row, in words; "" if nothing is."""


def reference(question_row: Mapping[str, Any]) -> str:
    """The first reference, bare."""
    return str(question_row["answers"][0])


SOLUTIONS: Mapping[str, Solution] = {"reference": reference, "sandbox": sandbox.solution}
CRITICS: Mapping[str, Critic] = {"sandbox": sandbox.first_wrong_column}


def load(field: str, name: str, shipped: Mapping[str, Callable[..., str]]) -> Callable[..., str]:
    """The function of that name in `shipped`, or at a dotted path `package.module:function`.

    Raises:
        ValueError: no such function; it names `field`.
    """
    found = named(field, name, shipped, "function")
    if not callable(found):
        raise ValueError(f"{field}: {name!r} is a {type(found).__name__}, expected a function")
    return cast(Callable[..., str], found)
