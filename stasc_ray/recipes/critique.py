"""Criticize in words, then correct in sight of the critique: Self-Refine (arXiv 2303.17651), RCI
(2303.17491), RealCritic (2501.14492), AutoMathCritique (2411.16579), SELF (2310.00533), TEaR (2402.16379).

A critique is worth what its correction is worth: it is learnt if that is right. If a base model can't write
critiques, the task's critic constructs the first ones.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from stasc_ray.config import Algorithm
from stasc_ray.recipes.recipe import Ask, Example, Plan, Question, Recipe, gather, learnt, written
from stasc_ray.recipes.selection import transition
from stasc_ray.recipes.trace import ANSWER, CORRECTION, Text, roots
from stasc_ray.tasks import teacher
from stasc_ray.tasks.prompts import Message, assistant, correction_messages, initial_messages, user


class Critique(Algorithm):
    """A critique in words stands between an answer and its correction."""

    recipe: str = "critique"
    """This method."""
    n_critiques: PositiveInt = 2
    """Critiques per initial answer of a train question."""
    n_corrections: PositiveInt = 2
    """Corrections per critique."""
    view: Literal["conversation", "direct"] = "conversation"
    """What is learnt. `conversation`: the critique and then the correction; `direct`: the correction alone,
    as the answer to the bare question, and the model then answers without corrections."""
    critiques: Literal["sampled", "constructed"] = "sampled"
    """Who writes the critiques of the first iteration; `constructed`: `critic`. With view = `direct`, which
    learns no critiques, of every iteration."""
    critic: str | None = None
    """Function (answer, question row) -> what is wrong, "" if nothing: `sandbox`, or a dotted path
    `package.module:function`."""
    corrections_see_constructed: bool = True
    """Whether corrections are asked in sight of a constructed critique. If not, they are asked without it and
    learnt with it: for a model that more turns than it knows confuse."""
    critique_prompt: str = (
        "Check your answer step by step. Name the first wrong step and say why it is wrong. If there is "
        "none, end with: Nothing is wrong."
    )
    """User turn that asks for the critique."""
    says_right: str = "Nothing is wrong."
    """How a critique ends that finds nothing wrong; no correction follows then (Self-Refine, TEaR). Empty:
    one always follows (RCI, RealCritic)."""
    learn_answers: Literal["none", "right", "all"] = "none"
    """Which first answers are learnt along; `all`: wrong ones too, so the answers stay as they are judged."""
    keep_correct_share: Annotated[float, Field(ge=0, le=1)] | None = None
    """Target share of corrections of right answers among the kept, reached by dropping; 0: none
    (AutoMathCritique); None leaves it."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.critiques == "constructed" and not (self.critic and self.says_right.strip()):
            found = f"critic = {self.critic!r} and says_right = {self.says_right!r}"
            raise ValueError(
                "algorithm.critiques = 'constructed': expected a critic that writes them and the words that "
                f"find nothing wrong, found {found}; name both, or let the model write: critiques = 'sampled'"
            )
        if self.critic:
            teacher.load("algorithm.critic", self.critic, teacher.CRITICS)
        return self

    def reads(self, text: str) -> bool | None:
        """Whether a critique finds nothing wrong; None if no words for that are agreed on."""
        phrase = self.says_right.strip().casefold()
        return text.strip().casefold().endswith(phrase) if phrase else None

    def shares(self) -> Mapping[tuple[str, ...], float]:
        """`keep_correct_share` balances corrections of right answers against those of wrong ones."""
        share = self.keep_correct_share
        return {} if share is None else {("c->c",): share, ("i->c",): 1 - share}


async def turns(question: Question, ask: Ask, plan: Plan, given: Sequence[Text] | None = None) -> None:
    """Answers (unless given); then critiques of each, and corrections in sight of each critique."""
    answers = given or await ask(ANSWER, initial_messages(question, plan.prompts), n=plan.n_initial)
    if plan.n_corrections and (plan.learn or plan.section.view == "conversation"):
        await gather(_criticize(question, ask, plan, answer) for answer in answers)


