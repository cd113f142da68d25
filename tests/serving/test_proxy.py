"""What Serve's proxy answers by itself reaches a client in the endpoint's error shape; what a replica answers
is left alone."""

import asyncio

import httpx
import pytest
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.types import ASGIApp

from stasc_ray.serving.proxy import middlewares


def answered(response: ASGIApp) -> httpx.Response:
    """What a client gets where Serve sends `response`."""
    (middleware,) = middlewares()

    async def get() -> httpx.Response:
        transport = httpx.ASGITransport(middleware.cls(response, *middleware.args, **middleware.kwargs))
        async with httpx.AsyncClient(transport=transport, base_url="http://proxy") as client:
            return await client.get("/")

    return asyncio.run(get())


@pytest.mark.parametrize(
    ("status", "expected", "type"),
    [
        (500, 503, "unavailable_error"),
        (404, 503, "unavailable_error"),
        (503, 503, "unavailable_error"),
        (429, 429, "rate_limit_error"),
        (408, 504, "timeout_error"),
    ],
)
def test_the_proxys_own_errors_are_told_in_our_shape(status: int, expected: int, type: str) -> None:
    found = answered(
        PlainTextResponse("Internal Server Error", status_code=status, headers={"x-request-id": "one"})
    )
    assert found.status_code == expected and found.headers["x-request-id"] == "one"
    assert found.json()["error"]["type"] == type and "Internal" not in found.text
    assert ("retry-after" in found.headers) == (expected in (429, 503))


def test_what_a_replica_answers_is_left_alone() -> None:
    body = {"error": {"type": "not_found_error", "message": "no", "param": None}}
    found = answered(JSONResponse(body, status_code=404))
    assert found.status_code == 404 and found.json() == body
    assert (
        answered(StreamingResponse(iter(["event: start\n", "data: {}\n\n"]))).text
        == "event: start\ndata: {}\n\n"
    )


def test_no_answer_at_all_is_a_replica_that_died() -> None:
    async def silent(scope, receive, send) -> None:
        """What Serve does then."""

    found = answered(silent)
    assert found.status_code == 503 and "died" in found.json()["error"]["message"]
