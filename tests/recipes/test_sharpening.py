"""Sharpening: the answer that the model itself thinks best is learnt, and no reward has a say."""

import asyncio

import pytest
from harness.traces import QUESTION, ScriptedAsk, plan
from harness.trained import END, said, trained, trained_tokens

from stasc_ray.config import Columns, Reward
from stasc_ray.recipes.sharpening import SHARPENING
from stasc_ray.recipes.trace import Text
from stasc_ray.tasks.canonical import canonical_row
from stasc_ray.tasks.prompts import assistant, initial_messages, user
from stasc_ray.tasks.rewards import gradable

SAYS_RIGHT = "So my answer is right."


def of(*, learn=True, **section):
    return plan({"recipe": "sharpening", **section}, learn=learn)


def answered(*answers: tuple[str, float], rewards: float = 0.0) -> list[Text]:
    return [
        said("answer", text, rewards, logprob=logprob, sample=n) for n, (text, logprob) in enumerate(answers)
    ]


def best(texts, **section) -> list[str]:
    found = SHARPENING.examples(QUESTION, texts, of(**section), 0)
    return [piece["text"] for one in found for piece in one.messages[-1]["pieces"]]


@pytest.mark.parametrize("by", ["likelihood", "majority", "verdict"])
def test_verdicts_are_asked_for_if_they_decide_and_to_learn_alone(by: str):
    ask = ScriptedAsk("a", "b", *["v"] * (4 if by == "verdict" else 0))
    asked = of(by=by, n_initial=2, n_verdicts=2)
    asyncio.run(SHARPENING.turns(QUESTION, ask, asked, None))
    assert ask.left == [] and ask.asked[0] == ("answer", initial_messages(QUESTION, asked.prompts), 2)
    for answer, (turn, messages, n) in zip("ab", ask.asked[1:], strict=False):
        assert (turn, n) == ("verdict", 2)
        assert messages[-2:] == [assistant(answer), user(asked.section.verdict_prompt)]
    ask = ScriptedAsk("a", "b")
    asyncio.run(SHARPENING.turns(QUESTION, ask, of(by=by, n_initial=2, learn=False), None))
    assert [turn for turn, *_ in ask.asked] == ["answer"]


def test_log_probabilities_are_asked_for():
    class Ask(ScriptedAsk):
        async def __call__(self, turn, messages, *, n=1, parent=None, logprob=False):
            given.append((turn, logprob))
            return await super().__call__(turn, messages, n=n, parent=parent)

    given: list[tuple[str, bool]] = []
    asyncio.run(SHARPENING.turns(QUESTION, Ask("a", "v"), of(n_initial=1, by="verdict"), None))
    assert given == [("answer", True), ("verdict", False)]


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_the_likeliest_answer_is_learnt_whatever_its_reward(reward: float):
    texts = answered(("a=1", -3.0), ("b=2", -2.0), ("c=3", -4.0), rewards=reward)
    (example,) = SHARPENING.examples(QUESTION, texts, of(), 0)
    assert trained(example) == ["b=2" + END] and trained_tokens(example) == 4
    assert example.messages[:-1] == initial_messages(QUESTION, of().prompts)
    assert (example.id, example.kind) == ("q1/1", "best")


def test_questions_without_references_can_be_learnt():
    texts = answered(("a=1", -3.0))
    found = SHARPENING.examples({**QUESTION, "answers": []}, texts, of(), 0)
    assert [trained(one) for one in found] == [["a=1" + END]]


@pytest.mark.parametrize("answers", [[], None, ""])
def test_questions_without_references_are_read_as_the_docs_say(answers: object):
    """docs/methods.md: by `questions.columns.no_answer`, a text that the reward can read."""
    row = canonical_row({"question": "7 + 5?", "answers": answers}, Columns(no_answer="0"))
    assert gradable([row], Reward(name="math"), "=", skip=False) == [row]
    with pytest.raises(ValueError, match="no answer"):
        canonical_row({"question": "7 + 5?", "answers": answers}, Columns())


def test_likelihood_per_token_does_not_prefer_short_answers():
    texts = answered(("=1", -2.0), ("7+5=12\n=12", -3.0))
    assert best(texts) == ["=1"] and best(texts, length_normalized=True) == ["7+5=12\n=12"]


def test_the_majority_is_by_final_answers_and_its_likeliest_is_learnt():
    texts = answered(("=1", -1.0), ("1+1\n=2", -9.0), ("= 2", -8.0), ("2=2", -10.0))
    assert best(texts, by="majority") == ["= 2"]
    assert best(texts, by="majority", min_votes=3) == ["= 2"]
    assert best(texts, by="majority", min_votes=4) == []


def test_choices_are_counted_by_letter():
    texts = answered(("A is wrong. = B", -5.0), ("= B", -4.0), ("= A", -1.0))
    row = {**QUESTION, "choices": ["Rhine", "Danube"], "answers": ["A"]}
    (example,) = SHARPENING.examples(row, texts, of(by="majority"), 0)
    assert trained(example) == ["= B" + END]


def test_the_answer_that_the_model_calls_right_most_often_is_learnt():
    texts = answered(("=1", -1.0), ("=2", -2.0), ("=3", -3.0))
    for answer, verdicts in zip(texts[:3], (["?", "?"], [SAYS_RIGHT, "?"], [SAYS_RIGHT] * 2), strict=True):
        texts += [said("verdict", text, None, answer) for text in verdicts]
    assert best(texts, by="verdict") == ["=3"]
    assert best(texts, by="verdict", min_votes=3) == []
    assert best(texts[:1], by="verdict") == [], "nobody called it right"


def test_the_first_of_equals_is_learnt():
    texts = answered(("=1", -1.0), ("=2", -1.0))
    assert best(texts) == ["=1"] and best(texts[::-1]) == ["=2"]


def test_only_finished_answers_take_part():
    texts = answered(("=1", -1.0), ("=2", -2.0), (" ", -0.1))
    texts[0].finish_reason = "length"
    assert best(texts) == ["=2"] and best(texts, by="majority") == ["=2"]
    assert best(texts[:1]) == []


def test_answers_without_log_probabilities_are_refused():
    with pytest.raises(ValueError, match="expected answers with log-probabilities, found one without"):
        best([said("answer", "=1", 0.0)])
