"""Metrics: definitions, identities, failed rows, intervals."""

import json
import math
import random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from harness.traces import answered, row, settings

from stasc_ray.evaluation.measuring import score_file
from stasc_ray.evaluation.metrics import (
    EDIT_CHARACTERS,
    INTERVALS,
    VERDICTS,
    edit_ratio,
    score_row,
    summarize,
)
from stasc_ray.recipes.policies import ranked
from stasc_ray.recipes.trace import Text, write_texts
from stasc_ray.store.rows import trace_schema


def trace(id, initial_rewards, correction_rewards, initial=None, corrections=None):
    """(id, texts) of one question; without other texts all are equal."""
    initial = initial or ["x"] * len(initial_rewards)
    corrections = corrections or [["x"] * len(row) for row in correction_rewards]
    return id, answered(initial_rewards, correction_rewards, initial, corrections)


def scores_of(traces, threshold=1.0, **arguments):
    return [{"id": id, **score_row(texts, threshold, **arguments)} for id, texts in traces]


def evaluate(traces, threshold, bootstrap_samples, seed, **arguments):
    return summarize(scores_of(traces, threshold, **arguments), bootstrap_samples, seed)


def random_traces(questions, samples=1, corrections=1, seed=0):
    draw = random.Random(seed)
    return [
        trace(
            f"q{i}",
            [float(draw.random() < 0.4) for _ in range(samples)],
            [[float(draw.random() < 0.6) for _ in range(corrections)] for _ in range(samples)],
        )
        for i in range(questions)
    ]


