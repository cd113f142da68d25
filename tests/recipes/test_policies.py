"""How a question is answered when asked: rounds in a row, when a chain ends, which answer wins."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from harness.traces import QUESTION, ScriptedAsk, answered, plan

from stasc_ray.recipes.policies import POLICIES, answer_key, policy, ranked
from stasc_ray.recipes.recipe import Recipe
from stasc_ray.recipes.rft import RFT
from stasc_ray.recipes.stasc import STASC
from stasc_ray.recipes.trace import Text, finals, roots
from stasc_ray.recipes.verdict import VERDICT
from stasc_ray.tasks.prompts import correction_messages

RIGHT, WRONG = "I checked. My answer is right.", "No. My answer is wrong."


def run(
    name: str | None,
    recipe: Recipe,
    *script: str,
    rounds: int = 1,
    n_initial: int = 1,
    n_corrections: int = 1,
    given: Sequence[Text] | None = None,
    question=QUESTION,
) -> ScriptedAsk:
    """Let a policy run a recipe's turns on texts that are given in turn; all of them are used."""
    ask = ScriptedAsk(*script)
    ask.texts += given or []
    asked = plan({"recipe": recipe.section().recipe}, preset="qa", learn=False, rounds=rounds)
    asked = replace(asked, n_initial=n_initial, n_corrections=n_corrections)
    asyncio.run(policy(name, recipe).asks(recipe, question, ask, asked, given))
    assert ask.left == []
    return ask


def chains(ask: ScriptedAsk, recipe: Recipe = STASC) -> list[list[str]]:
    """The texts that led to each final answer."""
    ends = [end for root in roots(ask.texts) for end in finals(ask.texts, root, recipe.answers)]
    return [[text.text for text in end.lineage] for end in ends]


def test_rounds_in_a_row_each_correct_the_answer_before():
    ask = run("recipe", STASC, "one", "two", "three", "four", rounds=3)
    assert chains(ask) == [["one", "two", "three", "four"]]
    prompts = plan(preset="qa").prompts
    for (_, messages, _), before in zip(ask.asked[1:], ("one", "two", "three"), strict=True):
        assert messages == correction_messages(QUESTION, before, prompts), "the answer before, and it alone"


def test_no_round_only_answers():
    assert chains(run("recipe", STASC, "one", "two", rounds=0, n_initial=2)) == [["one"], ["two"]]
    assert chains(run("until_right", VERDICT, "one", rounds=0), VERDICT) == [["one"]]


def test_each_answer_is_a_chain_that_goes_on_alone():
    ask = run("recipe", STASC, "a", "b", "a1", "b1", "a2", "b2", rounds=2, n_initial=2)
    assert chains(ask) == [["a", "a1", "a2"], ["b", "b1", "b2"]]


def test_several_corrections_of_one_answer_do_not_branch_in_later_rounds():
    ask = run("vote", STASC, "x", "y", "x1", "y1", rounds=2, n_corrections=2, given=answered([0]))
    assert chains(ask) == [["a0", "x", "x1"], ["a0", "y", "y1"]]
    assert [n for _, _, n in ask.asked] == [2, 1, 1]


def test_a_recipe_without_corrections_ends_after_its_answers():
    ask = run("recipe", RFT, "a", "b", rounds=4, n_initial=2, n_corrections=0)
    assert [turn for turn, *_ in ask.asked] == ["answer"]


def test_until_unchanged_a_chain_ends_when_its_final_answer_stays():
    first, same = "Final Answer: Rhine", "I say again. Final Answer: the rhine."
    ask = run(
        "until_unchanged", STASC, first, "Final Answer: Danube", "Danube. Final Answer: Danube", rounds=5
    )
    assert len(ask.texts) == 3, "the second correction changed nothing, so there is no third"
    assert len(run("until_unchanged", STASC, first, same, rounds=5).texts) == 2, "spelling is no change"
    changing = [f"Final Answer: {number}" for number in range(4)]
    assert len(run("until_unchanged", STASC, *changing, rounds=3).texts) == 4, "rounds bound it"


def test_until_unchanged_compares_letters_if_there_are_choices():
    question = {**QUESTION, "choices": ["Rhine", "Danube"]}
    script = ("The answer is A", "It is long: (A)")
    assert len(run("until_unchanged", STASC, *script, rounds=3, question=question).texts) == 2


def test_until_unchanged_each_chain_ends_by_itself():
    ask = run("until_unchanged", STASC, "a", "b", "a", "c", "c", rounds=3, n_initial=2)
    assert chains(ask) == [["a", "a"], ["b", "c", "c"]]


def test_until_right_a_chain_ends_when_the_verdict_says_right():
    ask = run("until_right", VERDICT, "one", WRONG, "two", RIGHT, rounds=5)
    assert [(text.turn, text.text) for text in ask.texts] == [
        ("answer", "one"),
        ("verdict", WRONG),
        ("correction", "two"),
        ("verdict", RIGHT),
    ]
    assert chains(ask, VERDICT) == [["one", WRONG, "two"]], "the verdict is no answer"
    assert len(run("until_right", VERDICT, "one", RIGHT, rounds=5).texts) == 2
    assert len(run("until_right", VERDICT, "one", WRONG, "two", WRONG, "three", rounds=2).texts) == 5


def test_until_right_each_chain_ends_by_itself():
    ask = run("until_right", VERDICT, "a", "b", RIGHT, WRONG, "c", RIGHT, rounds=2, n_initial=2)
    assert chains(ask, VERDICT) == [["a"], ["b", WRONG, "c"]]


def test_the_recipe_says_its_policy_and_another_name_is_refused():
    assert policy(None, VERDICT) is POLICIES["until_right"] and policy(None, STASC) is POLICIES["recipe"]
    assert policy("until_unchanged", VERDICT) is POLICIES["until_unchanged"]
    with pytest.raises(ValueError, match=r"expected one of recipe, direct, .*, found 'best'"):
        policy("best", STASC)


def test_the_commonest_final_answer_wins_and_spelling_does_not_count():
    written = ["Final Answer: The Hague.", "Final Answer: Paris", "I say. Final Answer: the hague"]
    ends = [Text("correction", text) for text in written]
    assert ranked(ends, [], "Final Answer:") == [(ends[0], 2), (ends[1], 1)]


def test_choices_are_voted_on_by_letter():
    ends = [Text("correction", text) for text in ("The answer is B", "A", "two (B)")]
    assert ranked(ends, ["one", "two"], "Final Answer:")[0] == (ends[0], 2)


def test_of_equal_votes_the_first_answer_wins():
    ends = [Text("correction", text) for text in ("b", "a", "a", "b", "c")]
    assert [(text.text, votes) for text, votes in ranked(ends, [], "")] == [("b", 2), ("a", 2), ("c", 1)]
    assert ranked([], [], "") == []


def test_an_answer_without_a_word_still_counts_as_itself():
    assert answer_key("...", [], "") == "..." and answer_key("?!", [], "") == "?!"
    assert answer_key(" The Rhine. ", [], " ") == answer_key("rhine", [], " ")


def test_texts_that_were_cut_inside_their_reasoning_never_win_a_vote():
    cut = [Text("answer", "<think>a", number, answer_start=8) for number in range(2)]
    right = Text("answer", "4", 2)
    assert ranked([*cut, right], (), "") == [(right, 1), (cut[0], 1), (cut[1], 1)]
