"""A request, checked: what is asked of the recipe, and within which limits."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stasc_ray import config
from stasc_ray.generation.samples import SEED_SPACING, FinalTurn
from stasc_ray.recipes.policies import Policy, policies
from stasc_ray.recipes.recipe import Plan, Question, Recipe
from stasc_ray.recipes.trace import ANSWER, Text
from stasc_ray.serving.errors import invalid
from stasc_ray.serving.schemas import CorrectRequest
from stasc_ray.tasks import reasoning


@dataclass(frozen=True)
class Asked:
    """A request whose limits were checked."""

    question: Question
    given: Sequence[Text]
    plan: Plan
    policy: str
    scores: Literal["logprob", "certainty"] | None
    """What the policy needs to know of every text."""
    sampling: config.SamplingPerTurn
    seed: int
    max_prompt_tokens: int
    final: FinalTurn
    final_rounds: range
    """Rounds whose text may be the final answer, 0 for the first answer."""
    most_tokens: int
    """That all turns of all samples may have together."""


def checked(request: CorrectRequest, settings: config.Config, recipe: Recipe) -> Asked:
    """What a request asks for, within the config's limits.

    Raises:
        ApiError: 400, beyond a limit, or it makes no sense.
    """
    serve, evaluation = settings.serve, settings.evaluation
    for name, limit in {
        "rounds": serve.max_rounds,
        "samples": serve.max_samples,
        "max_tokens": serve.max_output_tokens,
        "max_answer_tokens": serve.max_output_tokens,
    }.items():
        value = getattr(request, name)
        if value is not None and value > limit:
            raise invalid(name, f"expected at most {limit}, found {value}")
    name = request.policy or default_policy(settings, recipe)
    policy = _policy(name, recipe, request.samples)
    rounds = evaluation.rounds if request.rounds is None else request.rounds
    branches = 1 if request.initial_answer is None else request.samples
    plan = Plan(
        prompts=settings.prompts,
        section=settings.algorithm,
        n_initial=request.samples,
        n_corrections=branches if settings.algorithm.n_corrections else 0,
        rounds=rounds,
    )
    if request.initial_answer is not None and not policy.rounds(plan):
        who = f"policy {name!r}" if policy.ends == "first" else f"recipe {settings.algorithm.recipe!r}"
        what = "0 rounds" if rounds == 0 else f"{who}, which corrects nothing"
        raise invalid(
            "rounds",
            f"expected at least 1 with an initial_answer, found {what}: nothing would be left to do",
        )
    if request.initial_answer is not None and not policy.starts_from_given:
        raise invalid("initial_answer", f"expected none with policy {name!r}, which asks for its own")
    if request.initial_answer is not None and policy.own_turns and request.samples > 1:
        raise invalid(
            "samples", f"expected 1 with an initial_answer and policy {name!r}, found {request.samples}"
        )
    if request.top_logprobs and not request.logprobs:
        raise invalid("top_logprobs", "expected logprobs = true with it")
    if len(request.choices) == 1:
        raise invalid("choices", "expected at least 2 choices or none, found 1")
    sampling = _sampling(request, settings.sampling)
    drawn_by = sampling.initial if request.initial_answer is None else sampling.correction
    if request.samples > 1 and drawn_by.temperature == 0:
        raise invalid(
            "samples",
            "expected a temperature above 0 with several samples: greedy answers are all the same",
        )
    said = request.initial_answer
    start = reasoning.answer_start(said or "")
    given = () if said is None else (Text(ANSWER, said, writer="user", answer_start=start),)
    longest = settings.engine.max_model_len_tokens - 1
    final_rounds = policy.final_rounds(recipe, plan)
    return Asked(
        question={
            "question": request.question,
            "documents": request.documents,
            "choices": request.choices,
        },
        given=given,
        plan=plan,
        policy=name,
        scores=policy.scores,
        sampling=sampling,
        seed=secrets.randbits(62) // SEED_SPACING * SEED_SPACING if request.seed is None else request.seed,
        max_prompt_tokens=min(serve.max_prompt_tokens or longest, longest),
        final=FinalTurn(
            stop=tuple(filter(None, request.stop)),  # an empty one stops nothing
            schema=request.response_format and request.response_format.as_schema(),
            logit_bias=request.logit_bias,
            top_logprobs=request.top_logprobs if request.logprobs else None,
        ),
        final_rounds=final_rounds,
        most_tokens=request.samples * _most_tokens(request, sampling, plan, policy, recipe),
    )


def _sampling(request: CorrectRequest, of_run: config.SamplingPerTurn) -> config.SamplingPerTurn:
    names = config.Sampling.model_fields.keys() & CorrectRequest.model_fields.keys()
    update = {name: value for name in names if (value := getattr(request, name)) is not None}
    turns = {
        turn: values.model_copy(update=update)
        for turn, values in (
            ("initial", of_run.initial),
            ("correction", of_run.correction),
        )
    }
    return config.SamplingPerTurn(**turns)


def _most_tokens(
    request: CorrectRequest, sampling: config.SamplingPerTurn, plan: Plan, policy: Policy, recipe: Recipe
) -> int:
    """Of one sample: its answers, round by round, and what is written between them."""
    later = sampling.correction.max_tokens
    answers = [sampling.initial.max_tokens, *[later] * policy.rounds(plan)]
    for number in policy.final_rounds(recipe, plan):
        answers[number] = request.max_answer_tokens or answers[number]
    written = answers[1:] if request.initial_answer is not None else answers
    return sum(written) + policy.texts_beside(recipe, plan) * later


def default_policy(settings: config.Config, recipe: Recipe) -> str:
    """How requests are answered that name no policy: as the version was measured; by the recipe's policy if
    that needs references or several samples.
    """
    name = settings.evaluation.policy or recipe.policy
    measured = policies(recipe)[name]
    return recipe.policy if measured.needs_reward or measured.least_samples > 1 else name


def _policy(name: str, recipe: Recipe, samples: int) -> Policy:
    known = {name: one for name, one in policies(recipe).items() if not one.needs_reward}
    if name not in known:
        raise invalid("policy", f"expected one of {', '.join(known)}, found {name!r}")
    if samples < (least := known[name].least_samples):
        raise invalid("samples", f"expected at least {least} with policy {name!r}, found {samples}")
    return known[name]
