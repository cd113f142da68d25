"""Which corrections are learnt from: transitions, the three filters, pairing, cap and share (arXiv 2503.08681, 2.2).

Reads Rollout rows, gives Attempt rows. Pure, and every choice depends only on one row and the seed, so that it runs on
partitions: `select` per question, then, for a target share, the summed `transition_counts` and `thin` per question.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypedDict

from stasc_ray.config import Algorithm, hashing

Transition = Literal["c->c", "c->i", "i->c", "i->i"]
TRANSITIONS: tuple[Transition, ...] = ("c->c", "c->i", "i->c", "i->i")


class Attempt(TypedDict):
    """One initial answer with one correction, and both rewards."""

    id: str
    """Question id."""
    initial_sample: int
    """j: position of the initial answer in its rollout."""
    correction_sample: int
    """Position of the correction among all corrections of its rollout, row after row: j * N_corr + k."""
    initial: str
    correction: str
    r1: float
    r2: float


def attempts(rollout: Mapping[str, Any], pairing: Literal["own", "cross"]) -> list[Attempt]:
    """List the attempts of one rollout; a failed rollout has none.

    Args:
        rollout: a Rollout row: N_init initial answers, N_init x N_corr corrections, rewards of the same shapes.
        pairing: `own` joins a correction with the answer it was written for (Algorithm 1), N_init * N_corr attempts;
            `cross` with every initial answer of its question, N_init^2 * N_corr attempts.

    Raises:
        ValueError: the lists of the row differ in length.
    """
    initials = list(zip(rollout["initial"], rollout["initial_rewards"], strict=True))
    corrections = [
        (origin, text, reward)
        for origin, (texts, rewards) in enumerate(
            zip(rollout["corrections"], rollout["correction_rewards"], strict=True)
        )
        for text, reward in zip(texts, rewards, strict=True)
    ]
    return [
        Attempt(
            id=rollout["id"],
            initial_sample=j,
            correction_sample=number,
            initial=initial,
            correction=correction,
            r1=float(r1),
            r2=float(r2),
        )
        for j, (initial, r1) in enumerate(initials)
        for number, (origin, correction, r2) in enumerate(corrections)
        if pairing == "cross" or origin == j
    ]


def transition(r1: float, r2: float, threshold: float) -> Transition:
    """Name what a correction did; an answer is correct (c) from reward `threshold` on, else incorrect (i)."""
    if r1 >= threshold:
        return "c->c" if r2 >= threshold else "c->i"
    return "i->c" if r2 >= threshold else "i->i"


def transition_counts(kept: Iterable[Attempt], threshold: float) -> dict[Transition, int]:
    """Count the four transitions; all four keys are present, and counts of partitions add up."""
    counts = Counter(transition(attempt["r1"], attempt["r2"], threshold) for attempt in kept)
    return {name: counts[name] for name in TRANSITIONS}


def improving(r1: float, r2: float, threshold: float) -> bool:
    """D+ of the paper: r2 > r1. The threshold plays no part."""
    return r2 > r1


def non_decreasing(r1: float, r2: float, threshold: float) -> bool:
    """D+ and D= of the paper: r2 > r1, or r2 = r1 >= t."""
    return r2 > r1 or r2 == r1 >= threshold


def both_correct(r1: float, r2: float, threshold: float) -> bool:
    """r1 >= t and r2 >= t: what the paper's code ran as "non-decreasing"; for comparison with its published N rows."""
    return r1 >= threshold and r2 >= threshold


FILTERS: dict[str, Callable[[float, float, float], bool]] = {
    "improving": improving,
    "non_decreasing": non_decreasing,
    "both_correct": both_correct,
}


def select(rollout: Mapping[str, Any], algorithm: Algorithm, seed: int) -> list[Attempt]:
    """Keep the attempts of one question that pass the filter, at most `max_examples_per_question` of them.

    Equal corrections are all kept, as in the paper: how often a model writes a correction is part of the distribution.
    Which ones a cap keeps depends on (seed, id, samples) alone, not on the order of rows or the number of workers.
    """
    keep = FILTERS[algorithm.filter]
    kept = [a for a in attempts(rollout, algorithm.pairing) if keep(a["r1"], a["r2"], algorithm.threshold)]
    cap = algorithm.max_examples_per_question
    if cap is None or len(kept) <= cap:
        return kept
    chosen = sorted(kept, key=lambda attempt: _uniform(seed, "cap", attempt))[:cap]
    return sorted(chosen, key=_samples)


def keep_probabilities(counts: Mapping[Transition, int], correct_share: float) -> tuple[float, float]:
    """With what probability to keep (a c->c pair, any other pair) so that c->c pairs make up `correct_share`.

    Only the surplus side is dropped; the other has probability 1. Solves share = p C / (p C + O) for p, or the same
    with the sides exchanged. A share strictly between 0 and 1 that dropping cannot reach, because one side is empty,
    leaves both at 1: dropping would leave nothing to train on.

    Args:
        counts: transitions over the kept attempts of all questions.
        correct_share: target in [0, 1].
    """
    correct = counts["c->c"]
    other = sum(counts.values()) - correct
    if correct_share in (0, 1):
        return (1.0, 0.0) if correct_share == 1 else (0.0, 1.0)
    if not correct or not other:
        return 1.0, 1.0
    wanted = correct_share / (1 - correct_share) * other / correct  # c->c pairs wanted per c->c pair there is
    return (wanted, 1.0) if wanted < 1 else (1.0, 1 / wanted)


def thin(
    kept: Sequence[Attempt], probabilities: tuple[float, float], threshold: float, seed: int
) -> list[Attempt]:
    """Drop attempts by `keep_probabilities`, each by a hash of (seed, id, samples).

    The share is met in expectation: with M pairs on the thinned side it deviates by about sqrt(M) / 2 pairs at most.
    """
    correct, other = probabilities

    def probability(attempt: Attempt) -> float:
        return correct if transition(attempt["r1"], attempt["r2"], threshold) == "c->c" else other

    return [attempt for attempt in kept if _uniform(seed, "share", attempt) < probability(attempt)]


def _samples(attempt: Attempt) -> tuple[int, int]:
    return attempt["initial_sample"], attempt["correction_sample"]


def _uniform(seed: int, purpose: str, attempt: Attempt) -> float:
    """A number in [0, 1) that is the same on every machine; `purpose` keeps the two uses independent."""
    return hashing.fraction(repr((seed, purpose, attempt["id"], *_samples(attempt))))
