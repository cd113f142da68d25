"""Selection: truth tables of the filters, pairing, cap, share."""

import random
from collections import Counter

import pytest

from stasc_ray.config import Algorithm
from stasc_ray.recipes.selection import (
    FILTERS,
    TRANSITIONS,
    Attempt,
    Transition,
    attempts,
    keep_probabilities,
    select,
    thin,
    transition,
    transition_counts,
)


def rollout(initial_rewards, correction_rewards, id="q1"):
    return {
        "id": id,
        "initial": [f"a{j}" for j in range(len(initial_rewards))],
        "initial_rewards": initial_rewards,
        "corrections": [[f"a{j}c{k}" for k in range(len(row))] for j, row in enumerate(correction_rewards)],
        "correction_rewards": correction_rewards,
    }


# r1, r2, t -> transition, improving, non_decreasing, both_correct
TRUTH = [
    (0.0, 0.0, 1.0, "i->i", False, False, False),
    (0.0, 1.0, 1.0, "i->c", True, True, False),
    (1.0, 0.0, 1.0, "c->i", False, False, False),
    (1.0, 1.0, 1.0, "c->c", False, True, True),
    # F1 with t = 0.5: D+ looks at the order only, D= at equality from t on, both_correct at t only.
    (0.2, 0.4, 0.5, "i->i", True, True, False),
    (0.4, 0.4, 0.5, "i->i", False, False, False),
    (0.4, 0.2, 0.5, "i->i", False, False, False),
    (0.4, 0.6, 0.5, "i->c", True, True, False),
    (0.5, 0.5, 0.5, "c->c", False, True, True),
    (0.6, 0.6, 0.5, "c->c", False, True, True),
    (0.6, 0.8, 0.5, "c->c", True, True, True),
    (0.8, 0.6, 0.5, "c->c", False, False, True),
    (0.6, 0.4, 0.5, "c->i", False, False, False),
    # t = 1 with a fractional reward: almost right is wrong.
    (0.9, 0.9, 1.0, "i->i", False, False, False),
    (0.9, 1.0, 1.0, "i->c", True, True, False),
    # t = 0: everything is correct.
    (0.0, 0.0, 0.0, "c->c", False, True, True),
]


@pytest.mark.parametrize(("r1", "r2", "t", "name", "improving", "non_decreasing", "both_correct"), TRUTH)
def test_truth_table(r1, r2, t, name, improving, non_decreasing, both_correct):
    assert transition(r1, r2, t) == name
    assert FILTERS["improving"](r1, r2, t) is improving
    assert FILTERS["non_decreasing"](r1, r2, t) is non_decreasing
    assert FILTERS["both_correct"](r1, r2, t) is both_correct


def test_filters_are_those_the_config_accepts():
    for name in FILTERS:
        assert Algorithm(filter=name).filter == name  # type: ignore[arg-type]
    assert len(FILTERS) == 3


def test_own_pairs_each_correction_with_its_answer():
    row = rollout([0.0, 1.0], [[0.0, 1.0], [1.0, 0.0]])
    listed = attempts(row, "own")
    assert [(a["initial"], a["correction"], a["r1"], a["r2"]) for a in listed] == [
        ("a0", "a0c0", 0.0, 0.0),
        ("a0", "a0c1", 0.0, 1.0),
        ("a1", "a1c0", 1.0, 1.0),
        ("a1", "a1c1", 1.0, 0.0),
    ]
    assert [(a["initial_sample"], a["correction_sample"]) for a in listed] == [(0, 0), (0, 1), (1, 2), (1, 3)]


def test_cross_pairs_every_answer_with_every_correction():
    row = rollout([0.0, 1.0], [[0.0, 1.0], [1.0, 0.0]])
    listed = attempts(row, "cross")
    assert len(listed) == 8
    assert len({(a["initial_sample"], a["correction_sample"]) for a in listed}) == 8
    assert {(a["initial"], a["correction"]) for a in listed if a["r2"] > a["r1"]} == {
        ("a0", "a0c1"),
        ("a0", "a1c0"),
    }


