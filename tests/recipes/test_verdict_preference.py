"""Pairs of verdicts and corrections: which stands over which, in which conversation, and on which tokens."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from harness.traces import QUESTION, ScriptedAsk, plan, settings
from harness.trained import END, said, trained, trained_tokens

from stasc_ray.recipes.recipe import Example, Plan
from stasc_ray.recipes.selection import choose
from stasc_ray.recipes.trace import Text
from stasc_ray.recipes.verdict import VERDICT, second_messages, verdict_messages
from stasc_ray.recipes.verdict_preference import VERDICT_PREFERENCE, VerdictPreference
from stasc_ray.tasks.prompts import correction_messages

RIGHT, WRONG = "=", "+1"
PHRASES = {"says_right": RIGHT, "says_wrong": WRONG, "verdict_prompt": "Is it right?"}
SAMPLED = {"verdicts": "sampled"}
Pair = tuple[str, str, str]


def of(*, learn: bool = True, iteration: int = 0, **section: Any) -> Plan:
    given = {"recipe": "verdict_preference", **PHRASES, **section}
    return plan(given, learn=learn, iteration=iteration)


def kept(texts: list[Text], **section: Any) -> list[Example]:
    return list(VERDICT_PREFERENCE.examples(QUESTION, texts, of(**section), 0))


def pairs(examples: list[Example]) -> list[Pair]:
    """(class, chosen, rejected), as the tokens that carry loss; there is nothing else of them."""
    found = []
    for example in examples:
        sides = [replace(example, messages=side, rejected=None) for side in example.sides]
        stretches = [trained(side) for side in sides]
        for side, (stretch,) in zip(sides, stretches, strict=True):
            assert trained_tokens(side) == len(stretch.removesuffix(END)) + 1 and stretch.endswith(END)
        found.append((example.kind, *(stretch.removesuffix(END) for (stretch,) in stretches)))
    return found


def answer(text: str, reward: float, sample: int = 0, **fields: Any) -> Text:
    return said("answer", text, reward, sample=sample, **fields)


def corrections(parent: Text, *given: tuple[str, float]) -> list[Text]:
    return [said("correction", text, reward, parent, sample=n) for n, (text, reward) in enumerate(given)]


def verdicts(parent: Text, *given: str) -> list[Text]:
    return [said("verdict", text, None, parent, sample=n) for n, text in enumerate(given)]


@pytest.mark.parametrize("iteration", [0, 1])
def test_the_phrase_that_agrees_with_the_reward_stands_over_the_other(iteration: int) -> None:
    texts = [answer("2=3", 0, 0), answer("2=2", 1, 1)]
    told = of(iteration=iteration)
    found = list(VERDICT_PREFERENCE.examples(QUESTION, texts, told, 0))
    assert pairs(found) == [("says wrong", WRONG, RIGHT), ("says right", RIGHT, WRONG)]
    for example, text in zip(found, texts, strict=True):
        asked = verdict_messages(QUESTION, text, told)
        assert all(side[:-1] == asked for side in example.sides)
    assert [one.id for one in found] == ["q1/0/0", "q1/1/0"]


def test_a_sampled_right_verdict_stands_over_a_sampled_wrong_one_if_there_are_both() -> None:
    first, second, third = answer("2=3", 0, 0), answer("2=2", 1, 1), answer("=2", 1, 2)
    texts = [first, second, third]
    texts += verdicts(first, "?", f"1{RIGHT}", f"2{WRONG}", WRONG, RIGHT)
    texts += verdicts(second, RIGHT, f"3{WRONG}") + verdicts(third, RIGHT, RIGHT, "?")
    found = kept(texts, **SAMPLED)
    assert pairs(found) == [("says wrong", f"2{WRONG}", f"1{RIGHT}"), ("says right", RIGHT, f"3{WRONG}")]


def test_a_right_correction_stands_over_a_wrong_one_after_a_verdict_that_says_wrong() -> None:
    first, second = answer("2=3", 0, 0), answer("2=2", 1, 1)
    (verdict,) = verdicts(first, f"3{WRONG}")
    texts = [first, second, verdict]
    texts += corrections(verdict, ("a", 0), ("b", 1), ("b", 1), ("c", 1), ("d", 0), ("e", 0))
    texts += corrections(second, ("f", 1), ("g", 0), ("h", 1))
    found = [one for one in kept(texts) if one.kind == "c over i"]
    assert pairs(found) == [("c over i", "b", "a"), ("c over i", "c", "d"), ("c over i", "f", "g")]
    for example, text, before in zip(
        found, (first, first, second), (f"3{WRONG}", f"3{WRONG}", WRONG), strict=True
    ):
        asked = second_messages(QUESTION, text, before, of())
        assert all(side[:-1] == asked for side in example.sides)
        assert asked[-2]["content"] == before
    unseen = [one for one in kept(texts, correction_sees_verdict=False) if one.kind == "c over i"]
    assert unseen[0].messages[:-1] == correction_messages(QUESTION, "2=3", of().prompts)


def test_no_pair_is_equally_right() -> None:
    first = answer("2=3", 0)
    assert pairs(kept([first, *corrections(first, ("a", 0), ("b", 0))])) == [("says wrong", WRONG, RIGHT)]
    assert pairs(kept([first, *corrections(first, ("a", 1), ("b", 1))])) == [("says wrong", WRONG, RIGHT)]
    assert kept([]) == [] == kept([first], **SAMPLED)
    half = answer("2=3", 0.5)
    graded = [half, *corrections(half, ("a", 0.6), ("b", 0.4))]
    assert pairs(kept(graded, threshold=0.5)) == [("says right", RIGHT, WRONG), ("c over i", "a", "b")]


def test_equal_answers_count_once_with_the_corrections_of_both() -> None:
    one, other = answer("2=3", 0, 0), answer("2=3", 0, 1)
    (same, differs) = (verdicts(other, WRONG)[0], verdicts(one, f"7{WRONG}")[0])
    texts = [
        one,
        other,
        same,
        differs,
        *corrections(one, ("x", 1), ("a", 1)),
        *corrections(same, ("a", 1), ("b", 0)),
    ]
    texts += corrections(differs, ("c", 0), ("d", 1))
    found = kept(texts)
    assert pairs(found) == [("says wrong", WRONG, RIGHT), ("c over i", "x", "b"), ("c over i", "d", "c")]
    assert found[1].messages[-3]["content"] == WRONG, "said by the model or told, it is the same conversation"
    assert found[2].messages[-3]["content"] == f"7{WRONG}" and len({one.id for one in found}) == 3


def test_a_text_that_was_cut_may_be_avoided_but_not_preferred() -> None:
    first = answer("2=3", 0)
    attempts, judged = (
        corrections(first, ("a", 1), ("b", 1), ("c", 0)),
        verdicts(first, WRONG, f"2{WRONG}", RIGHT),
    )
    texts, whole = [first, *attempts, *judged], [("says wrong", f"2{WRONG}", RIGHT), ("c over i", "b", "c")]
    for text in (attempts[0], attempts[2], judged[0], judged[2]):
        text.finish_reason = "length"
        text.token_ids = list(text.token_ids)[:-1]
    chosen = choose(VERDICT_PREFERENCE, QUESTION, texts, of(**SAMPLED), 0)
    kinds = [(one.kind, *(side[-1]["pieces"][0]["text"] for side in one.sides)) for one in chosen.kept]
    assert kinds == whole and not chosen.cut, "whole texts go first"
    attempts[1].finish_reason = judged[1].finish_reason = "length"
    chosen = choose(VERDICT_PREFERENCE, QUESTION, texts, of(**SAMPLED), 0)
    assert not chosen.kept and len(chosen.cut) == 2


@pytest.mark.parametrize("sees", [True, False])
@pytest.mark.parametrize("iteration", [0, 1])
def test_every_pair_stands_in_a_conversation_that_was_asked(sees: bool, iteration: int) -> None:
    """In learning's turns, and by the recipe's own policy when an answer is called wrong."""
    section = {"correction_sees_verdict": sees, "n_corrections": 2, "n_verdicts": 2}
    script = ["2=3", *(["?", WRONG] if iteration else []), "a", "b"]
    ask, asked = ScriptedAsk(*script), of(iteration=iteration, **section)
    asyncio.run(VERDICT_PREFERENCE.turns(QUESTION, ask, asked, None))
    for text, reward in ((ask.texts[0], 0.0), (ask.texts[-2], 1.0), (ask.texts[-1], 0.0)):
        text.reward = reward
    for text in ask.texts:
        text.token_ids = said(text.turn, text.text, None).token_ids
    found = list(VERDICT_PREFERENCE.examples(QUESTION, ask.texts, asked, 0))
    assert pairs(found) == [("says wrong", WRONG, RIGHT), ("c over i", "a", "b")]
    served = ScriptedAsk("2=3", WRONG, "c")
    asyncio.run(
        VERDICT_PREFERENCE.turns(
            QUESTION, served, of(learn=False, n_corrections=1, **{"correction_sees_verdict": sees}), None
        )
    )
    for example, (_, messages, _) in zip(found, served.asked[1:], strict=True):
        assert all(side[:-1] == messages for side in example.sides)
    assert list(found[1].messages[:-1]) == ask.asked[-1][1]


def test_verdicts_are_balanced_and_it_is_asked_as_verdict_is() -> None:
    section = VerdictPreference()
    assert section.verdicts == "constructed"
    assert VERDICT_PREFERENCE.shares(section) == {("says right",): 0.5, ("says wrong",): 0.5}
    assert VERDICT_PREFERENCE.shares(VerdictPreference(balance=None)) == {}
    assert VERDICT_PREFERENCE.objective == "dpo" and VERDICT_PREFERENCE.policy == "until_right"
    for name in ("turns", "judge", "answers", "verdicts"):
        assert getattr(VERDICT_PREFERENCE, name) == getattr(VERDICT, name)
    assert VERDICT_PREFERENCE.says_right(section, section.says_right) is True


def test_first_answers_are_in_no_pair() -> None:
    with pytest.raises(ValueError, match=r"algorithm\.learn_answers"):
        settings("algorithm.recipe=verdict_preference", "algorithm.learn_answers=all")
