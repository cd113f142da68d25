"""Self-rewarding correction: verdicts read, asked for, constructed; what is learnt, and on what no loss ever
falls."""

import asyncio

import pytest
from harness.traces import QUESTION, ScriptedAsk, answered, plan

from stasc_ray.recipes.trace import Text
from stasc_ray.recipes.verdict import VERDICT, Verdict
from stasc_ray.tasks.prompts import assistant, correction_messages, initial_messages, user

RIGHT, WRONG = Verdict().says_right, Verdict().says_wrong


def of(*, iteration=1, **section):
    return plan({"recipe": "verdict", **section}, iteration=iteration)


def ask_about(*script, learn=True, given=None, iteration=1, **section) -> ScriptedAsk:
    """Let the turns run on texts that are given in turn; all of them are used."""
    ask = ScriptedAsk(*script)
    asked = plan({"recipe": "verdict", **section}, iteration=iteration, learn=learn)
    asyncio.run(VERDICT.turns(QUESTION, ask, asked, given))
    assert ask.left == []
    return ask


def trace(rewards, correction_rewards=(), verdicts=()) -> list[Text]:
    """A graded trace with the given verdicts of each answer."""
    texts = answered(rewards, correction_rewards)
    return texts + [
        Text("verdict", said, k, texts[j], token_ids=(7, 2))
        for j, of in enumerate(verdicts)
        for k, said in enumerate(of)
    ]


def kept(texts, iteration=1, **section):
    return VERDICT.examples(QUESTION, texts, of(iteration=iteration, **section), 0)


def target(example) -> str:
    last = example.messages[-1]
    return last["pieces"][0]["text"] if "pieces" in last else last["content"]


def kinds(examples) -> list[tuple[str, str]]:
    return [(example.kind, target(example)) for example in examples]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (RIGHT, True),
        (f"47 + 385 = 432, so it holds.\n\n{RIGHT}", True),
        ("MY ANSWER IS RIGHT. \n", True),
        (WRONG, False),
        (f"{RIGHT} No, wait. {WRONG}", False),
        (f"{WRONG} Hm, no. {RIGHT}", True),
        ("My answer is right", None),
        (f"{RIGHT} I think", None),
        ("", None),
    ],
)
def test_a_verdict_is_read_by_its_last_words(text, expected):
    assert Verdict().reads(text) is expected


def test_the_phrases_are_words_of_the_config():
    section = Verdict(says_right="Yes", says_wrong="No")
    assert [section.reads(text) for text in ("so: yes", "no", RIGHT)] == [True, False, None]


def test_to_learn_from_verdicts_and_corrections_of_every_answer_are_asked_for():
    section = {"n_initial": 2, "n_corrections": 2, "n_verdicts": 3}
    ask = ask_about(*"ab", *"cdefghijkl", **section)
    assert sorted((turn, n) for turn, _, n in ask.asked) == [
        ("answer", 2),
        *[("correction", 2)] * 2,
        *[("verdict", 3)] * 2,
    ]
    prompts = of().prompts
    first = ask.texts[0]
    asked = [*initial_messages(QUESTION, prompts), assistant("a"), user(Verdict().verdict_prompt)]
    found = {turn: messages for turn, messages, _ in reversed(ask.asked)}
    assert found["verdict"] == asked
    told = correction_messages(QUESTION, "a", prompts)
    assert found["correction"] == [*asked, assistant(WRONG), told[-1]]
    assert {text.turn for text in ask.texts if text.parent is first} == {"correction", "verdict"}


def test_a_correction_need_not_see_the_verdict():
    ask = ask_about("a", "c", "v", n_corrections=1, n_verdicts=1, correction_sees_verdict=False)
    (messages,) = [messages for turn, messages, _ in ask.asked if turn == "correction"]
    assert messages == correction_messages(QUESTION, "a", of().prompts)


def test_constructed_verdicts_are_asked_for_from_the_second_iteration_on():
    section = {"n_corrections": 1, "n_verdicts": 1, "verdicts": "constructed"}
    first = ask_about("a", "c", iteration=0, **section)
    assert [turn for turn, *_ in first.asked] == ["answer", "correction"]
    later = ask_about("a", "v", "c", iteration=1, **section)
    assert [turn for turn, *_ in later.asked] == ["answer", "verdict", "correction"]


@pytest.mark.parametrize("sees", [True, False])
def test_corrections_to_learn_follow_a_verdict_that_says_wrong(sees):
    """As when they are served: the correction's prompt holds what the model itself said."""
    section = {"n_corrections": 1, "n_verdicts": 2, "correction_sees_verdict": sees}
    ask = ask_about("a", RIGHT, f"Hm. {WRONG}", "c", **section)
    correction = ask.texts[-1]
    assert correction.parent is (ask.texts[2] if sees else ask.texts[0])
    assert (assistant(f"Hm. {WRONG}") in ask.asked[-1][1]) is sees
    for text, reward in zip(ask.texts, (0.0, 0.0, 1.0, 1.0), strict=True):
        text.reward = reward
    learnt_of = VERDICT.examples(QUESTION, ask.texts, of(**section), 0)
    assert [one.kind for one in learnt_of] == ["says wrong", "i->c"]
    assert list(learnt_of[-1].messages[:-1]) == ask.asked[-1][1]


