"""Metrics: definitions, identities, failed rows, intervals."""

import json
import math
import random
from typing import Any

import numpy as np
import pytest

from stasc_ray.evaluation.metrics import EDIT_CHARACTERS, INTERVALS, edit_ratio, score_row, summarize


def rollout(id, initial_rewards, correction_rewards, initial=None, corrections=None, error=None):
    return {
        "id": id,
        "initial": initial or ["x"] * len(initial_rewards),
        "initial_rewards": initial_rewards,
        "corrections": corrections or [["x"] * len(row) for row in correction_rewards],
        "correction_rewards": correction_rewards,
        "error": error,
    }


def evaluate(rows, threshold, bootstrap_samples, seed):
    return summarize([score_row(row, threshold) for row in rows], bootstrap_samples, seed)


def random_rollouts(questions, samples=1, corrections=1, seed=0):
    draw = random.Random(seed)
    return [
        rollout(
            f"q{i}",
            [float(draw.random() < 0.4) for _ in range(samples)],
            [[float(draw.random() < 0.6) for _ in range(corrections)] for _ in range(samples)],
        )
        for i in range(questions)
    ]


def test_four_questions_by_hand():
    rows = [
        rollout("a", [1.0], [[1.0]], ["yes"], [["yes "]]),
        rollout("b", [1.0], [[0.0]], ["yes"], [["no"]]),
        rollout("c", [0.0], [[1.0]], ["abcd"], [["abxd"]]),
        rollout("d", [0.0], [[1.0]], ["no"], [["no"]]),
    ]
    found = evaluate(rows, threshold=1.0, bootstrap_samples=50, seed=0)
    assert (found["questions"], found["errors"]) == (4, 0)
    assert (found["r_y1"], found["r_y2"], found["delta"]) == (0.5, 0.75, 0.25)
    assert [found[name] for name in ("c_to_c", "c_to_i", "i_to_c", "i_to_i")] == [0.25, 0.25, 0.5, 0.0]
    assert (found["cl"], found["cs"]) == (0.5, 1.0)
    assert found["rss"] == pytest.approx((0.75 - 0.25) / (2 * 0.5 * 0.5))
    assert found["changed"] == 0.5
    assert found["edit_ratio"] == pytest.approx((0 + 1 + 1 / 4 + 0) / 4)


@pytest.mark.parametrize(("samples", "corrections"), [(1, 1), (4, 1), (3, 5)])
def test_identities(samples, corrections):
    found: Any = evaluate(random_rollouts(200, samples, corrections), 1.0, 10, 0)
    r1, r2, cl, cs = (found[name] for name in ("r_y1", "r_y2", "cl", "cs"))
    assert found["delta"] == pytest.approx(found["i_to_c"] - found["c_to_i"])
    assert r2 == pytest.approx(r1 * cl + (1 - r1) * cs)
    assert sum(found[name] for name in ("c_to_c", "c_to_i", "i_to_c", "i_to_i")) == pytest.approx(1)
    assert found["rss"] == pytest.approx((r2 - r1**2) / (2 * r1 * (1 - r1)))


def test_cl_and_cs_with_several_samples_follow_the_paper():
    # P(a) = 3/4 and 1/4; P(b|a) = 2/3 and 1; P(b|not a) = 1 and 1/3.
    rows = [
        rollout("a", [1.0, 1.0, 1.0, 0.0], [[1.0], [1.0], [0.0], [1.0]]),
        rollout("b", [1.0, 0.0, 0.0, 0.0], [[1.0], [1.0], [0.0], [0.0]]),
    ]
    found = evaluate(rows, 1.0, 10, 0)
    assert found["cl"] == pytest.approx((0.75 * 2 / 3 + 0.25 * 1) / 1.0)
    assert found["cs"] == pytest.approx((0.25 * 1 + 0.75 / 3) / 1.0)


