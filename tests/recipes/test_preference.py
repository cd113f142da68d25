"""Preferences: which text stands over which, in which conversation, and on which tokens the loss falls."""

from typing import Any

import pytest
from harness.traces import QUESTION, answered, plan, settings

from stasc_ray.learning.encoding import IGNORED, encode
from stasc_ray.look.tokens import load_chat
from stasc_ray.recipes.preference import PREFERENCE, distinct
from stasc_ray.recipes.recipe import Example, Plan
from stasc_ray.recipes.selection import choose
from stasc_ray.recipes.trace import Text
from stasc_ray.tasks.prompts import correction_messages, initial_messages


def of(**section: Any) -> Plan:
    return plan({"recipe": "preference", **section})


def kept(texts: list[Text], **section: Any) -> list[Example]:
    return list(PREFERENCE.examples(QUESTION, texts, of(**section), 0))


def pairs(examples: list[Example]) -> list[tuple[str, str, str]]:
    """(class, chosen, rejected)."""
    return [(one.kind, *(side[-1]["pieces"][0]["text"] for side in one.sides)) for one in examples]


def test_a_right_correction_stands_over_a_wrong_one_of_the_same_answer() -> None:
    texts = answered([0, 1], [[0, 1, 1, 0, 1], [1, 1]])
    found = kept(texts, pairs="corrections")
    assert pairs(found) == [("c over i", "a0c1", "a0c0"), ("c over i", "a0c2", "a0c3")]
    asked = correction_messages(QUESTION, "a0", of().prompts)
    assert all(side[:-1] == asked for one in found for side in one.sides)
    assert [one.id for one in found] == ["q1/0/0", "q1/0/1"]


def test_a_fix_stands_over_its_wrong_answer_and_a_right_answer_over_what_broke_it() -> None:
    texts = answered([0, 1, 0, 1], [[1, 0, 1], [0, 1], [0], [1]])
    found = kept(texts, pairs="answers")
    assert pairs(found) == [("i->c", "a0c0", "a0"), ("i->c", "a0c2", "a0"), ("c->i", "a1", "a1c0")]
    bare = initial_messages(QUESTION, of().prompts)
    assert all(side[:-1] == bare for one in found for side in one.sides), "as answers to the question alone"


def test_both_are_the_default_and_no_pair_is_equally_right() -> None:
    texts = answered([0, 1], [[0, 1], [0, 1]])
    found = pairs(kept(texts))
    assert found == [
        ("c over i", "a0c1", "a0c0"),
        ("i->c", "a0c1", "a0"),
        ("c over i", "a1c1", "a1c0"),
        ("c->i", "a1", "a1c0"),
    ]
    rewards = {text.text: text.graded for text in texts}
    assert all(rewards[chosen] == 1 and rewards[rejected] == 0 for _, chosen, rejected in found)
    assert kept(answered([0, 0], [[0, 0], [0, 0]])) == kept(answered([1], [[1]])) == kept([]) == []


def test_equal_texts_are_paired_once_and_the_threshold_says_what_is_right() -> None:
    texts = answered([0], [[1, 1, 1, 0, 0]], corrections=[["x", "x", "y", "z", "z"]])
    assert pairs(kept(texts)) == [("c over i", "x", "z"), ("i->c", "x", "a0"), ("i->c", "y", "a0")]
    assert [text.sample for text in distinct(texts[1:])] == [0, 2, 3]
    assert pairs(kept(answered([0.4], [[0.6, 0.4]]), threshold=0.5, pairs="answers")) == [
        ("i->c", "a0c0", "a0")
    ]


@pytest.mark.parametrize("which", ["corrections", "answers"])
def test_loss_falls_on_the_generated_tokens_of_both_sides_alone(which: str) -> None:
    chat = load_chat(settings())
    texts = answered([0], [[1, 0]], answers=["=4"], corrections=[["2+3=5", "=61"]])
    for text in texts:
        text.token_ids = [*chat.tokenizer.encode(text.text, add_special_tokens=False), *chat.closing[1]]
    (example,) = kept(texts, pairs=which)
    rejected = texts[2] if which == "corrections" else texts[0]
    for side, text in zip(example.sides, (texts[1], rejected), strict=True):
        (found,) = encode(chat, side, 512)
        learnt = found["labels"][found["labels"] != IGNORED].tolist()
        assert learnt == text.token_ids, "and the whole end of the sequence"
        assert found["input_ids"][-len(learnt) :].tolist() == learnt


def test_a_text_that_was_cut_may_be_avoided_but_not_preferred() -> None:
    texts = answered([1], [[0, 1]])
    texts[1].finish_reason = "length"
    assert len(choose(PREFERENCE, QUESTION, texts, of(), 0).kept) == 2
    texts[2].finish_reason = "length"
    chosen = choose(PREFERENCE, QUESTION, texts, of(), 0)
    assert pairs(list(chosen.kept)) == [("c->i", "a0", "a0c0")] and len(chosen.cut) == 1


def test_it_asks_as_stasc_does_and_says_what_it_keeps() -> None:
    assert PREFERENCE.objective == "dpo" and PREFERENCE.answers == ("answer", "correction")
    assert PREFERENCE.keeps(of(pairs="answers").section).startswith("right texts over wrong ones")
    assert " and " in PREFERENCE.keeps(of().section)
