"""Rejection-sampling fine-tuning: one's own right answers, equal texts once."""

import asyncio

import pytest
from harness.traces import QUESTION, ScriptedAsk, answered, plan, settings

from stasc_ray.recipes.rft import RFT
from stasc_ray.tasks.prompts import initial_messages


def kept(texts, seed=0, **section):
    return RFT.examples(QUESTION, texts, plan({"recipe": "rft", **section}), seed)


def learnt(examples) -> list[str]:
    return [example.messages[-1]["pieces"][0]["text"] for example in examples]


def test_turns_ask_for_answers_alone():
    ask, of = ScriptedAsk(*"abcd"), plan({"recipe": "rft"})
    asyncio.run(RFT.turns(QUESTION, ask, of, None))
    assert ask.asked == [("answer", initial_messages(QUESTION, of.prompts), 4)]
    ask = ScriptedAsk()
    asyncio.run(RFT.turns(QUESTION, ask, of, answered([1])))
    assert ask.asked == [], "answers that are given are not asked for"


def test_right_answers_are_learnt_as_the_answer_to_the_bare_question():
    found = kept(answered([0, 1, 0, 1]))
    assert learnt(found) == ["a1", "a3"] and [one.id for one in found] == ["q1/1", "q1/3"]
    assert {one.kind for one in found} == {"c"}
    for example in found:
        assert example.messages[:-1] == initial_messages(QUESTION, plan({"recipe": "rft"}).prompts)
        assert not any("train" in message for message in example.messages[:-1])
        assert [(piece["token_ids"], piece["train"]) for piece in example.messages[-1]["pieces"]] == [
            ([1, 2], True)
        ]


def test_equal_texts_of_a_question_are_kept_once_and_wrong_ones_never():
    assert [one.id for one in kept(answered([0, 1, 1, 1], answers=["x", "x", "y", "x"]))] == ["q1/1", "q1/2"]


def test_the_threshold_says_what_is_right():
    assert learnt(kept(answered([0.4, 0.5, 0.6]), threshold=0.5)) == ["a1", "a2"]


def test_a_failed_trace_and_an_ungraded_answer_have_no_examples():
    (ungraded,) = answered([1])
    ungraded.reward = None
    assert kept([]) == []
    with pytest.raises(AssertionError, match="graded traces only"):
        kept([ungraded])


def test_nothing_is_corrected():
    with pytest.raises(ValueError, match=r"algorithm\.n_corrections"):
        settings("algorithm.recipe=rft", "algorithm.n_corrections=1")
    assert RFT.chosen_by == "r_y1" and RFT.shares(RFT.section()) == {}
