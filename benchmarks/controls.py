"""Recipes that tell apart what a fine-tune on kept texts teaches; real_study.py names them by dotted path."""

from collections.abc import Sequence
from typing import Literal

from benchmarks.supervised import Gold, turns
from stasc_ray.config import hashing
from stasc_ray.recipes.recipe import Example, Plan, Question, Recipe, written
from stasc_ray.recipes.rft import RFT
from stasc_ray.recipes.stasc import STASC, Stasc
from stasc_ray.recipes.trace import ANSWER, Text
from stasc_ray.tasks.prompts import initial_messages


class Spans(Gold):
    """Form without content: learn as many words of the text as the reference has, none of them the reference's."""

    recipe: str = "benchmarks.controls:SPANS"


class Mixed(Stasc):
    """STaSC's kept corrections and RFT's right first answers in one batch."""

    recipe: str = "benchmarks.controls:MIXED"
    pairing: Literal["own"] = "own"
    """A correction is judged against its own answer."""


def spans(question: Question, texts: Sequence[Text], plan: Plan, seed: int) -> list[Example]:
    """One answer a question, whose place in the text is drawn; nothing of a text without so many other words."""
    words = " ".join(question["documents"]).split()
    many = len(question["answers"][0].split())
    right = {_bare(word) for answer in question["answers"] for word in answer.split()}
    found = [words[at : at + many] for at in range(len(words) - many + 1)]
    wrong = [span for span in found if not right & set(map(_bare, span)) and any(map(_bare, span))]
    if not wrong:
        return []
    said = " ".join(wrong[int(hashing.fraction(repr((seed, "span", question["id"]))) * len(wrong))])
    return [Example(question["id"], (0,), "c", [*initial_messages(question, plan.prompts), written(said)])]


def mixed(question: Question, texts: Sequence[Text], plan: Plan, seed: int) -> list[Example]:
    """Both, told apart by their place."""
    corrections = STASC.examples(question, texts, plan, seed)
    return [
        *corrections,
        *(
            Example(one.question, (*one.place, 0, 0), "answer", one.messages)
            for one in RFT.examples(question, texts, plan, seed)
        ),
    ]


def _bare(word: str) -> str:
    return "".join(filter(str.isalnum, word)).lower()


SPANS = Recipe(Spans, turns, spans, answers=(ANSWER,), chosen_by="r_y1", keeps=lambda _: "words of the text")
MIXED = Recipe(Mixed, STASC.turns, mixed, shares=STASC.shares, keeps=lambda _: "right texts of both turns")
