"""What each policy asks, in which conversation, and which of the answers counts."""

import asyncio
import math
from dataclasses import replace

import pytest
from harness.traces import QUESTION, ScriptedAsk, plan, settings

from stasc_ray.config import Config
from stasc_ray.recipes import RECIPES, answering
from stasc_ray.recipes.critique import CRITIQUE
from stasc_ray.recipes.policies import POLICIES, policy, seen, votes_of
from stasc_ray.recipes.recipe import Recipe
from stasc_ray.recipes.rft import RFT
from stasc_ray.recipes.stasc import STASC
from stasc_ray.recipes.trace import Text, finals, roots
from stasc_ray.recipes.verdict import VERDICT
from stasc_ray.tasks.chat import content
from stasc_ray.tasks.prompts import assistant, correction_messages, initial_messages, user

RIGHT, WRONG = "I checked. My answer is right.", "No. My answer is wrong."
PROMPTS = plan(preset="qa").prompts
TEXTS = PROMPTS.policies
SAMPLES = {name: max(1, one.least_samples) for name, one in POLICIES.items()}


def run(
    name: str, *script: str, recipe: Recipe = STASC, rounds: int = 1, samples: int = 1, cut=()
) -> ScriptedAsk:
    """Let a policy answer with these texts, in turn; all of them are used. `cut`: which were cut."""
    ask = ScriptedAsk(*script, cut=cut)
    asked = plan({"recipe": recipe.section().recipe}, preset="qa", learn=False, rounds=rounds)
    asked = replace(asked, n_initial=samples, n_corrections=min(1, asked.n_corrections))
    asyncio.run(policy(name, recipe).asks(recipe, QUESTION, ask, asked, None))
    assert ask.left == []
    return ask


def of_recipe(recipe: Recipe) -> Config:
    return settings(algorithm={"recipe": recipe.section().recipe})


def turns(ask: ScriptedAsk) -> list[tuple[str, str]]:
    return [(text.turn, text.text) for text in ask.texts]


def asked(ask: ScriptedAsk, number: int) -> list[tuple[str, str]]:
    return [(message["role"], content(message)) for message in ask.asked[number][1]]


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_answers_for_every_recipe_within_what_it_says_it_needs(name: str, recipe: Recipe):
    """The endpoint charges by `final_rounds` and `texts_beside`, and asks the final turn by them."""
    for rounds in range(4):
        ask, of = ScriptedAsk(*["no"] * 60), POLICIES[name]
        asked = plan({"recipe": recipe.section().recipe}, preset="qa", learn=False, rounds=rounds)
        asked = replace(asked, n_initial=SAMPLES[name], n_corrections=min(1, asked.n_corrections))
        asyncio.run(of.asks(recipe, QUESTION, ask, asked, None))
        for root in roots(ask.texts):
            chain = [text for text in ask.texts if text.root is root]
            answers = [text for text in chain if text.turn in recipe.answers]
            assert len(answers) - 1 in of.final_rounds(recipe, asked), "none says right, is cut or stays"
            assert len(chain) - len(answers) <= of.texts_beside(recipe, asked)
        ends = [end for root in roots(ask.texts) for end in finals(ask.texts, root, recipe.answers)]
        assert votes_of(name, recipe, ends, ask.texts, (), of_recipe(recipe)), "and one of them is chosen"


def test_a_text_that_thinks_step_by_step_is_asked_to():
    ask = run("chain_of_thought", "hm")
    *before, (_, last) = asked(ask, 0)
    plain = initial_messages(QUESTION, PROMPTS)
    assert last == f"{content(plain[-1])}\n\n{TEXTS.step_by_step}" and len(before) == len(plain) - 1


def test_rci_criticizes_then_improves_and_each_round_sees_the_answer_before_alone():
    ask = run("rci", "one", "bad", "two", "worse", "three", rounds=2)
    assert turns(ask) == [("answer", "one"), ("critique", "bad"), ("correction", "two"), ("critique", "worse"), ("correction", "three")]  # fmt: skip
    plain = initial_messages(QUESTION, PROMPTS)
    first = [*plain, assistant("one"), user(TEXTS.critique)]
    assert ask.asked[1][1] == first
    assert ask.asked[2][1] == [*first, assistant("bad"), user(TEXTS.improve)]
    assert ask.asked[3][1] == [*plain, assistant("two"), user(TEXTS.critique)]


