"""One message that notices its error: where solutions part, what is cut, and on what no loss falls."""

import asyncio

import pytest
from harness.traces import QUESTION, ScriptedAsk, plan
from harness.trained import END, said, trained, trained_tokens

from stasc_ray.recipes.splice import SPLICE, Splice, shared_steps, steps
from stasc_ray.recipes.trace import Text
from stasc_ray.tasks.prompts import initial_messages

RIGHT, WRONG = "7+5=12\n4+8+1=13\n=132", "7+5=12\n4+8=12\n5=5\n=122"
OTHER = "5+7=12\n8+4+1=13\n=132"
PHRASE = "Wait, that step is wrong. Once more:"


def kept(*answers: str | Text, **section):
    texts = [
        one if isinstance(one, Text) else said("answer", one, float(one.endswith("=132"))) for one in answers
    ]
    return SPLICE.examples(QUESTION, texts, plan({"recipe": "splice", **section}), 0)


def message(example) -> str:
    return "".join(piece["text"] for piece in example.messages[-1]["pieces"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\nb\nc", ["a\n", "b\n", "c"]),
        ("a\n\n b\n", ["a\n\n ", "b\n"]),
        ("a", ["a"]),
        ("", []),
    ],
)
def test_steps_join_to_the_text(text: str, expected: list[str]):
    assert steps(text, "\n") == expected and "".join(expected) == text


def test_steps_end_by_a_word_of_the_config():
    assert steps("First. Then. Last", ". ") == ["First. ", "Then. ", "Last"]
    assert steps("a.b|c", "|") == ["a.b|", "c"], "no pattern"


def test_steps_are_the_same_but_for_white_space():
    assert shared_steps(["a b\n", "c"], ["a  b\n\n", "c\n", "d"]) == 2
    assert shared_steps(["a\n", "b\n", "c"], ["a\n", "x\n", "c"]) == 1, "first steps in a row"


def test_answers_are_asked_and_nothing_else():
    ask, of = ScriptedAsk(*"abcdefgh"), plan({"recipe": "splice"})
    asyncio.run(SPLICE.turns(QUESTION, ask, of, None))
    assert ask.asked == [("answer", initial_messages(QUESTION, of.prompts), 8)]
    asyncio.run(SPLICE.turns(QUESTION, ask := ScriptedAsk(), of, [said("answer", "a", 1.0)]))
    assert ask.asked == []


def test_a_wrong_solution_is_cut_after_its_first_wrong_step_and_goes_on_as_its_sibling():
    (example,) = kept(WRONG, RIGHT, learn_answers="none")
    assert message(example) == f"7+5=12\n4+8=12\n{PHRASE}\n4+8+1=13\n=132"
    assert (example.id, example.kind) == ("q1/0", "splice")
    assert "5=5" not in message(example) and "=122" not in message(example), "uncut"


def test_loss_falls_on_all_but_the_wrong_step():
    (example,) = kept(WRONG, RIGHT, learn_answers="none")
    rest = f"{PHRASE}\n4+8+1=13\n=132"
    assert trained(example) == ["7+5=12\n", rest + END]
    assert trained_tokens(example) == len("7+5=12\n") + len(rest) + 1
    assert not any(one.get("train") or one.get("pieces") for one in example.messages[:-1])


def test_the_sibling_that_shares_most_steps_goes_on():
    (example,) = kept(OTHER, WRONG, RIGHT, "7+5=12\n4+8=12\n+1=13\n=132", learn_answers="none")
    assert message(example) == f"7+5=12\n4+8=12\n5=5\n{PHRASE}\n+1=13\n=132"


def test_a_last_step_that_is_wrong_gets_a_step_end():
    (example,) = kept("7+5=12\n4+8+1=13\n=131", RIGHT, learn_answers="none")
    assert message(example) == f"7+5=12\n4+8+1=13\n=131\n{PHRASE}\n=132"


@pytest.mark.parametrize(
    "answers",
    [
        (WRONG,),
        (RIGHT,),
        (WRONG, OTHER),  # they share no first step
        ("7+5=12\n4+8+1=13", RIGHT),  # it only stops early
        (WRONG, said("answer", RIGHT, 1.0, finish_reason="length")),
        (said("answer", f"<think>x</think>{WRONG}", 0.0, answer_start=16), RIGHT),
        (WRONG, said("answer", f"<think>x</think>{RIGHT}", 1.0, answer_start=16)),
    ],
)
def test_what_gives_no_splice(answers: tuple[str | Text, ...]):
    assert kept(*answers, learn_answers="none") == []


def test_solutions_without_a_shared_step_are_spliced_if_the_config_says_so():
    (example,) = kept(WRONG, OTHER, learn_answers="none", min_shared_steps=0)
    assert trained(example) == [f"{PHRASE}\n{OTHER}{END}"] and message(example).startswith("7+5=12\nWait")


def test_right_answers_are_learnt_along_and_equal_texts_once():
    found = kept(WRONG, RIGHT, WRONG, RIGHT, WRONG.replace("5=5", "5=6"))  # it differs behind the cut
    assert [(one.id, one.kind) for one in found] == [("q1/0", "splice"), ("q1/1", "answer")]
    assert trained(found[1]) == [RIGHT + END] and trained_tokens(found[1]) == len(RIGHT) + 1


def test_what_a_model_spliced_itself_is_masked_like_a_splice():
    own = f"7+5=12\n4+8=12\n{PHRASE}\n4+8+1=13\n=132"
    (answer,) = kept(own)
    assert answer.kind == "answer" and message(answer) == own
    assert trained(answer) == ["7+5=12\n", f"{PHRASE}\n4+8+1=13\n=132{END}"]
    assert trained_tokens(answer) == len(own) - len("4+8=12\n") + 1
    (splice,) = kept("7+5=13\n=133", own, learn_answers="none", min_shared_steps=0)
    assert trained(splice) == [f"{PHRASE}\n7+5=12\n", f"{PHRASE}\n4+8+1=13\n=132{END}"]
    assert "4+8=12" in message(splice), "its sibling's own wrong step"


@pytest.mark.parametrize("how", [{"finish_reason": "length"}, {"answer_start": 3}])
def test_a_text_that_pieces_would_change_keeps_its_ids(how: dict):
    own = said("answer", f"4+8=12\n{PHRASE}\n=132", 1.0, **how)
    (example,) = kept(own)
    assert [piece["token_ids"] for piece in example.messages[-1]["pieces"]] == [own.token_ids]


def test_a_phrase_of_several_steps_is_refused():
    with pytest.raises(
        ValueError, match=r"expected one step, found 'No\. Again' with step_end = '\. ' in it"
    ):
        Splice(connecting_phrase="No. Again", step_end=". ")


def test_phrase_and_step_end_are_words_of_the_config():
    section = {"learn_answers": "none", "connecting_phrase": "No", "step_end": ". "}
    (example,) = kept("One. Two. =1", "One. Three. =132", **section)
    assert message(example) == "One. Two. No. Three. =132"
    assert SPLICE.chosen_by == "r_y1"
    with pytest.raises(ValueError, match="connecting_phrase"):
        Splice(connecting_phrase=" ")
