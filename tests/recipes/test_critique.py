"""Critiques in words: asked, constructed and learnt; a critique is worth what its correction is worth."""

import asyncio

import pytest
from harness.traces import ScriptedAsk, plan, settings
from harness.trained import END, said, trained, trained_tokens

from stasc_ray.recipes.critique import CRITIQUE, Critique
from stasc_ray.recipes.trace import Text, finals
from stasc_ray.tasks.prompts import assistant, correction_messages, initial_messages, user

ROW = {"id": "q1", "question": "What is 7 + 5 + 2?", "answers": ["14"], "choices": [], "documents": []}
RIGHT, WRONG = "7+5+2=14\n=14", "7+5+2=13\n=13"
NOTHING = "Nothing is wrong."
CONSTRUCTED = {"critiques": "constructed", "critic": "sandbox"}


def of(*, iteration=0, learn=True, **section):
    return plan({"recipe": "critique", **section}, iteration=iteration, learn=learn)


def ask_about(*script, learn=True, given=None, iteration=0, **section) -> ScriptedAsk:
    """Let the turns run on texts that are given in turn; all of them are used."""
    ask = ScriptedAsk(*script)
    asyncio.run(CRITIQUE.turns(ROW, ask, of(iteration=iteration, learn=learn, **section), given))
    assert ask.left == []
    return ask


def trace(answer: str, critique: str | None, *corrections: str) -> list[Text]:
    """A graded trace of one answer; without a critique its corrections follow a constructed one."""
    first = said("answer", answer, float(answer == RIGHT))
    between = [said("critique", critique, None, first)] if critique else []
    last = (between or [first])[-1]
    return [first, *between, *(said("correction", one, float(one == RIGHT), last) for one in corrections)]


def kept(texts, iteration=1, **section):
    return CRITIQUE.examples(ROW, texts, of(iteration=iteration, **section), 0)


def test_corrections_are_asked_in_sight_of_each_critique():
    ask = ask_about("a", "b", *"vwxy", *"ijklmnop", n_initial=2)
    assert sorted((turn, n) for turn, _, n in ask.asked) == [
        ("answer", 2),
        *[("correction", 2)] * 4,
        *[("critique", 2)] * 2,
    ]
    prompts = of().prompts
    asked = [*initial_messages(ROW, prompts), assistant("a"), user(Critique().critique_prompt)]
    assert ask.asked[1][1] == asked
    for (turn, messages, _), correction in zip(ask.asked[3:], ask.texts[6::2], strict=True):
        answer, critique, _ = correction.lineage
        request = correction_messages(ROW, answer.text, prompts)[-1]
        before = [*initial_messages(ROW, prompts), assistant(answer.text), asked[-1]]
        assert (turn, messages) == ("correction", [*before, assistant(critique.text), request])


@pytest.mark.parametrize(("critique", "corrected"), [(f"Fine. {NOTHING}", False), ("7+5 is 12.", True)])
def test_when_asked_an_answer_without_fault_is_left(critique: str, corrected: bool):
    ask = ask_about(WRONG, critique, *([RIGHT] if corrected else []), learn=False, n_corrections=1)
    (root, *_, last) = ask.texts
    assert list(finals(ask.texts, root, CRITIQUE.answers)) == [last if corrected else root]
    always = ask_about(WRONG, critique, RIGHT, learn=False, n_corrections=1, says_right="")
    assert [text.turn for text in always.texts] == ["answer", "critique", "correction"]


def test_a_given_answer_is_criticized():
    given = said("answer", WRONG, 0.0)
    ask = ask_about("7+5", RIGHT, learn=False, given=[given], n_corrections=1)
    assert [text.lineage[0] for text in ask.texts] == [given, given]


@pytest.mark.parametrize("sees", [True, False])
@pytest.mark.parametrize(("answer", "said_of_it"), [(WRONG, "7+5+2=13"), (RIGHT, NOTHING)])
def test_constructed_critiques_are_the_critics(answer: str, said_of_it: str, sees: bool):
    section = {**CONSTRUCTED, "corrections_see_constructed": sees, "n_corrections": 1}
    ask = ask_about(answer, RIGHT, **section)
    (_, messages, _) = ask.asked[1]
    assert (assistant(said_of_it) in [{"role": m["role"], "content": m["content"]} for m in messages]) is sees
    if not sees:
        assert messages == correction_messages(ROW, answer, of().prompts)
    assert [text.turn for text in ask.texts] == ["answer", "correction"], "the critic is no writer"
    later = ask_about(answer, "v", "w", RIGHT, RIGHT, iteration=1, **section)
    assert [text.turn for text in later.texts].count("critique") == 2, "the model's own from then on"


