"""What recipes share when they choose what is learnt: transitions, a cap per question, target shares of
classes.

Pure. Every choice depends only on one question and the seed, so it runs on partitions and never on the order
of rows.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from operator import not_
from typing import Literal

from stasc_ray.config import hashing
from stasc_ray.recipes.recipe import Example, Plan, Question, Recipe
from stasc_ray.recipes.trace import Text

Transition = Literal["c->c", "c->i", "i->c", "i->i"]
TRANSITIONS: tuple[Transition, ...] = ("c->c", "c->i", "i->c", "i->i")


def transition(r1: float, r2: float, threshold: float) -> Transition:
    """Name what a correction did; an answer is correct (c) from reward `threshold` on, else incorrect (i)."""
    if r1 >= threshold:
        return "c->c" if r2 >= threshold else "c->i"
    return "i->c" if r2 >= threshold else "i->i"


def improving(r1: float, r2: float, threshold: float) -> bool:
    """D+ of the paper: r2 > r1. The threshold plays no part."""
    return r2 > r1


def non_decreasing(r1: float, r2: float, threshold: float) -> bool:
    """D+ and D= of the paper: r2 > r1, or r2 = r1 >= t."""
    return r2 > r1 or r2 == r1 >= threshold


def both_correct(r1: float, r2: float, threshold: float) -> bool:
    """r1 >= t and r2 >= t: what the paper's code ran as "non-decreasing"; to compare with its published N
    rows.
    """
    return r1 >= threshold and r2 >= threshold


FILTERS: dict[str, Callable[[float, float, float], bool]] = {
    "improving": improving,
    "non_decreasing": non_decreasing,
    "both_correct": both_correct,
}


KEEPS = {
    "improving": "corrections with a higher reward than their initial answer",
    "non_decreasing": "corrections with a higher reward than their initial answer, or as right as it was",
    "both_correct": "right corrections of right answers",
}
"""What each keeps, in words."""


@dataclass(frozen=True)
class Chosen:
    """A question's examples: those that are learnt, and why the others are not."""

    kept: Sequence[Example]
    cut: Sequence[Example]
    """They would learn a text that was cut at `max_tokens` (`algorithm.keep_truncated`)."""
    beyond_cap: Sequence[Example]
    """More than `algorithm.max_examples_per_question`."""


def choose(recipe: Recipe, question: Question, texts: Sequence[Text], plan: Plan, seed: int) -> Chosen:
    """What a recipe learns from one graded trace. Target shares of classes come after this (`thin`)."""
    found = list(recipe.examples(question, texts, plan, seed))
    cut = [not plan.section.keep_truncated and _learns_cut_text(example) for example in found]
    whole = list(compress(found, map(not_, cut)))
    kept = capped(whole, plan.section.max_examples_per_question, seed)
    places = {example.place for example in kept}
    return Chosen(kept, list(compress(found, cut)), [one for one in whole if one.place not in places])


def _learns_cut_text(example: Example) -> bool:
    """What becomes less likely (the rejected side, a negative weight) may be cut."""
    if example.weight < 0:
        return False
    pieces = [piece for message in example.messages for piece in message.get("pieces") or ()]
    return any(piece["train"] and piece.get("cut") for piece in pieces)


def capped(examples: Sequence[Example], most: int | None, seed: int) -> list[Example]:
    """At most that many examples of one question, by a hash of (seed, id, place); in the order of their
    places.
    """
    if most is None or len(examples) <= most:
        return list(examples)
    chosen = sorted(examples, key=lambda example: uniform(seed, "cap", example))[:most]
    return sorted(chosen, key=lambda example: example.place)


def keep_probabilities(
    counts: Mapping[str, int], shares: Mapping[tuple[str, ...], float]
) -> dict[str, float]:
    """With what probability to keep an example of each class, so that groups of classes reach their shares by
    dropping.

    With T examples left in the groups, group g keeps p_g C_g = s_g T. T is the largest for which no p_g is
    above 1, so one group keeps all. Classes in no group keep all. If a group with a share above 0 has no
    example, nothing is dropped: dropping would leave nothing of the others.

    Args:
        counts: examples of each class, over all questions.
        shares: target share of each group of classes; the shares add up to 1.
    """
    sizes = {group: sum(counts.get(name, 0) for name in group) for group in shares}
    wanted = {group: share for group, share in shares.items() if share > 0}
    if not all(sizes[group] for group in wanted) and len(wanted) > 1:
        return {}
    total = min((sizes[group] / share for group, share in wanted.items()), default=0.0)
    return {
        name: min(1.0, share * total / sizes[group]) if share * total > 0 else 0.0
        for group, share in shares.items()
        for name in group
    }


def thin(examples: Sequence[Example], probabilities: Mapping[str, float], seed: int) -> list[Example]:
    """Drop examples by `keep_probabilities`, each by a hash of (seed, id, place).

    A share is met in expectation: with M examples on a thinned side it deviates by about sqrt(M) / 2
    examples.
    """
    return [
        example
        for example in examples
        if (keep := probabilities.get(example.kind, 1.0)) >= 1 or uniform(seed, "share", example) < keep
    ]


def uniform(seed: int, purpose: str, example: Example) -> float:
    """A number in [0, 1) that is the same on every machine; `purpose` keeps the uses independent."""
    return hashing.fraction(repr((seed, purpose, example.question, *example.place)))
