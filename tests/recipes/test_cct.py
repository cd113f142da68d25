"""Keep right answers, correct wrong ones to a given solution."""

import asyncio

import pytest
from harness.traces import ScriptedAsk, plan, settings
from harness.trained import END, said, trained, trained_tokens

from stasc_ray.recipes.cct import CCT, Cct
from stasc_ray.tasks.prompts import correction_messages, initial_messages

ROW = {"id": "q1", "question": "What is 7 + 5 + 2?", "answers": ["14"], "choices": [], "documents": []}
RIGHT, WRONG = "7+5+2=14\n=14", "7+5+2=13\n=13"
SANDBOX = {"solution": "sandbox", "solution_form": "{solution}"}


def of(*, learn=True, **section):
    return plan({"recipe": "cct", **section}, learn=learn)


def kept(*answers: str, **section):
    texts = [said("answer", text, float(text == RIGHT), sample=n) for n, text in enumerate(answers)]
    return CCT.examples(ROW, texts, of(**section), 0)


def test_to_learn_answers_are_enough_and_each_is_corrected_when_asked():
    ask, asked = ScriptedAsk("a", "b"), of(n_initial=2)
    asyncio.run(CCT.turns(ROW, ask, asked, None))
    assert ask.asked == [("answer", initial_messages(ROW, asked.prompts), 2)]
    ask, asked = ScriptedAsk("a", "c"), of(learn=False)
    asyncio.run(CCT.turns(ROW, ask, asked, None))
    assert ask.asked[1] == ("correction", correction_messages(ROW, "a", asked.prompts), 1)
    ask = ScriptedAsk("c")
    asyncio.run(CCT.turns(ROW, ask, of(learn=False), [said("answer", "a", 0.0)]))
    assert [turn for turn, *_ in ask.asked] == ["correction"]


@pytest.mark.parametrize(
    ("answer", "section", "kind", "learnt"),
    [
        (RIGHT, {}, "c->c", RIGHT),
        (RIGHT, SANDBOX, "c->c", RIGHT),
        (WRONG, {}, "i->c", "= 14"),
        (WRONG, SANDBOX, "i->c", RIGHT),
        (WRONG, {"solution_form": "It is {solution}{answer_marker}"}, "i->c", "It is 14="),
    ],
)
def test_a_right_answer_is_kept_and_a_wrong_one_corrected_to_the_solution(
    answer: str, section: dict[str, str], kind: str, learnt: str
):
    (example,) = kept(answer, **section)
    assert example.kind == kind
    assert example.messages[:-1] == correction_messages(ROW, answer, of().prompts)
    assert trained(example) == [learnt + END] and trained_tokens(example) == len(learnt) + 1


def test_no_loss_falls_on_a_wrong_answer_and_equal_answers_are_learnt_once():
    found = kept(WRONG, RIGHT, WRONG, RIGHT, "=13", **SANDBOX)
    assert [(one.id, one.kind) for one in found] == [("q1/0", "i->c"), ("q1/1", "c->c"), ("q1/4", "i->c")]
    assert [trained(one) for one in found] == [[RIGHT + END]] * 3


def test_two_fifths_are_to_keep():
    assert CCT.shares(Cct()) == {("c->c",): 0.4, ("i->c",): 0.6}
    assert CCT.shares(Cct(keep_correct_share=None)) == {}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("algorithm.solution=sandbx", r"algorithm\.solution: did you mean 'sandbox'"),
        ("algorithm.solution_form=It is 14", r"expected \{solution\} in it, found 'It is 14'"),
        ("algorithm.n_corrections=2", r"algorithm\.n_corrections"),
    ],
)
def test_what_gives_no_target_is_refused(override: str, message: str):
    with pytest.raises(ValueError, match=message):
        settings("algorithm.recipe=cct", override)


def test_a_question_that_its_task_cannot_solve_is_refused():
    with pytest.raises(ValueError, match="expected a question such as"):
        other = {**ROW, "question": "Which river?"}
        CCT.examples(other, [said("answer", WRONG, 0.0)], of(**SANDBOX), 0)