@pytest.mark.parametrize(
    ("verdict", "corrected"), [(f"Good. {RIGHT}", False), (WRONG, True), ("I can't say.", True)]
)
def test_when_asked_only_an_answer_that_is_not_called_right_is_corrected(verdict, corrected):
    ask = ask_about("a", verdict, *(["c"] if corrected else []), learn=False, n_corrections=1)
    assert [turn for turn, *_ in ask.asked] == ["answer", "verdict", *["correction"] * corrected]
    if corrected:
        answer, said, correction = ask.texts
        assert said.parent is answer and correction.parent is said
        assert ask.asked[-1][1][-2] == assistant(verdict), "what it said itself"


def test_given_answers_are_judged_and_not_asked_for():
    (given,) = answered([0])
    ask = ask_about(WRONG, "c", learn=False, given=[given], n_corrections=1)
    assert ask.texts[0].parent is given


def test_verdicts_that_agree_with_the_reward_are_learnt():
    said = [RIGHT, f"Sure. {RIGHT}", WRONG, "Who knows?"]
    found = kept(trace([1, 0], verdicts=[said, said]), learn_answers="none")
    assert kinds(found) == [("says right", RIGHT), ("says right", f"Sure. {RIGHT}"), ("says wrong", WRONG)]
    assert found[0].messages[-2] == user(Verdict().verdict_prompt)
    assert found[0].messages[-3] == assistant("a0") and found[2].messages[-3] == assistant("a1")


def test_constructed_verdicts_follow_from_the_reward_in_the_first_iteration_alone():
    disagreeing = trace([1, 0], verdicts=[[WRONG], [RIGHT]])
    section = {"verdicts": "constructed", "n_verdicts": 2, "learn_answers": "none"}
    assert (
        kinds(kept(trace([1, 0]), iteration=0, **section))
        == [("says right", RIGHT)] * 2 + [("says wrong", WRONG)] * 2
    )
    assert kept(disagreeing, iteration=1, **section) == [], (
        "from then on the model's own, and these were wrong"
    )


def test_right_corrections_are_learnt_after_being_told_that_the_answer_is_wrong():
    found = kept(trace([1, 0], [[1, 0], [0, 1]]), learn_answers="none")
    assert kinds(found) == [("c->c", "a0c0"), ("i->c", "a1c1")]
    for example, answer in zip(found, ("a0", "a1"), strict=True):
        told = correction_messages(QUESTION, answer, of().prompts)
        assert example.messages[-3:-1] == [assistant(WRONG), told[-1]]


@pytest.mark.parametrize(
    ("learn_answers", "expected"), [("none", []), ("right", ["a0"]), ("all", ["a0", "a1"])]
)
def test_which_first_answers_are_learnt_along(learn_answers, expected):
    found = kept(trace([1, 0]), learn_answers=learn_answers)
    assert kinds(found) == [("answer", text) for text in expected]
    assert all(one.messages[:-1] == initial_messages(QUESTION, of().prompts) for one in found)


@pytest.mark.parametrize("learn_answers", ["none", "right", "all"])
@pytest.mark.parametrize("iteration", [0, 1])
@pytest.mark.parametrize("sees", [True, False])
def test_no_loss_falls_on_a_wrong_answer_unless_the_config_says_so(learn_answers, iteration, sees):
    texts = trace([1, 0, 0], [[1, 0], [0, 1], [0, 0]], [[RIGHT, WRONG, "?"]] * 3)
    section = {"learn_answers": learn_answers, "verdicts": "constructed", "correction_sees_verdict": sees}
    found = kept(texts, iteration, **section)
    assert {"says right", "says wrong", "i->c", "c->c"} <= {one.kind for one in found}
    for example in found:
        *before, last = example.messages
        assert not any(message.get("train") or message.get("pieces") for message in before)
        assert last["role"] == "assistant"
        assert last["train"] if "content" in last else all(piece["train"] for piece in last["pieces"])
    wrong = {text.text for text in texts if text.turn != "verdict" and not text.reward}
    learnt = {target(one) for one in found}
    assert learnt & wrong == ({"a1", "a2"} if learn_answers == "all" else set())
    assert "?" not in learnt


def test_examples_of_a_question_have_ids_of_their_own_and_a_failed_trace_has_none():
    texts = trace([1, 0], [[1, 1], [1, 1]], [[RIGHT, RIGHT], [WRONG, WRONG]])
    found = kept(texts)
    assert len({one.id for one in found}) == len(found) == 9
    assert [one.id for one in found] == [one.id for one in kept(texts)]
    assert kept([]) == []


def test_verdicts_are_balanced_and_the_other_classes_all_stay():
    assert VERDICT.shares(Verdict()) == {("says right",): 0.5, ("says wrong",): 0.5}
    assert VERDICT.shares(Verdict(balance=0.3)) == {("says right",): 0.3, ("says wrong",): 0.7}
    assert VERDICT.shares(Verdict(balance=None)) == {}
    assert VERDICT.policy == "until_right" and "verdict" not in VERDICT.answers
