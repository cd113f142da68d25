"""The reply to a question, from the texts that were written for it."""

from collections.abc import Iterable, Sequence

from stasc_ray import config
from stasc_ray.recipes import answering, recipe_of
from stasc_ray.recipes.policies import final_answer, votes_of
from stasc_ray.recipes.recipe import Recipe
from stasc_ray.recipes.trace import VERDICT_TURN, Text, TokenLogprob, finals, roots
from stasc_ray.serving.asked import Asked
from stasc_ray.serving.schemas import (
    CompletionDetails,
    CorrectRequest,
    CorrectResponse,
    End,
    Finish,
    LikelyToken,
    Timings,
    Token,
    Turn,
    Usage,
    Vote,
)


def make_reply(
    request: CorrectRequest,
    asked: Asked,
    texts: Sequence[Text],
    settings: config.Config,
    *,
    request_id: str,
    version: str,
    queued_s: float,
    total_s: float,
) -> CorrectResponse:
    """What the endpoint says: the chosen answer, how it came about, and what it cost.

    Args:
        asked: the request, checked.
    """
    recipe, marker = recipe_of(settings.algorithm.recipe), settings.prompts.answer_marker
    finished = [text for root in roots(texts) for text in finals(texts, root, recipe.answers)]
    votes = votes_of(asked.policy, recipe, finished, texts, request.choices, settings)
    ends = {text: _end(text, request, recipe, marker) for text in finished}
    chosen = votes[0][0]
    first, *corrections = (text for text in chosen.lineage if text.turn in recipe.answers)
    after = [text for text in texts if text.parent is chosen]  # a verdict that ended the chain
    turns = [_turn(text, recipe, settings, given=text in asked.given) for text in (*chosen.lineage, *after)]
    return CorrectResponse(
        id=request_id,
        question=request.question,
        initial_answer=first.text,
        corrections=[text.text for text in corrections],
        answer=chosen.text,
        final_answer=ends[chosen].final_answer,
        changed=ends[chosen].changed,
        turns=turns,
        finish_reason=ends[chosen].finish_reason,
        model_version=version,
        initial_version=None if asked.given else first.writer,
        votes=[
            Vote(answer=text.text, final_answer=ends[text].final_answer, votes=count) for text, count in votes
        ]
        if request.samples > 1
        else None,
        ends=list(ends.values()),
        usage=_usage([text for text in texts if text not in asked.given], ends),
        timings_ms=_timings(texts, queued_s, total_s),
    )


def _end(text: Text, request: CorrectRequest, recipe: Recipe, marker: str) -> End:
    first = next(one for one in text.lineage if one.turn in recipe.answers)
    letter, final = final_answer(text.answer, request.choices, marker)
    return End(
        answer=text.text,
        final_answer=letter or final,
        changed=text.answer.strip() != first.answer.strip(),  # as evaluation.metrics counts it
        finish_reason=_finish_reason(text),
        logprobs=[_token(token) for token in text.tokens] if request.logprobs else None,
    )


def _token(token: TokenLogprob) -> Token:
    likeliest = [LikelyToken(token=one, logprob=logprob) for one, logprob in token.likeliest]
    return Token(token=token.token, logprob=token.logprob, top_logprobs=likeliest)


def _turn(text: Text, recipe: Recipe, settings: config.Config, *, given: bool) -> Turn:
    section, prompts = settings.algorithm, settings.prompts
    verdict = text.turn in (*recipe.verdicts, VERDICT_TURN)
    return Turn(
        turn=text.turn,
        text=text.text,
        finish_reason=None if given else _finish_reason(text),
        says_right=answering.reads(recipe, section, prompts, text) if verdict else None,
    )


def _finish_reason(text: Text) -> Finish:
    return "length" if text.finish_reason == "length" else "stop"


def _usage(written: Sequence[Text], ends: Iterable[Text]) -> Usage:
    prompt, completion, final = (
        sum(text.prompt_tokens for text in written),
        sum(len(text.token_ids) for text in written),
        sum(len(text.token_ids) for text in ends),
    )
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        completion_tokens_details=CompletionDetails(reasoning_tokens=max(0, completion - final)),
    )


def _timings(texts: Sequence[Text], queued_s: float, total_s: float) -> Timings:
    initial_s = max(text.root.seconds for text in texts)
    correction_s = max(sum(text.seconds for text in one.lineage[1:]) for one in texts)
    return Timings(
        queue=round(queued_s * 1000, 1),
        initial=round(initial_s * 1000, 1),
        correction=round(correction_s * 1000, 1),
        total=round(total_s * 1000, 1),
    )
