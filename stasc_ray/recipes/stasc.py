"""Self-Taught Self-Correction (arXiv 2503.08681): answer, correct, learn the corrections that were kept.

All eight variants are words of the config; SC (Welleck et al. 2022, arXiv 2211.00053) is FIE.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from stasc_ray.config import Algorithm, Mark
from stasc_ray.recipes.recipe import Ask, Example, Plan, Question, Recipe, gather, learnt
from stasc_ray.recipes.selection import FILTERS, KEEPS, TRANSITIONS, transition
from stasc_ray.recipes.trace import ANSWER, CORRECTION, Text, corrections, roots
from stasc_ray.tasks.prompts import correction_messages, initial_messages


class Stasc(Algorithm):
    """Algorithm 1 of arXiv 2503.08681. `variant` accepts the paper's three letters (EIE ... FNF) as a
    shorthand.
    """

    n_corrections: PositiveInt = 5
    """N_corr: corrections per initial answer."""
    filter: Annotated[Literal["improving", "non_decreasing", "both_correct"], Mark.FORK] = "improving"
    """Which corrections are kept: `improving` r2 > r1 (I); `non_decreasing` also r2 = r1 >= threshold (N);
    `both_correct`."""
    pairing: Annotated[Literal["own", "cross"], Mark.FORK] = "own"
    """`own`: a correction is judged against the answer it was written for; `cross`: against every answer of
    its question."""
    keep_correct_share: Annotated[Annotated[float, Field(ge=0, le=1)] | None, Mark.FORK] = None
    """Target share of correct-to-correct pairs among the kept, reached by dropping; None leaves it. Only with
    `non_decreasing`."""

    @model_validator(mode="before")
    @classmethod
    def _expand_variant(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("variant") is None:
            return values
        values = dict(values)
        letters = str(values.pop("variant")).upper()
        if not re.fullmatch("[EF][IN][EF]", letters):
            raise ValueError(
                f"algorithm.variant: expected one of EIE EIF ENE ENF FIE FIF FNE FNF, found {letters!r}"
            )
        word = {"E": "current", "F": "base", "I": "improving", "N": "non_decreasing"}
        names = ("initial_answers_from", "filter", "finetune_from")
        words = {name: word[letter] for name, letter in zip(names, letters, strict=True)}
        for name, said in words.items():
            if values.get(name, said) != said:
                raise ValueError(
                    f"algorithm.variant {letters} says {name} = {said!r}, but {name} is {values[name]!r}: "
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
    asked = [(answer, correction_messages(question, answer.said, plan.prompts)) for answer in answers]
    await gather(ask(CORRECTION, messages, n=plan.n_corrections, parent=answer) for answer, messages in asked)


def examples(question: Question, texts: Sequence[Text], plan: Plan, seed: int) -> list[Example]:
    """Step 3: the corrections that pass the filter, each in its conversation; equal ones are all kept."""
    section: Stasc = plan.section
    answers, keep = roots(texts), FILTERS[section.filter]
    attempts = [correction for answer in answers for correction in corrections(texts, answer)]
    kept = []
    for j, answer in enumerate(answers):
        asked = correction_messages(question, answer.said, plan.prompts)
        for number, correction in enumerate(attempts):
            own = section.pairing == "cross" or correction.parent is answer
            rewards = answer.graded, correction.graded, section.threshold
            if own and keep(*rewards):
                messages = [*asked, learnt(correction)]
                kept.append(Example(question["id"], (j, number), transition(*rewards), messages))
    return kept


def shares(section: Stasc) -> Mapping[tuple[str, ...], float]:
    """`keep_correct_share` balances c->c against all other pairs."""
    share = section.keep_correct_share
    return {} if share is None else {("c->c",): share, tuple(TRANSITIONS[1:]): 1 - share}


STASC = Recipe(Stasc, turns, examples, shares, keeps=lambda section: KEEPS[section.filter])