def test_fractional_rewards_average_and_the_threshold_decides_transitions():
    found = evaluate([rollout("a", [0.4], [[0.6]]), rollout("b", [0.8], [[0.5]])], 0.5, 10, 0)
    assert found["r_y1"] == pytest.approx(0.6)
    assert found["r_y2"] == pytest.approx(0.55)
    assert (found["i_to_c"], found["c_to_c"], found["c_to_i"]) == (0.5, 0.5, 0.0)


@pytest.mark.parametrize(
    "failed",
    [
        rollout("e", [], [], error="prompt too long"),
        rollout("e", [], []),
    ],
)
def test_a_failed_row_counts_as_wrong_and_is_reported(failed):
    found = evaluate([rollout("a", [1.0], [[1.0]], ["u"], [["v"]]), failed], 1.0, 10, 0)
    assert (found["questions"], found["errors"]) == (2, 1)
    assert (found["r_y1"], found["r_y2"], found["i_to_i"]) == (0.5, 0.5, 0.5)
    assert found["changed"] == 1.0  # over the rows that have texts


def test_nothing_is_nan_and_all_is_json():
    for rows in (
        [],
        [rollout("a", [0.0], [[0.0]])],
        [rollout("a", [1.0], [[1.0]])],
        [rollout("e", [], [], error="x")],
    ):
        found = evaluate(rows, 1.0, 10, 0)
        assert not any(isinstance(value, float) and math.isnan(value) for value in found.values())
        json.dumps(found, allow_nan=False)
    assert evaluate([], 1.0, 10, 0)["r_y1"] is None
    all_wrong = evaluate([rollout("a", [0.0], [[0.0]])], 1.0, 10, 0)
    assert (all_wrong["cl"], all_wrong["cs"], all_wrong["rss"]) == (None, 0.0, None)


def test_order_of_rows_changes_nothing():
    scores = [score_row(row, 1.0) for row in random_rollouts(100, 3, 2)]
    shuffled = random.Random(1).sample(scores, len(scores))
    assert summarize(scores, 100, seed=5) == summarize(shuffled, 100, seed=5)


def test_intervals_are_seeded_and_near_the_normal_approximation():
    scores = [score_row(row, 1.0) for row in random_rollouts(400)]
    found = summarize(scores, 2000, seed=0)
    assert found == summarize(scores, 2000, seed=0)
    for name in INTERVALS:
        values = np.array([score[name] for score in scores])
        half = 1.96 * values.std() / math.sqrt(len(values))
        assert found[f"{name}_low"] == pytest.approx(values.mean() - half, abs=0.15 * half + 1 / 400)
        assert found[f"{name}_high"] == pytest.approx(values.mean() + half, abs=0.15 * half + 1 / 400)


def test_one_question_has_an_interval_of_width_zero():
    found = evaluate([rollout("a", [1.0], [[0.0]])], 1.0, 20, 0)
    assert (found["r_y1_low"], found["r_y1_high"]) == (1.0, 1.0)


def test_rows_as_arrow_and_numpy_give_them():
    rewards = np.empty(2, dtype=object)
    rewards[:] = [np.array([1.0]), np.array([1.0])]
    texts = np.array([["x"], ["y"]], dtype=object)
    row = rollout("a", np.array([1.0, 0.0]), rewards, ["x", "x"]) | {"corrections": texts}
    assert evaluate([row], 1.0, 10, 0)["cs"] == 1.0


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ("", "", 0.0),
        ("same", " same\n", 0.0),
        ("", "abc", 1.0),
        ("abc", "", 1.0),
        ("kitten", "sitting", 3 / 7),
        ("sitting", "kitten", 3 / 7),
        ("47+385=332", "47+385=432", 1 / 10),
        ("abc", "xyz", 1.0),
        ("ab", "abab", 0.5),
        ("été", "ete", 2 / 3),
        ("a" * EDIT_CHARACTERS + "b", "a" * EDIT_CHARACTERS + "c", 0.0),  # beyond the cap
    ],
)
def test_edit_ratio(left, right, expected):
    assert edit_ratio(left, right) == pytest.approx(expected)
