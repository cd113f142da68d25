"""POST /v1/correct.

With `"stream": true` it answers with server-sent events, each `event: NAME` and one line `data: JSON`:

    start   {"id", "question", "model_version"}        again if an engine died before the first token
    token   {"sample", "turn", "round", "text"}        a piece of text; turn "answer" has round 0, the first
                                                       "correction" round 1, as what leads to it ("verdict");
                                                       sample counts from 0
    result  the object that comes without streaming    the last event
    error   {"error": {"type", "message", "param", "code"}}  the last event, instead of `result`

What fails before the first event, and within 15 s, is answered with its own status and an error body, as
without streaming. Then the stream begins with a comment (`: keep-alive`), as it sends every 15 s in silence.
"""

import functools
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Depends

from stasc_ray.serving.errors import ASKING
from stasc_ray.serving.routers.replica import Here, RequestId, TheKey, key_needed
from stasc_ray.serving.schemas import CorrectRequest, CorrectResponse
from stasc_ray.serving.streaming import STREAM, answer_stream, sse

router = APIRouter(dependencies=[Depends(key_needed)])


@router.post("/v1/correct", responses={200: STREAM, **ASKING}, response_model=CorrectResponse)
async def correct(body: CorrectRequest, here: Here, request_id: RequestId, key: TheKey) -> Any:
    """Answer a question and correct the answer."""
    answer = functools.partial(here.service.correct, body, request_id, here.charge(key))
    return await (answer_stream(answer, as_events) if body.stream else answer())


def as_events(event: str, data: Any) -> Iterator[bytes]:
    """The one event for what happened."""
    yield sse(data.model_dump(mode="json") if event == "result" else data, event)