def test_self_refine_sees_all_rounds_before():
    ask = run("self_refine", "one", "bad", "two", "worse", "three", rounds=2)
    plain, asks = initial_messages(QUESTION, PROMPTS), (user(TEXTS.feedback), user(TEXTS.refine))
    first = [*plain, assistant("one"), asks[0], assistant("bad"), asks[1]]
    assert ask.asked[2][1] == first
    assert ask.asked[4][1] == [*first, assistant("two"), asks[0], assistant("worse"), asks[1]]


def test_self_refine_ends_when_its_feedback_finds_nothing():
    ask = run("self_refine", "one", "step 2 is off", "two", "Fine. it is correct.", rounds=5)
    assert turns(ask)[-1] == ("critique", "Fine. it is correct.") and len(ask.texts) == 4
    assert asked(ask, 1)[-1][1] == TEXTS.feedback and asked(ask, 2)[-1][1] == TEXTS.refine


def test_with_history_a_correction_sees_every_answer_before_it():
    ask = run("with_history", "one", "two", "three", rounds=2)
    first = correction_messages(QUESTION, "one", PROMPTS)
    assert ask.asked[1][1] == first
    assert ask.asked[2][1] == [*first, assistant("two"), first[-1]]


def test_verification_answers_its_questions_without_the_answer_in_view():
    ask = run("chain_of_verification", "Rhine {checks}", "Where is it?", "In the west.", "Danube")
    assert [turn for turn, _ in turns(ask)] == ["answer", "checks", "findings", "correction"]
    assert asked(ask, 1)[-2:] == [("assistant", "Rhine {checks}"), ("user", TEXTS.checks)]
    assert asked(ask, 2) == [("user", TEXTS.findings.replace("{checks}", "Where is it?"))]
    told = asked(ask, 3)[-1][1]
    assert (
        "Where is it?" in told
        and "In the west." in told
        and asked(ask, 3)[-2] == ("assistant", "Rhine {checks}")
    )


def test_in_a_debate_each_sees_the_others_and_not_itself():
    ask = run("debate", "one", "two", "three", "1", "2", "3", samples=3)
    for number, own in enumerate(("one", "two", "three")):
        told = asked(ask, 1 + number)[-1][1]
        assert [other in told for other in ("one", "two", "three") if other != own] == [True, True]
        assert own not in told and asked(ask, 1 + number)[-2] == ("assistant", own)


def test_in_a_debate_each_goes_on_in_its_own_conversation():
    ask = run("debate", "one", "two", "1", "2", "uno", "due", samples=2, rounds=2)
    said = [(role, text) for role, text in asked(ask, 3) if role == "assistant"]
    assert said == [("assistant", "one"), ("assistant", "1")] and "2" in asked(ask, 3)[-1][1]
    assert asked(ask, 3)[: len(asked(ask, 1))] == asked(ask, 1)


def test_deepening_goes_on_where_the_tokens_ended_with_twice_as_many():
    ask = run("deepening", "so", "so far", "done", rounds=2, cut=("so", "so far"))
    assert ask.budgets == [0.25, 0.5, 1.0]
    assert asked(ask, 2)[-4:] == [("assistant", "so"), ("user", TEXTS.deepen), ("assistant", "so far"), ("user", TEXTS.deepen)]  # fmt: skip
    assert len(run("deepening", "done", rounds=2).texts) == 1, "what was not cut is done"


def test_until_right_a_recipe_without_verdicts_is_asked_for_one():
    ask = run("until_right", "one", WRONG, "two", RIGHT, rounds=5, recipe=RFT)
    assert [turn for turn, _ in turns(ask)] == ["answer", "verdict", "correction", "verdict"]
    assert asked(ask, 1)[-1][1] == TEXTS.verdict
    seen = [*initial_messages(QUESTION, PROMPTS), assistant("one"), user(TEXTS.verdict), assistant(WRONG)]
    assert ask.asked[2][1] == [*seen, correction_messages(QUESTION, "one", PROMPTS)[-1]]


