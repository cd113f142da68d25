"""STaSC's filters, pairing and conversations."""

import asyncio

import pytest
from harness.traces import QUESTION, ScriptedAsk, answered, plan, settings

from stasc_ray.recipes import RECIPES, recipe_of
from stasc_ray.recipes.selection import FILTERS, transition
from stasc_ray.recipes.stasc import STASC
from stasc_ray.tasks.prompts import correction_messages, initial_messages

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


@pytest.mark.parametrize("name", FILTERS)
def test_filters_are_those_the_config_accepts(name):
    assert settings(algorithm={"filter": name}).algorithm.filter == name  # type: ignore[attr-defined]


def kept(texts, seed=0, **section):
    return STASC.examples(QUESTION, texts, plan(section), seed)


def told(example) -> tuple[str, str]:
    """The answer and the correction of an example."""
    return example.messages[-3]["content"], example.messages[-1]["pieces"][0]["text"]


def test_own_pairs_each_correction_with_its_answer():
    found = kept(answered([0, 1], [[0, 1], [1, 0]]), filter="non_decreasing")
    assert [(one.kind, told(one)) for one in found] == [("i->c", ("a0", "a0c1")), ("c->c", ("a1", "a1c0"))]
    assert [(one.place, one.id) for one in found] == [((0, 1), "q1/0/1"), ((1, 2), "q1/1/2")]


def test_cross_pairs_every_answer_with_every_correction():
    found = kept(answered([0, 1], [[0, 1], [1, 0]]), pairing="cross")
    assert {told(one) for one in found} == {("a0", "a0c1"), ("a0", "a1c0")}
    assert len({one.id for one in found}) == 2


def test_a_failed_trace_has_no_examples_and_duplicates_stay():
    assert kept([]) == []
    same = answered([0], [[1, 1]], corrections=[["same", "same"]])
    assert [told(one)[1] for one in kept(same)] == ["same", "same"]


def test_the_loss_falls_on_the_generated_ids_of_the_correction_alone():
    (example,) = kept(answered([0], [[1]]))
    assert example.messages[:-1] == correction_messages(QUESTION, "a0", plan().prompts)
    assert not any(message.get("train") or message.get("pieces") for message in example.messages[:-1])
    assert example.messages[-1]["pieces"] == [
        {"text": "a0c0", "token_ids": [3, 2], "train": True, "cut": False}
    ]


def test_turns_ask_for_answers_and_then_for_corrections_of_each():
    ask, of = ScriptedAsk("x", "y", *"abcdef"), plan({"n_initial": 2, "n_corrections": 3})
    asyncio.run(STASC.turns(QUESTION, ask, of, None))
    assert [(turn, n) for turn, _, n in ask.asked] == [("answer", 2), ("correction", 3), ("correction", 3)]
    assert ask.asked[0][1] == initial_messages(QUESTION, of.prompts)
    assert ask.asked[2][1] == correction_messages(QUESTION, "y", of.prompts)
    assert [text.parent and text.parent.text for text in ask.texts] == [None, None, *"xxxyyy"]


def test_given_answers_are_corrected_and_not_asked_for():
    (given,) = answered([0])
    ask = ScriptedAsk("c")
    asyncio.run(STASC.turns(QUESTION, ask, plan({"n_corrections": 1}), [given]))
    assert [turn for turn, *_ in ask.asked] == ["correction"] and ask.texts[0].parent is given


@pytest.mark.parametrize("letters", ["EIE", "EIF", "ENE", "ENF", "FIE", "FIF", "FNE", "FNF"])
def test_all_eight_variants_are_words_of_the_config(letters):
    section = settings(f"algorithm.variant={letters}").algorithm
    assert section.variant == letters and section.recipe == "stasc"


def test_the_table_of_recipes_names_its_sections():
    assert {name: recipe.section().recipe for name, recipe in RECIPES.items()} == {
        name: name for name in RECIPES
    }
    with pytest.raises(ValueError, match="did you mean 'verdict'"):
        recipe_of("verdicts")
    with pytest.raises(ValueError, match=r"expected a Recipe at 'stasc_ray\.recipes:RECIPES', found a dict"):
        recipe_of("stasc_ray.recipes:RECIPES")
