"""What a model's answers and corrections are worth, with 95% intervals.

Reads Rollout rows, gives a flat dict of metrics. `score_row` reduces one row to a few floats where the row lies (Ray
Data), so that `summarize` in the driver never holds a text. Pure; nothing is NaN: what is undefined is None.

Definitions: r(Y1), r(Y2) and the transitions as fractions of all questions follow SCoRe (arXiv 2409.12917); CL, CS and
RSS follow arXiv 2412.19513. Correct means reward >= threshold; r_y1, r_y2 and delta are mean rewards, so that
delta = i_to_c - c_to_i holds for 0/1 rewards.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rapidfuzz.distance import Levenshtein

EDIT_CHARACTERS = 1000
"""How much of each text `edit_ratio` compares; a pair of this length costs up to 0.2 ms."""
INTERVALS = ("r_y1", "r_y2", "delta", "i_to_c", "c_to_i")
"""Metrics with a bootstrap interval, under `<name>_low` and `<name>_high`."""
_MEANS = ("r_y1", "r_y2", "delta", "i_to_c", "c_to_i", "c_to_c", "i_to_i")
_COLUMNS = (*_MEANS, "changed", "edit_ratio", "failed")


def score_row(rollout: Mapping[str, Any], threshold: float) -> dict[str, Any]:
    """Reduce one Rollout row to `id` and a few floats, each the mean over the row's samples.

    A row without corrections failed: it is scored, with reward 0 in both turns, i->i and `failed` = 1. A row with answers
    counts as it was graded, even where `error` says that one of them is empty.

    Returns:
        {id, r_y1, r_y2, delta, i_to_c, c_to_i, c_to_c, i_to_i, changed, edit_ratio, failed}; the four transitions add
        up to 1.
    """
    if not any(len(texts) for texts in rollout["corrections"]):
        return {"id": rollout["id"], **dict.fromkeys(_COLUMNS, 0.0), "i_to_i": 1.0, "failed": 1.0}
    r1 = np.asarray(rollout["initial_rewards"], dtype=float)[:, None]  # (N_init, 1)
    r2 = np.array(
        [list(rewards) for rewards in rollout["correction_rewards"]], dtype=float
    )  # (N_init, N_corr)
    before, after = r1 >= threshold, r2 >= threshold
    edits = [
        edit_ratio(initial, correction)
        for initial, corrections in zip(rollout["initial"], rollout["corrections"], strict=True)
        for correction in corrections
    ]
    changed = [
        initial.strip() != correction.strip()
        for initial, corrections in zip(rollout["initial"], rollout["corrections"], strict=True)
        for correction in corrections
    ]
    values = {
        "r_y1": r1.mean(),
        "r_y2": r2.mean(),
        "delta": r2.mean() - r1.mean(),
        "i_to_c": (~before & after).mean(),
        "c_to_i": (before & ~after).mean(),
        "c_to_c": (before & after).mean(),
        "i_to_i": (~before & ~after).mean(),
        "changed": np.mean(changed),
        "edit_ratio": np.mean(edits),
        "failed": 0.0,
    }
    return {"id": rollout["id"], **{name: float(value) for name, value in values.items()}}


def summarize(
    scores: Sequence[Mapping[str, Any]], bootstrap_samples: int, seed: int
) -> dict[str, float | int | None]:
    """Metrics of one split from the rows of `score_row`, in any order.

    Args:
        scores: one mapping per question.
        bootstrap_samples: resamples of the questions behind each interval.
        seed: seed of the resampling.

    Returns:
        questions, errors (failed rows); r_y1, r_y2, delta, i_to_c, c_to_i, c_to_c, i_to_i; `<name>_low` and
        `<name>_high` for INTERVALS; changed and edit_ratio over the rows that did not fail;
        cl = sum P(a) P(b|a) / sum P(a), the share of right answers kept right;
        cs = sum (1 - P(a)) P(b|not a) / sum (1 - P(a)), the share of wrong answers set right;
        rss = (Acc2 - Acc1^2) / (2 Acc1 (1 - Acc1)), above 0.5 when correcting helps.
        None where a denominator is 0.
    """
    # Ray Data keeps no order and a sum of floats depends on it, as does what a resample picks: sort.
    ordered = sorted(scores, key=lambda score: score["id"])
    columns = {
        name: np.array([score[name] for score in ordered], dtype=float) for name in _COLUMNS
    }  # each (Q,)
    means = {name: _ratio(columns[name].sum(), len(ordered)) for name in _MEANS}
    answered = 1.0 - columns["failed"]
    kept, fixed = columns["c_to_c"].sum(), columns["i_to_c"].sum()
    return {
        "questions": len(ordered),
        "errors": int(columns["failed"].sum()),
        **means,
        **_intervals(columns, bootstrap_samples, seed),
        "cl": _ratio(kept, kept + columns["c_to_i"].sum()),
        "cs": _ratio(fixed, fixed + columns["i_to_i"].sum()),
        "rss": _rss(means),
        "changed": _ratio((columns["changed"] * answered).sum(), answered.sum()),
        "edit_ratio": _ratio((columns["edit_ratio"] * answered).sum(), answered.sum()),
    }


def edit_ratio(left: str, right: str) -> float:
    """Levenshtein distance over the length of the longer text: 0 equal, 1 nothing in common.

    It compares the first EDIT_CHARACTERS characters of each, without white space around the texts.
    """
    left, right = left.strip()[:EDIT_CHARACTERS], right.strip()[:EDIT_CHARACTERS]
    return Levenshtein.normalized_distance(left, right)


def _rss(means: Mapping[str, float | None]) -> float | None:
    i_to_c, c_to_i, c_to_c = means["i_to_c"], means["c_to_i"], means["c_to_c"]
    if i_to_c is None or c_to_i is None or c_to_c is None:
        return None
    first, second = c_to_c + c_to_i, c_to_c + i_to_c  # accuracy in turn 1 and 2
    return _ratio(second - first**2, 2 * first * (1 - first))


def _intervals(columns: Mapping[str, np.ndarray], samples: int, seed: int) -> dict[str, float | None]:
    """Percentile bootstrap over questions (2.5% and 97.5%); memory grows with Q, not with Q * samples."""
    names = [f"{name}_{end}" for name in INTERVALS for end in ("low", "high")]
    values = np.stack([columns[name] for name in INTERVALS], axis=1)  # (Q, 5)
    questions = len(values)
    if not questions:
        return dict.fromkeys(names)
    random = np.random.default_rng(seed)
    means = np.empty((samples, len(INTERVALS)))
    for sample in range(samples):
        taken = np.bincount(random.integers(questions, size=questions), minlength=questions)
        means[sample] = taken @ values / questions
    bounds = np.percentile(means, (2.5, 97.5), axis=0).T  # (5, 2)
    return dict(zip(names, map(float, bounds.ravel()), strict=True))


def _ratio(numerator: float, denominator: float) -> float | None:
    return float(numerator / denominator) if denominator > 1e-12 else None