def test_a_recipe_s_own_verdicts_are_asked_for_its_way():
    ask = run("vote_by_verdict", "one", RIGHT, WRONG, RIGHT, "who knows", recipe=VERDICT)
    assert asked(ask, 1)[-1][1] == VERDICT.section().verdict_prompt  # type: ignore[attr-defined]


def chosen(name: str, texts: list[Text], recipe: Recipe = STASC) -> list[tuple[str, float]]:
    ends = [text for text in texts if text.turn in recipe.answers]
    return [(text.text, votes) for text, votes in votes_of(name, recipe, ends, texts, (), of_recipe(recipe))]


def test_equal_answers_add_their_likelihoods_up():
    of = [("a", -0.2), ("b", -2.0), ("b", -2.4), ("c", None)]
    texts = [
        Text("answer", text, n, token_ids=(1, 2), logprob=logprob) for n, (text, logprob) in enumerate(of)
    ]
    found = dict(chosen("vote_by_likelihood", texts))
    assert found["a"] == pytest.approx(math.exp(-0.1)) and found["b"] == pytest.approx(
        math.exp(-1) + math.exp(-1.2)
    )
    assert found["c"] == 0, "of a text without a likelihood nothing is known"
    assert chosen("best_by_likelihood", texts)[0] == ("a", 1)


def test_the_share_of_verdicts_that_say_right_weighs_an_answer():
    one, two, three = (Text("answer", text, number) for number, text in enumerate("abc"))
    said = {one: (WRONG, WRONG, RIGHT, "well"), two: (f"2 + 3 = 5. {RIGHT}", RIGHT), three: ("who knows",)}
    verdicts = [Text("verdict", text, n, answer) for answer in said for n, text in enumerate(said[answer])]
    found = dict(chosen("vote_by_verdict", [one, two, three, *verdicts]))
    assert found == {"a": pytest.approx(1 / 3), "b": 1.0, "c": 0.5}


def test_votes_by_rank_of_certainty():
    texts = [Text("answer", text, number, certainty=value) for number, (text, value) in enumerate([("a", 3.0), ("b", 1.0), ("b", 2.0)])]  # fmt: skip
    found = dict(chosen("best_by_certainty", texts))
    assert found == {"a": pytest.approx(3**0.5), "b": pytest.approx(1 + 2**0.5)}
    assert chosen("best_by_certainty", texts)[0][0] == "b"


def test_of_equal_answers_the_heaviest_text_stands_for_them():
    texts = [Text("answer", "The Rhine", 0, token_ids=(1,), logprob=-2.0), Text("answer", "rhine", 1, token_ids=(1,), logprob=-1.0)]  # fmt: skip
    assert chosen("best_by_likelihood", texts)[0] == ("rhine", 1)


def test_the_oracle_stops_at_the_first_right_answer():
    first = Text("answer", "no", reward=0.0)
    second = Text("correction", "yes", 0, first, reward=1.0)
    third = Text("correction", "no again", 0, second, reward=0.0)
    texts = [first, second, third]
    assert seen(POLICIES["oracle_stop"], STASC, texts, 1.0) == [first, second]
    assert seen(POLICIES["recipe"], STASC, texts, 1.0) == texts
    assert seen(POLICIES["oracle_stop"], STASC, texts, 2.0) == texts, "never right: to the end"


def test_a_verdict_that_is_neither_phrase_is_not_read():
    verdicts = [Text("verdict", text) for text in (RIGHT, WRONG, "right", "")]
    assert [answering.reads(STASC, None, PROMPTS, one) for one in verdicts] == [True, False, None, None]


def test_a_verdict_is_read_by_whoever_asked_for_it():
    """A recipe's critiques end otherwise than the verdicts that a policy asks for."""
    section = CRITIQUE.section()
    read = [answering.reads(CRITIQUE, section, PROMPTS, Text(*of)) for of in (
        ("critique", section.says_right), ("verdict", section.says_right), ("verdict", RIGHT), ("critique", RIGHT),
    )]  # fmt: skip
    assert read == [True, None, True, False]
