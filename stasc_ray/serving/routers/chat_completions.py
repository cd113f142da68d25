"""POST /v1/chat/completions, OpenAI's protocol; the shapes are in openai.py."""

import functools
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Depends

from stasc_ray.serving import openai
from stasc_ray.serving.errors import ASKING
from stasc_ray.serving.routers.replica import Here, RequestId, TheKey, key_needed
from stasc_ray.serving.streaming import STREAM, answer_stream, sse

router = APIRouter(dependencies=[Depends(key_needed)])


@router.post("/v1/chat/completions", responses={200: STREAM, **ASKING}, response_model=openai.ChatResponse)
async def chat_completions(body: openai.ChatRequest, here: Here, request_id: RequestId, key: TheKey) -> Any:
    """OpenAI's chat completions: the last user message is the question, the answer is the corrected one."""
    versions = here.service.versions
    loaded = (one.version for one in versions.loaded)  # perhaps from memory alone
    openai.known_model(body.model, {*versions.published.snapshot.manifests, *loaded})
    question = body.as_correct_request(here.service.settings.serve.max_output_tokens)
    answer = functools.partial(here.service.correct, question, request_id, here.charge(key))
    if not body.stream:
        return openai.chat_response(body, await answer())
    as_chunks = functools.partial(
        _as_chunks,
        openai.Chunks(body, request_id, here.service.last_round(question), here.service.recipe.answers),
    )
    return await answer_stream(answer, as_chunks)


def _as_chunks(chunks: openai.Chunks, event: str, data: Any) -> Iterator[bytes]:
    if event == "result":
        yield from map(sse, chunks.end(data))
        yield sse("[DONE]")
    elif event == "error":
        yield sse(data)
        yield sse("[DONE]")
    else:
        yield from map(sse, chunks.from_event(event, data))
