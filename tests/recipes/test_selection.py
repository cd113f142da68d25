"""What recipes share when they select: a cap per question, target shares."""

import random
from collections import Counter

import pytest
from harness.traces import QUESTION, answered, plan

from stasc_ray.recipes.recipe import Example
from stasc_ray.recipes.rft import RFT
from stasc_ray.recipes.selection import TRANSITIONS, capped, choose, keep_probabilities, thin, uniform
from stasc_ray.recipes.stasc import STASC


def examples(number: int, question: str = "q1", kind: str = "i->c") -> list[Example]:
    return [Example(question, (0, place), kind, []) for place in range(number)]


def test_a_cap_is_fixed_by_the_seed_and_spread_over_samples():
    rows = [examples(6, f"q{i}") for i in range(300)]
    first = [capped(row, 2, seed=1) for row in rows]
    assert first == [capped(row[::-1], 2, seed=1) for row in rows]
    assert first != [capped(row, 2, seed=2) for row in rows]
    assert {len(kept) for kept in first} == {2}
    assert all(kept[0].place < kept[1].place for kept in first)
    taken = Counter(one.place for kept in first for one in kept)
    assert min(taken.values()) > 60  # 100 expected for each of the six
    assert capped(rows[0], None, seed=1) == rows[0]


def test_choices_hash_what_they_hashed_before():
    """These numbers order caps and shares of runs that are resumed: recorded at 05a8cae."""
    assert uniform(3, "cap", Example("q7", (1, 4), "i->c", [])) == pytest.approx(0.2658394875379997, abs=0)


REST = tuple(TRANSITIONS[1:])


@pytest.mark.parametrize(
    ("correct", "other", "share", "expected"),
    [
        (600, 400, 0.4, (400 * 2 / 3 / 600, 1.0)),  # surplus of c->c
        (200, 800, 0.4, (1.0, 300 / 800)),  # surplus of the others
        (400, 600, 0.4, (1.0, 1.0)),
        (10, 10, 0.0, (0.0, 1.0)),
        (10, 10, 1.0, (1.0, 0.0)),
    ],
)
def test_keep_probabilities(correct, other, share, expected):
    found = keep_probabilities({"c->c": correct, "i->c": other}, {("c->c",): share, REST: 1 - share})
    assert (found["c->c"], found["i->c"]) == pytest.approx(expected)


@pytest.mark.parametrize(("correct", "other"), [(10, 0), (0, 10), (0, 0)])
def test_a_share_out_of_reach_leaves_all(correct, other):
    assert keep_probabilities({"c->c": correct, "i->c": other}, {("c->c",): 0.4, REST: 0.6}) == {}


def test_classes_in_no_group_keep_all():
    found = keep_probabilities(
        {"says right": 100, "says wrong": 300}, {("says right",): 0.5, ("says wrong",): 0.5}
    )
    assert found == pytest.approx({"says right": 1.0, "says wrong": 1 / 3})
    assert len(thin(examples(50, kind="answer"), found, seed=0)) == 50
    assert keep_probabilities({}, {}) == {}


@pytest.mark.parametrize(
    ("correct", "other", "share"), [(3000, 1000, 0.4), (500, 4000, 0.4), (1000, 1000, 0.1)]
)
def test_thinning_reaches_the_share_whatever_the_order(correct, other, share):
    kinds = ["c->c"] * correct + ["i->c"] * other
    kept = [Example(f"q{i}", (0, 0), kind, []) for i, kind in enumerate(kinds)]
    probabilities = keep_probabilities(Counter(kinds), {("c->c",): share, REST: 1 - share})
    left = thin(kept, probabilities, seed=3)
    after = Counter(one.kind for one in left)
    assert after["c->c"] / len(left) == pytest.approx(share, abs=0.03)
    assert after["c->c"] == correct or after["i->c"] == other  # one side is untouched
    shuffled = random.Random(0).sample(kept, len(kept))
    assert sorted(one.id for one in thin(shuffled, probabilities, seed=3)) == sorted(one.id for one in left)


def chosen(texts, seed=0, **section):
    of = plan({"recipe": "rft", **section})
    return choose(RFT, QUESTION, texts, of, seed)


def test_a_text_that_was_cut_is_not_learnt_unless_the_config_says_so():
    texts = answered([1, 1, 0])
    texts[1].finish_reason = "length"
    found = chosen(texts)
    assert [one.id for one in found.kept] == ["q1/0"] and [one.id for one in found.cut] == ["q1/1"]
    assert len(chosen(texts, keep_truncated=True).kept) == 2


def test_a_cut_text_in_the_prompt_alone_is_no_reason_to_leave_an_example_out():
    texts = answered([0], [[1]])
    texts[0].finish_reason = "length"
    assert len(choose(STASC, QUESTION, texts, plan(), 0).kept) == 1
    texts[1].finish_reason = "length"
    assert not choose(STASC, QUESTION, texts, plan(), 0).kept


def test_the_cap_counts_whole_texts_and_keeps_the_same_ones_again():
    texts = answered([1] * 8)
    texts[0].finish_reason = "length"
    found = chosen(texts, max_examples_per_question=3)
    assert (len(found.kept), len(found.cut), len(found.beyond_cap)) == (3, 1, 4)
    assert found == chosen(texts, max_examples_per_question=3)
    kinds = {
        tuple(one.id for one in chosen(texts, seed, max_examples_per_question=3).kept) for seed in range(20)
    }
    assert len(kinds) > 1
