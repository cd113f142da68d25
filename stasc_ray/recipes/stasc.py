"""Self-Taught Self-Correction (arXiv 2503.08681): answer, correct the answer, learn the corrections that were
kept.

All eight variants are words of the config; SC (Welleck et al. 2022, arXiv 2211.00053) is FIE.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from stasc_ray.config import Algorithm
from stasc_ray.recipes.recipe import Ask, Example, Plan, Question, Recipe, gather, learnt
from stasc_ray.recipes.selection import FILTERS, TRANSITIONS, capped, transition
from stasc_ray.recipes.trace import ANSWER, CORRECTION, Text, corrections, roots
from stasc_ray.tasks.prompts import correction_messages, initial_messages


class Stasc(Algorithm):
    """Algorithm 1 of arXiv 2503.08681. `variant` accepts the paper's three letters (EIE ... FNF) as a
    shorthand.
    """

    n_corrections: PositiveInt = 5
    """N_corr: corrections per initial answer."""
    filter: Literal["improving", "non_decreasing", "both_correct"] = "improving"
    """Which corrections are kept: `improving` r2 > r1 (I); `non_decreasing` also r2 = r1 >= threshold (N);
    `both_correct`."""
    pairing: Literal["own", "cross"] = "own"
    """`own`: a correction is judged against the answer it was written for; `cross`: against every answer of
    its question."""
    max_examples_per_question: PositiveInt | None = None
    """Kept corrections per question at most; None keeps all."""
    keep_correct_share: Annotated[float, Field(ge=0, le=1)] | None = None
    """Target share of correct-to-correct pairs among the kept, reached by dropping; None leaves it. Only with
    `non_decreasing`."""

    @model_validator(mode="before")
    @classmethod
    def _expand_variant(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("variant") is None:
            return values
        values = dict(values)
        letters = str(values.pop("variant")).upper()
        if len(letters) != 3 or letters[0] not in "EF" or letters[1] not in "IN" or letters[2] not in "EF":
            raise ValueError(
                f"algorithm.variant: expected one of EIE EIF ENE ENF FIE FIF FNE FNF, found {letters!r}"
            )
        source = {"E": "current", "F": "base"}
        words = {
            "initial_answers_from": source[letters[0]],
            "filter": {"I": "improving", "N": "non_decreasing"}[letters[1]],
            "finetune_from": source[letters[2]],
        }
        for name, word in words.items():
            if values.get(name, word) != word:
                raise ValueError(
                    f"algorithm.variant {letters} says {name} = {word!r}, but {name} is {values[name]!r}: "
                    f"drop one"
                )
        return {**values, **words}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.keep_correct_share is not None and self.filter != "non_decreasing":
            kept = {"improving": "no", "both_correct": "nothing but"}[self.filter]
            raise ValueError(
                "algorithm.keep_correct_share balances c->c against i->c pairs: expected filter = "
                f"'non_decreasing', found filter = {self.filter!r}, which keeps {kept} c->c pairs"
            )
        return self

    @property
    def variant(self) -> str:
        """The paper's three letters; `B` in the middle stands for `both_correct`, which the paper does not
        name.
        """
        letters = super().variant
        return (
            letters[0]
            + {"improving": "I", "non_decreasing": "N", "both_correct": "B"}[self.filter]
            + letters[1]
        )


async def turns(question: Question, ask: Ask, plan: Plan, given: Sequence[Text] | None = None) -> None:
    """Steps 1 and 2: initial answers (unless given), and independent corrections of each."""
    answers = given or await ask(ANSWER, initial_messages(question, plan.prompts), n=plan.n_initial)
    await gather(
        ask(
            CORRECTION,
            correction_messages(question, answer.text, plan.prompts),
            n=plan.n_corrections,
            parent=answer,
        )
        for answer in answers
    )


def examples(question: Question, texts: Sequence[Text], plan: Plan, seed: int) -> list[Example]:
    """Step 3: the corrections that pass the filter, each in its conversation; equal corrections are all
    kept.
    """
    section: Stasc = plan.section
    answers = roots(texts)
    attempts = [correction for answer in answers for correction in corrections(texts, answer)]
    kept = [
        Example(
            question["id"],
            (j, number),
            transition(_r(answer), _r(correction), section.threshold),
            [*correction_messages(question, answer.text, plan.prompts), learnt(correction)],
        )
        for j, answer in enumerate(answers)
        for number, correction in enumerate(attempts)
        if (section.pairing == "cross" or correction.parent is answer)
        and FILTERS[section.filter](_r(answer), _r(correction), section.threshold)
    ]
    return capped(kept, section.max_examples_per_question, seed)


def shares(section: Stasc) -> Mapping[tuple[str, ...], float]:
    """`keep_correct_share` balances c->c against all other pairs."""
    share = section.keep_correct_share
    return {} if share is None else {("c->c",): share, tuple(TRANSITIONS[1:]): 1 - share}


def keeps(section: Stasc) -> str:
    """What the filter asks for."""
    return {
        "improving": "corrections with a higher reward than their initial answer",
        "non_decreasing": "corrections with a higher reward than their initial answer, or as right as it was",
        "both_correct": "right corrections of right answers",
    }[section.filter]


def _r(text: Text) -> float:
    assert text.reward is not None, "graded traces only"
    return text.reward


STASC = Recipe(section=Stasc, turns=turns, examples=examples, shares=shares, keeps=keeps)