@pytest.mark.parametrize("critique", ["It is 14.", None])
def test_critique_and_correction_carry_loss_and_nothing_else(critique: str | None):
    section = CONSTRUCTED if critique is None else {}
    (example,) = kept(trace(WRONG, critique, WRONG, RIGHT), iteration=0, **section)
    learnt = critique or "7+5+2=13"
    assert trained(example) == [learnt + END, RIGHT + END]
    assert trained_tokens(example) == len(learnt) + 1 + len(RIGHT) + 1
    assert example.kind == "i->c" and example.id == "q1/0/1"


def test_the_direct_view_learns_the_correction_as_the_answer_to_the_bare_question():
    (example,) = kept(trace(WRONG, "It is 14.", WRONG, RIGHT), view="direct")
    assert example.messages[:-1] == initial_messages(ROW, of().prompts)
    assert trained(example) == [RIGHT + END] and trained_tokens(example) == len(RIGHT) + 1
    ask = ask_about("a", learn=False, view="direct", n_corrections=1)
    assert [text.turn for text in ask.texts] == ["answer"], "and it answers without corrections"
    ask = ask_about(WRONG, RIGHT, iteration=3, view="direct", n_corrections=1, **CONSTRUCTED)
    assert [text.turn for text in ask.texts] == ["answer", "correction"], "it never learns to criticize"


@pytest.mark.parametrize(
    ("answer", "critique", "correction", "says_right", "expected"),
    [
        (WRONG, "7+5 is 12.", RIGHT, NOTHING, ["i->c"]),
        (WRONG, "7+5 is 12.", WRONG, NOTHING, []),
        (WRONG, NOTHING, RIGHT, NOTHING, []),
        (RIGHT, NOTHING, RIGHT, NOTHING, ["c->c"]),
        (RIGHT, "7+5 is 11.", RIGHT, NOTHING, []),
        (RIGHT, NOTHING, WRONG, NOTHING, []),
        (RIGHT, "7+5 is 11.", RIGHT, "", ["c->c"]),
        (WRONG, NOTHING, RIGHT, "", ["i->c"]),
    ],
)
def test_a_critique_is_kept_if_its_correction_is_right_and_it_did_not_misjudge(
    answer: str, critique: str, correction: str, says_right: str, expected: list[str]
):
    found = kept(trace(answer, critique, correction), says_right=says_right)
    assert [one.kind for one in found] == expected


def test_a_constructed_critique_that_contradicts_the_reward_is_not_learnt():
    other_way = "5+7+2=14\n=14"  # as right, but not in the critic's words
    texts = [said("answer", other_way, 1.0)]
    texts.append(said("correction", RIGHT, 1.0, texts[0]))
    assert kept(texts, iteration=0, **CONSTRUCTED) == []


@pytest.mark.parametrize(
    ("learn_answers", "expected"), [("none", []), ("right", [RIGHT]), ("all", [RIGHT, WRONG])]
)
def test_which_first_answers_are_learnt_along(learn_answers: str, expected: list[str]):
    texts = [*trace(RIGHT, NOTHING, WRONG), *trace(WRONG, NOTHING, WRONG, WRONG)]
    found = kept(texts, learn_answers=learn_answers)
    assert [trained(one) for one in found] == [[text + END] for text in expected]
    assert [one.id for one in found] == ["q1/0/1", "q1/1/2"][: len(expected)]
    assert all(one.messages[:-1] == initial_messages(ROW, of().prompts) for one in found)


def test_shares_balance_corrections_of_right_and_wrong_answers():
    assert CRITIQUE.shares(Critique()) == {}
    assert CRITIQUE.shares(Critique(keep_correct_share=0.25)) == {("c->c",): 0.25, ("i->c",): 0.75}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"critiques": "constructed"}, r"expected a critic .* found critic = None"),
        ({**CONSTRUCTED, "says_right": " "}, r"the words that find nothing wrong, found .*' '"),
        ({**CONSTRUCTED, "critic": "sandbx"}, r"algorithm\.critic: did you mean 'sandbox'"),
    ],
)
def test_what_no_critic_can_write_is_refused(section: dict[str, str], message: str):
    with pytest.raises(ValueError, match=message):
        settings(algorithm={"recipe": "critique", **section})