async def _criticize(question: Question, ask: Ask, plan: Plan, answer: Text) -> None:
    """A constructed critique is no text of the trace: its corrections follow the answer itself."""

    async def correct(critique: Message, parent: Text) -> None:
        messages = second_messages(question, answer, critique, plan)
        if parent is answer and not section.corrections_see_constructed:
            messages = correction_messages(question, answer.said, plan.prompts)
        await ask(CORRECTION, messages, n=plan.n_corrections, parent=parent)

    section, asked = plan.section, critique_messages(question, answer, plan)
    first = plan.iteration == 0 or section.view == "direct"
    if plan.learn and section.critiques == "constructed" and first:
        return await correct(constructed(question, answer, section), answer)
    found = await ask("critique", asked, n=section.n_critiques if plan.learn else 1, parent=answer)
    goes_on = [critique for critique in found if plan.learn or not section.reads(critique.answer)]
    await gather(correct(assistant(critique.said), critique) for critique in goes_on)


def constructed(question: Question, answer: Text, section: Critique) -> Message:
    """What the task's critic says about an answer, as a message to learn."""
    critic = teacher.load("algorithm.critic", str(section.critic), teacher.CRITICS)
    return written(critic(answer.answer, question) or section.says_right)


def critique_messages(question: Question, answer: Text, plan: Plan) -> list[Message]:
    """The conversation that asks for a critique of an answer."""
    ask = user(plan.section.critique_prompt)
    return [*initial_messages(question, plan.prompts), assistant(answer.said), ask]


def second_messages(question: Question, answer: Text, critique: Message, plan: Plan) -> list[Message]:
    """The conversation that asks for a correction in sight of a critique."""
    request = correction_messages(question, answer.said, plan.prompts)[-1]
    return [*critique_messages(question, answer, plan), critique, request]


def examples(question: Question, texts: Sequence[Text], plan: Plan, seed: int) -> list[Example]:
    """Right corrections, in the configured view; not those of a critique that was wrong about the answer."""
    section, asked, found = plan.section, initial_messages(question, plan.prompts), []
    for j, answer in enumerate(roots(texts)):
        right, learns = answer.graded >= section.threshold, section.learn_answers
        below = [text for text in texts if text.root is answer and text.turn == CORRECTION]
        for number, correction in enumerate(below):
            sampled = correction.parent if correction.parent is not answer else None
            critique = learnt(sampled) if sampled else constructed(question, answer, section)
            nothing_wrong = section.reads(sampled.answer if sampled else critique["content"])
            kind = transition(answer.graded, correction.graded, section.threshold)
            if kind.endswith("->c") and nothing_wrong in (None, right):
                seen = second_messages(question, answer, critique, plan)
                before = seen if section.view == "conversation" else asked
                found.append(Example(question["id"], (j, number), kind, [*before, learnt(correction)]))
        if learns == "all" or (right and learns == "right"):
            found.append(Example(question["id"], (j, len(below)), "answer", [*asked, learnt(answer)]))
    return found


ALONG = {"none": "", "right": ", and right answers", "all": ", and answers, wrong ones too"}


def keeps(section: Critique) -> str:
    """What is kept, in words."""
    along = ALONG[section.learn_answers]
    constructed = section.critiques == "constructed"
    if section.view == "direct":
        seen = " written after critiques of the task's critic" if constructed else " written after critiques"
        return f"right corrections{seen}, as answers to the bare question{along}"
    writer = ", in the first iteration the task's critic's" if constructed else ""
    return f"critiques{writer}, with the right corrections that follow them{along}"


CRITIQUE = Recipe(
    Critique,
    turns,
    examples,
    Critique.shares,
    "until_right",
    verdicts=("critique",),
    says_right=Critique.reads,
    keeps=keeps,
)
