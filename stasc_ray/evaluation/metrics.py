"""What a model's answers and corrections are worth, with 95% intervals.

Reads traces, gives a flat dict of metrics. `score_row` reduces one trace to a few floats where it lies (Ray
Data), so that `summarize` in the driver never holds a text. Pure; nothing is NaN: what is undefined is None.

Definitions: r(Y1), r(Y2) and the transitions as fractions of all questions follow SCoRe (arXiv 2409.12917);
CL, CS and RSS follow arXiv 2412.19513. Correct means reward >= threshold; r_y1, r_y2 and delta are mean
rewards, so that delta = i_to_c - c_to_i holds for 0/1 rewards.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from rapidfuzz.distance import Levenshtein

from stasc_ray.recipes.trace import ANSWER, CORRECTION, Text, depth, finals, roots

EDIT_CHARACTERS = 1000
"""How much of each text `edit_ratio` compares; a pair of this length costs up to 0.2 ms."""
INTERVALS = ("r_y1", "r_y2", "delta", "i_to_c", "c_to_i")
"""Metrics with a bootstrap interval, under `<name>_low` and `<name>_high`."""
VERDICTS = tuple(
    f"{said}_of_{truth}" for said in ("wrong", "right", "unread") for truth in ("wrong", "right")
)
"""Counts of verdicts: what they said, of what."""
MEANS = ("r_y1", "r_y2", "delta", "i_to_c", "c_to_i", "c_to_c", "i_to_i")
_PAIR = (*MEANS, "changed", "edit_ratio")
_COLUMNS = (*_PAIR, "failed")


def score_row(
    texts: Sequence[Text],
    threshold: float,
    *,
    answers: Collection[str] = (ANSWER, CORRECTION),
    writer: str | None = None,
    rounds: int | None = None,
    judges: Collection[str] = (),
    says_right: Callable[[Text], bool | None] = lambda verdict: None,
    pick: Callable[[Sequence[Text]], Text] | None = None,
) -> dict[str, Any]:
    """Reduce one question's trace to a few floats, each the mean over its first answers and, for each, over
    its last ones.

    A first answer is Y1; the answers that it ended in are Y2. If nothing followed it (a verdict said right, a
    recipe of one turn), Y2 is Y1. A question without answers failed: it is scored, with reward 0 in both
    turns, i->i and `failed` = 1. A question with answers counts as they were graded, even if one of them is
    empty.

    Args:
        texts: the graded trace.
        threshold: reward from which an answer is correct.
        answers: turns whose texts are answers.
        writer: of the first answers that count; None: all.
        rounds: corrections in a row that count; None: all.
        judges: turns whose texts are verdicts, for the verdicts' figures.
        says_right: reads a verdict.
        pick: chooses one of all last answers (a vote), which is Y2 then.

    Returns:
        r_y1, r_y2, delta, i_to_c, c_to_i, c_to_c, i_to_i, changed, edit_ratio, failed, and counts of verdicts
        by what they said of what (`VERDICTS`). The four transitions add up to 1.
    """
    first = roots(texts, writer)
    ends = [(root, list(finals(texts, root, answers, rounds))) for root in first]
    if not any(last for _, last in ends):
        return {**dict.fromkeys((*_COLUMNS, *VERDICTS), 0.0), "i_to_i": 1.0, "failed": 1.0}
    if pick:
        chosen = pick([text for _, last in ends for text in last])
        ends = [(root, [chosen]) for root in first]
    pairs = [[_score_pair(root, text, threshold) for text in last] for root, last in ends if last]
    values = {name: np.mean([np.mean([pair[name] for pair in of]) for of in pairs]) for name in _PAIR}
    verdicts = dict.fromkeys(VERDICTS, 0.0)
    for text in texts:
        judged = text.turn in judges and text.parent and text.root in first
        if judged and text.parent and (rounds is None or depth(text, answers) <= rounds):
            verdicts[_verdict(says_right(text), text.parent, threshold)] += 1
    return {**{name: float(value) for name, value in values.items()}, **verdicts, "failed": 0.0}


def _score_pair(first: Text, last: Text, threshold: float) -> dict[str, float]:
    r1, r2 = first.reward or 0.0, last.reward or 0.0
    before, after = r1 >= threshold, r2 >= threshold
    return {
        "r_y1": r1,
        "r_y2": r2,
        "delta": r2 - r1,
        "i_to_c": not before and after,
        "c_to_i": before and not after,
        "c_to_c": before and after,
        "i_to_i": not before and not after,
        "changed": first.answer.strip() != last.answer.strip(),
        "edit_ratio": edit_ratio(first.answer, last.answer),
    }


def _verdict(said: bool | None, judged: Text, threshold: float) -> str:
    truth = "right" if (judged.reward or 0.0) >= threshold else "wrong"
    return f"{'unread' if said is None else 'right' if said else 'wrong'}_of_{truth}"


def summarize(
    scores: Sequence[Mapping[str, Any]], bootstrap_samples: int, seed: int
) -> dict[str, float | int | None]:
    """Metrics of one split from the rows of `score_row`, in any order.

    Args:
        scores: one mapping per question, with its `id`.
        bootstrap_samples: resamples of the questions behind each interval.
        seed: seed of the resampling.

    Returns:
        questions, errors (failed rows); r_y1, r_y2, delta, i_to_c, c_to_i, c_to_c, i_to_i; `<name>_low` and
        `<name>_high` for INTERVALS; changed and edit_ratio over the rows that did not fail;
        cl = sum P(a) P(b|a) / sum P(a), the share of right answers kept right;
        cs = sum (1 - P(a)) P(b|not a) / sum (1 - P(a)), the share of wrong answers set right;
        rss = (Acc2 - Acc1^2) / (2 Acc1 (1 - Acc1)), above 0.5 when correcting helps;
        with verdicts: verdict_accuracy and verdict_balanced_accuracy, verdict_precision and verdict_recall of
            "wrong",
        verdict_read, the share that could be read.
        None where a denominator is 0.
    """
    # Ray Data keeps no order and a sum of floats depends on it, as does what a resample picks: sort.
    ordered = sorted(scores, key=lambda score: score["id"])
    columns = {
        name: np.array([score[name] for score in ordered], dtype=float) for name in _COLUMNS
    }  # each (Q,)
    means = {name: _ratio(columns[name].sum(), len(ordered)) for name in MEANS}
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
        **_verdicts({name: sum(score.get(name, 0.0) for score in ordered) for name in VERDICTS}),
    }


def _verdicts(counts: Mapping[str, float]) -> dict[str, float | None]:
    """How right verdicts are, "wrong" being what they look for; nothing without verdicts. Unread ones count
    as false.
    """
    if not sum(counts.values()):
        return {}
    wrong, right = (
        sum(count for name, count in counts.items() if name.endswith(of)) for of in ("_wrong", "_right")
    )
    found, passed = counts["wrong_of_wrong"], counts["right_of_right"]
    recalls = _ratio(found, wrong), _ratio(passed, right)
    unread = counts["unread_of_wrong"] + counts["unread_of_right"]
    return {
        "verdict_accuracy": _ratio(found + passed, wrong + right),
        "verdict_balanced_accuracy": None if None in recalls else sum(map(float, recalls)) / 2,  # type: ignore[arg-type]
        "verdict_precision": _ratio(found, found + counts["wrong_of_right"]),
        "verdict_recall": recalls[0],
        "verdict_read": 1 - unread / (wrong + right),
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
