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
    """Form without content: learn some words of the text, as many as the reference has, from elsewhere in it."""

    recipe: str = "benchmarks.controls:SPANS"


class Mixed(Stasc):
    """STaSC's kept corrections and RFT's right first answers in one batch."""

    recipe: str = "benchmarks.controls:MIXED"
    pairing: Literal["own"] = "own"
    """A correction is judged against its own answer."""


def spans(question: Question, texts: Sequence[Text], plan: Plan, seed: int) -> list[Example]:
    """One answer a question, whose place in the text is drawn; nothing of a text without so many words."""
    words = " ".join(question["documents"]).split()
    many = len(question["answers"][0].split())
    if not 0 < many < len(words):
        return []
    start = int(hashing.fraction(repr((seed, "span", question["id"]))) * (len(words) - many))
    said = " ".join(words[start : start + many]).strip(".,;:")
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


SPANS = Recipe(Spans, turns, spans, answers=(ANSWER,), chosen_by="r_y1", keeps=lambda _: "words of the text")
MIXED = Recipe(Mixed, STASC.turns, mixed, shares=STASC.shares, keeps=lambda _: "right texts of both turns")