def test_four_questions_by_hand():
    rows = [
        trace("a", [1.0], [[1.0]], ["yes"], [["yes "]]),
        trace("b", [1.0], [[0.0]], ["yes"], [["no"]]),
        trace("c", [0.0], [[1.0]], ["abcd"], [["abxd"]]),
        trace("d", [0.0], [[1.0]], ["no"], [["no"]]),
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
    found: Any = evaluate(random_traces(200, samples, corrections), 1.0, 10, 0)
    r1, r2, cl, cs = (found[name] for name in ("r_y1", "r_y2", "cl", "cs"))
    assert found["delta"] == pytest.approx(found["i_to_c"] - found["c_to_i"])
    assert r2 == pytest.approx(r1 * cl + (1 - r1) * cs)
    assert sum(found[name] for name in ("c_to_c", "c_to_i", "i_to_c", "i_to_i")) == pytest.approx(1)
    assert found["rss"] == pytest.approx((r2 - r1**2) / (2 * r1 * (1 - r1)))


def test_cl_and_cs_with_several_samples_follow_the_paper():
    # P(a) = 3/4 and 1/4; P(b|a) = 2/3 and 1; P(b|not a) = 1 and 1/3.
    rows = [
        trace("a", [1.0, 1.0, 1.0, 0.0], [[1.0], [1.0], [0.0], [1.0]]),
        trace("b", [1.0, 0.0, 0.0, 0.0], [[1.0], [1.0], [0.0], [0.0]]),
    ]
    found = evaluate(rows, 1.0, 10, 0)
    assert found["cl"] == pytest.approx((0.75 * 2 / 3 + 0.25 * 1) / 1.0)
    assert found["cs"] == pytest.approx((0.25 * 1 + 0.75 / 3) / 1.0)


def test_fractional_rewards_average_and_the_threshold_decides_transitions():
    found = evaluate([trace("a", [0.4], [[0.6]]), trace("b", [0.8], [[0.5]])], 0.5, 10, 0)
    assert found["r_y1"] == pytest.approx(0.6)
    assert found["r_y2"] == pytest.approx(0.55)
    assert (found["i_to_c"], found["c_to_c"], found["c_to_i"]) == (0.5, 0.5, 0.0)


@pytest.mark.parametrize(
    "failed",
    [
        trace("e", [], []),
        ("e", [Text("verdict", "a verdict on nothing")]),
    ],
)
def test_a_failed_row_counts_as_wrong_and_is_reported(failed):
    found = evaluate([trace("a", [1.0], [[1.0]], ["u"], [["v"]]), failed], 1.0, 10, 0)
    assert (found["questions"], found["errors"]) == (2, 1)
    assert (found["r_y1"], found["r_y2"], found["i_to_i"]) == (0.5, 0.5, 0.5)
    assert found["changed"] == 1.0  # over the rows that have texts


def test_nothing_is_nan_and_all_is_json():
    for rows in (
        [],
        [trace("a", [0.0], [[0.0]])],
        [trace("a", [1.0], [[1.0]])],
        [trace("e", [], [])],
    ):
        found = evaluate(rows, 1.0, 10, 0)
        assert not any(isinstance(value, float) and math.isnan(value) for value in found.values())
        json.dumps(found, allow_nan=False)
    assert evaluate([], 1.0, 10, 0)["r_y1"] is None
    all_wrong = evaluate([trace("a", [0.0], [[0.0]])], 1.0, 10, 0)
    assert (all_wrong["cl"], all_wrong["cs"], all_wrong["rss"]) == (None, 0.0, None)


def test_order_of_rows_changes_nothing():
    scores = scores_of(random_traces(100, 3, 2))
    shuffled = random.Random(1).sample(scores, len(scores))
    assert summarize(scores, 100, seed=5) == summarize(shuffled, 100, seed=5)


def test_intervals_are_seeded_and_near_the_normal_approximation():
    scores = scores_of(random_traces(400))
    found = summarize(scores, 2000, seed=0)
    assert found == summarize(scores, 2000, seed=0)
    for name in INTERVALS:
        values = np.array([score[name] for score in scores])
        half = 1.96 * values.std() / math.sqrt(len(values))
        assert found[f"{name}_low"] == pytest.approx(values.mean() - half, abs=0.15 * half + 1 / 400)
        assert found[f"{name}_high"] == pytest.approx(values.mean() + half, abs=0.15 * half + 1 / 400)


def test_one_question_has_an_interval_of_width_zero():
    found = evaluate([trace("a", [1.0], [[0.0]])], 1.0, 20, 0)
    assert (found["r_y1_low"], found["r_y1_high"]) == (1.0, 1.0)


# --- traces of several writers, rounds, votes, verdicts
# ------------------------------------------------------------


def chain(*rewards, turn="correction", writer="base"):
    """An answer and corrections in a row, each of the one before."""
    texts = []
    for number, reward in enumerate(rewards):
        parent = texts[-1] if texts else None
        name = turn if texts else "answer"
        texts.append(Text(name, f"t{number}", 0, parent, writer, reward=float(reward)))
    return texts


def test_a_file_gives_the_scores_of_the_texts_in_memory(tmp_path):
    traces = [*random_traces(20, 2, 3), ("long", [])]
    rows = [row(texts, id=id, split="test") for id, texts in traces]
    assert rows[0]["texts"] == write_texts(traces[0][1])
    pq.write_table(pa.Table.from_pylist(rows, schema=trace_schema()), tmp_path / "test-000000.parquet")
    found = score_file(str(tmp_path / "test-000000.parquet"), settings(), "base")
    assert found == scores_of(traces)


def test_a_writers_first_answers_alone_count():
    """With Fixed initialization a trace holds M0's answers, corrected by the model, and the model's own."""
    fixed = answered([0, 0], [[1], [1]], writer="iteration_01", answers_by="base")
    own = answered([1], [[1]], writer="iteration_01")
    both = [("a", fixed + own)]
    of_base, of_own = (evaluate(both, 1.0, 10, 0, writer=writer) for writer in ("base", "iteration_01"))
    assert (of_base["r_y1"], of_base["r_y2"], of_base["i_to_c"]) == (0.0, 1.0, 1.0)
    assert (of_own["r_y1"], of_own["r_y2"], of_own["c_to_c"]) == (1.0, 1.0, 1.0)
    assert evaluate(both, 1.0, 10, 0, writer="iteration_02")["errors"] == 1


@pytest.mark.parametrize(("rounds", "r_y2"), [(1, 1.0), (2, 0.0), (3, 0.5), (9, 0.5), (None, 0.5)])
def test_y2_is_the_answer_after_so_many_rounds(rounds, r_y2):
    texts = [("a", chain(0, 1, 0, 0.5))]
    found = evaluate(texts, 1.0, 10, 0, rounds=rounds)
    assert (found["r_y1"], found["r_y2"]) == (0.0, r_y2)
    # A chain that ended earlier keeps its last answer.
    mixed = evaluate([*texts, ("b", chain(0, 1))], 1.0, 10, 0, rounds=rounds)
    assert mixed["r_y2"] == pytest.approx((r_y2 + 1) / 2)


def test_an_answer_that_nothing_followed_is_its_own_last_one():
    found = evaluate([("a", answered([1])), ("b", answered([0]))], 1.0, 10, 0)
    assert (found["r_y1"], found["r_y2"], found["c_to_c"], found["i_to_i"]) == (0.5, 0.5, 0.5, 0.5)
    assert (found["errors"], found["changed"]) == (0, 0.0)


def test_a_vote_makes_one_answer_of_all_samples():
    """r(Y1) stays the mean over the samples; r(Y2) is that of the answer that most samples ended in."""
    of = answered([0, 1, 0], [[1], [1], [0]], corrections=[["= 4"], ["4 = 4"], ["= 5"]])

    def vote(ends):
        return ranked(ends, [], "=")[0][0]

    found = evaluate([("a", of)], 1.0, 10, 0, pick=vote)
    assert (found["r_y1"], found["r_y2"]) == (pytest.approx(1 / 3), 1.0)
    assert (found["i_to_c"], found["c_to_c"]) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert evaluate([("a", of)], 1.0, 10, 0)["r_y2"] == pytest.approx(2 / 3)


def says_right(verdict):
    return {"right": True, "wrong": False}.get(verdict.answer)


def judged(reward, said, corrected=None):
    """An answer, a verdict on it and, unless it says right, a correction."""
    answer = Text("answer", "x", reward=reward)
    verdict = Text("verdict", said, parent=answer)
    after = [] if corrected is None else [Text("correction", "y", parent=verdict, reward=corrected)]
    return [answer, verdict, *after]


def test_verdicts_by_hand():
    """Eight answers, four of them wrong; "wrong" is what a verdict looks for, and an unread one counts as
    false."""
    traces = [
        judged(0.0, "wrong", 1.0),
        judged(0.0, "wrong", 0.0),
        judged(0.0, "right"),
        judged(0.0, "I can't say", 1.0),
        judged(1.0, "right"),
        judged(1.0, "right"),
        judged(1.0, "right"),
        judged(1.0, "wrong", 0.0),
    ]
    named = [(str(number), texts) for number, texts in enumerate(traces)]
    found = evaluate(named, 1.0, 10, 0, judges=("verdict",), says_right=says_right)
    assert found["verdict_accuracy"] == 5 / 8
    assert found["verdict_balanced_accuracy"] == (2 / 4 + 3 / 4) / 2
    assert found["verdict_precision"] == pytest.approx(2 / 3)
    assert (found["verdict_recall"], found["verdict_read"]) == (2 / 4, 7 / 8)
    # A verdict is no answer: what it lets pass stays, what it sends back is corrected.
    assert (found["r_y1"], found["r_y2"]) == (4 / 8, 5 / 8)
    assert (found["i_to_c"], found["c_to_i"], found["c_to_c"]) == (2 / 8, 1 / 8, 3 / 8)
    counts = score_row([*traces[0], *traces[2]], 1.0, judges=("verdict",), says_right=says_right)
    assert {name: counts[name] for name in VERDICTS if counts[name]} == {
        "wrong_of_wrong": 1,
        "right_of_wrong": 1,
    }


def test_without_verdicts_there_are_no_figures_of_them():
    found = evaluate([("a", answered([1]))], 1.0, 10, 0, judges=("verdict",), says_right=says_right)
    assert not [name for name in found if name.startswith("verdict")]
    assert (
        evaluate([("a", judged(1.0, "right"))], 1.0, 10, 0, judges=("verdict",), says_right=says_right)[
            "verdict_recall"
        ]
        is None
    )


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
