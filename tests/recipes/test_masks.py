"""Trained tokens are counted: of each example those of its target and the end of its turn, and no others.

Here the recipes whose own test files look at flags; the files of the others count for themselves.
"""

from collections.abc import Sequence

import pytest
from harness.traces import plan
from harness.trained import END, said, trained, trained_tokens

from stasc_ray.recipes import recipe_of
from stasc_ray.recipes.trace import Text

ROW = {"id": "q1", "question": "What is 7 + 5 + 2?", "answers": ["14"], "choices": [], "documents": []}
RIGHT, WRONG = "7+5+2=14\n=14", "7+5+2=13\n=13"
JUDGING = {"verdict_prompt": "Is it right?", "says_right": "=", "says_wrong": "+1", "balance": None}


def trace(*judgements: str) -> list[Text]:
    """A right answer and a wrong one, a right correction of each; and verdicts on each, if there are some."""
    texts = []
    for sample, (text, reward) in enumerate(((RIGHT, 1.0), (WRONG, 0.0))):
        answer = said("answer", text, reward, sample=sample)
        verdicts = [said("verdict", words, 0.0, answer, sample=n) for n, words in enumerate(judgements)]
        wrong = next((one for one in verdicts if one.text.endswith("+1")), answer)
        texts += [
            answer,
            *verdicts,
            said("correction", RIGHT, 1.0, wrong),
            said("correction", "=13", 0.0, wrong),
        ]
    return texts


@pytest.mark.parametrize(
    ("section", "texts", "learnt"),
    [
        ({"recipe": "stasc", "filter": "non_decreasing"}, trace(), [RIGHT, RIGHT]),
        ({"recipe": "stasc"}, trace(), [RIGHT]),
        ({"recipe": "rft"}, trace(), [RIGHT]),
        (
            {"recipe": "verdict", "verdicts": "sampled", "learn_answers": "none", **JUDGING},
            trace("so =", "so +1"),
            ["so =", RIGHT, "so +1", RIGHT],
        ),
        (
            {
                "recipe": "verdict",
                "verdicts": "constructed",
                "n_verdicts": 2,
                "learn_answers": "all",
                **JUDGING,
            },
            trace(),
            ["=", "=", RIGHT, RIGHT, "+1", "+1", RIGHT, WRONG],
        ),
    ],
    ids=["stasc N", "stasc I", "rft", "verdict, sampled", "verdict, constructed"],
)
def test_exactly_the_target_is_trained(section: dict[str, object], texts: Sequence[Text], learnt: list[str]):
    asked = plan(section)
    found = list(recipe_of(str(section["recipe"])).examples(ROW, texts, asked, 0))
    assert [trained(one) for one in found] == [[text + END] for text in learnt]
    assert [trained_tokens(one) for one in found] == [len(text.encode()) + 1 for text in learnt]
