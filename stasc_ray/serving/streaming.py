"""Server-sent events: an answer while it is written."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

from starlette.responses import Response, StreamingResponse

from stasc_ray.serving.errors import ApiError
from stasc_ray.serving.schemas import CorrectResponse
from stasc_ray.serving.service import Emit

LOG = logging.getLogger("ray.serve")
STREAM = {"content": {"text/event-stream": {}}}
"""Of a route that may stream, for its OpenAPI document."""
KEEP_ALIVE_S = 15.0
Write = Callable[[str, Any], Iterable[bytes]]
"""Server-sent events for an event of `Emit`, for `result` (a CorrectResponse) and for `error` (its body)."""


async def answer_stream(answer: Callable[[Emit], Awaitable[CorrectResponse]], write: Write) -> Response:
    """Answer with what `write` makes of the events of `answer`.

    The response begins with the first event, or after `KEEP_ALIVE_S` without one. `answer` holds a place in
    the queue and a version, so its task ends with the client's connection.

    Raises:
        ApiError: `answer` raised it before the response began; later it is an `error` event.
    """
    events: asyncio.Queue[bytes | None] = asyncio.Queue()
    begun = False

    def emit(event: str, data: Any) -> None:
        nonlocal begun
        begun = True
        for one in write(event, data):
            events.put_nowait(one)

    async def work() -> None:
        try:
            emit("result", await answer(emit))
        except Exception as error:
            if not begun:
                raise
            if not isinstance(error, ApiError):
                LOG.error(f"unexpected {type(error).__name__}", exc_info=error, extra={"event": "bug"})
                error = ApiError(500, "server_error", "unexpected error; the log says which")
            emit("error", error.body)
        finally:
            events.put_nowait(None)

    task = asyncio.ensure_future(work())
    try:
        first = await _next(events)
    except asyncio.CancelledError:
        task.cancel()
        raise
    if task.done() and not begun:
        task.result()  # raises what ended it
    begun = True
    return StreamingResponse(
        _body(first, events, task),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


def sse(data: Any, event: str | None = None) -> bytes:
    """One server-sent event; `data` is JSON unless it is text."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return ((f"event: {event}\n" if event else "") + f"data: {text}\n\n").encode()


async def _body(
    event: bytes | None, events: "asyncio.Queue[bytes | None]", task: "asyncio.Task[None]"
) -> AsyncIterator[bytes]:
    try:
        while event is not None:
            yield event
            event = await _next(events)
    finally:
        task.cancel()


async def _next(events: "asyncio.Queue[bytes | None]") -> bytes | None:
    """The next event, or a comment where it lets itself be waited for: proxies close what is silent."""
    try:
        async with asyncio.timeout(KEEP_ALIVE_S):
            return await events.get()
    except TimeoutError:
        return b": keep-alive\n\n"