def test_a_failed_rollout_has_no_attempts():
    assert attempts(rollout([], []), "own") == []
    assert select(rollout([], []), Algorithm(), seed=0) == []


def test_lists_of_different_length_are_refused():
    row = rollout([0.0], [[1.0]]) | {"initial_rewards": []}
    with pytest.raises(ValueError, match="zip"):
        attempts(row, "own")


def test_transition_counts_add_up():
    listed = attempts(rollout([0.0, 1.0], [[0.0, 1.0], [1.0, 0.0]]), "own")
    assert transition_counts(listed, 1.0) == dict.fromkeys(TRANSITIONS, 1)
    assert transition_counts([], 1.0) == dict.fromkeys(TRANSITIONS, 0)


def test_duplicates_stay():
    row = rollout([0.0], [[1.0, 1.0]]) | {"corrections": [["same", "same"]]}
    assert [a["correction"] for a in select(row, Algorithm(), seed=0)] == ["same", "same"]


def test_cap_is_fixed_by_the_seed_and_spread_over_samples():
    algorithm = Algorithm(max_examples_per_question=2, n_corrections=6)
    rows = [rollout([0.0], [[1.0] * 6], id=f"q{i}") for i in range(300)]
    first = [select(row, algorithm, seed=1) for row in rows]
    assert first == [select(row, algorithm, seed=1) for row in rows]
    assert first != [select(row, algorithm, seed=2) for row in rows]
    assert {len(kept) for kept in first} == {2}
    assert all(kept[0]["correction_sample"] < kept[1]["correction_sample"] for kept in first)
    taken = Counter(a["correction_sample"] for kept in first for a in kept)
    assert min(taken.values()) > 60  # 100 expected for each of the six


def counts(correct, other) -> dict[Transition, int]:
    return {"c->c": correct, "c->i": 0, "i->c": other, "i->i": 0}


@pytest.mark.parametrize(
    ("correct", "other", "share", "expected"),
    [
        (600, 400, 0.4, (400 * 2 / 3 / 600, 1.0)),  # surplus of c->c
        (200, 800, 0.4, (1.0, 300 / 800)),  # surplus of the others
        (400, 600, 0.4, (1.0, 1.0)),
        (10, 10, 0.0, (0.0, 1.0)),
        (10, 10, 1.0, (1.0, 0.0)),
        (10, 0, 0.4, (1.0, 1.0)),  # out of reach: leave all
        (0, 10, 0.4, (1.0, 1.0)),
        (0, 0, 0.4, (1.0, 1.0)),
    ],
)
def test_keep_probabilities(correct, other, share, expected):
    assert keep_probabilities(counts(correct, other), share) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("correct", "other", "share"), [(3000, 1000, 0.4), (500, 4000, 0.4), (1000, 1000, 0.1)]
)
def test_thinning_reaches_the_share_whatever_the_order(correct, other, share):
    rewards = [(1.0, 1.0)] * correct + [(0.0, 1.0)] * other
    kept = [
        Attempt(id=f"q{i}", initial_sample=0, correction_sample=0, initial="", correction="", r1=r1, r2=r2)
        for i, (r1, r2) in enumerate(rewards)
    ]
    probabilities = keep_probabilities(transition_counts(kept, 1.0), share)
    left = thin(kept, probabilities, 1.0, seed=3)
    after = transition_counts(left, 1.0)
    assert after["c->c"] / len(left) == pytest.approx(share, abs=0.03)
    assert after["c->c"] == correct or after["i->c"] == other  # one side is untouched
    shuffled = random.Random(0).sample(kept, len(kept))
    assert sorted(a["id"] for a in thin(shuffled, probabilities, 1.0, seed=3)) == sorted(
        a["id"] for a in left
    )
