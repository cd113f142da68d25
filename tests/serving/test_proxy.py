"""What Serve's proxy answers by itself reaches a client in the endpoint's error shape; what a replica answers
is left alone."""

import asyncio

import httpx
import pytest
import uvicorn
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.types import ASGIApp

from stasc_ray.serving import proxy
from stasc_ray.serving.proxy import middlewares


def answered(response: ASGIApp) -> httpx.Response:
    """What a client gets where Serve sends `response`."""
    _, middleware, *_ = middlewares()

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


def test_a_path_that_is_none_is_not_found() -> None:
    """At 05a8cae `POST *` was answered with 503, as if there were no replica."""
    only, *_ = middlewares()
    statuses: list[int] = []

    async def send(message) -> None:
        statuses.extend([message["status"]] if "status" in message else [])

    asyncio.run(only.cls(None)({"type": "http", "path": "*", "headers": []}, None, send))
    assert statuses == [404]


@pytest.mark.parametrize("value", [b"websocket", b"WebSocket"])
def test_a_wish_for_a_websocket_is_refused_and_takes_no_place(value: bytes) -> None:
    only, *_ = middlewares()
    statuses: list[int] = []

    async def send(message) -> None:
        statuses.extend([message["status"]] if "status" in message else [])

    scope = {"type": "http", "path": "/v1/run", "headers": [(b"upgrade", value)]}
    asyncio.run(only.cls(None)(scope, None, send))
    assert statuses == [400]
    server = uvicorn.Config(PlainTextResponse("ok"))
    server.load()
    assert server.ws_protocol_class is None, "at 672d5ee a POST that asked for one was never answered"


def test_no_answer_at_all_is_a_replica_that_died() -> None:
    async def silent(scope, receive, send) -> None:
        """What Serve does then."""

    found = answered(silent)
    assert found.status_code == 503 and "died" in found.json()["error"]["message"]


async def behind_the_proxy(
    sent: list[dict], monkeypatch: pytest.MonkeyPatch, method: str = "POST"
) -> tuple[int, list[bytes]]:
    """The status of a request whose body comes in pieces and then no more, and the bodies that Serve got."""
    monkeypatch.setenv("STASC_MAX_BODY_KB", "1")
    monkeypatch.setenv("STASC_BODY_TIMEOUT_S", "0.05")
    *_, whole = middlewares()
    got: list[bytes] = []
    statuses: list[int] = []

    async def serve(scope, receive, send) -> None:
        got.append((await receive())["body"] if method == "POST" else b"")
        await JSONResponse({})(scope, receive, send)

    async def receive() -> dict:
        if not sent:
            await asyncio.sleep(60)
        return {"type": "http.request", **sent.pop(0)}

    async def send(message) -> None:
        if "status" in message:
            statuses.append(message["status"])
            named = dict(message["headers"]).get(b"x-request-id")
            assert named == b"mine" or message["status"] == 200, "what the proxy refuses has its id"

    headers = [(b"content-length", b"7"), (b"x-request-id", b"mine")]
    scope = {"type": "http", "method": method, "path": "/", "headers": headers}
    await whole.cls(serve, **whole.kwargs)(scope, receive, send)
    (status,) = statuses
    return status, got


def test_a_request_reaches_serve_with_its_whole_body_or_not_at_all(monkeypatch) -> None:
    """At 05a8cae 600 bodies that were sent slowly took all places in a replica, also those of /healthz."""

    def asked(*sent: dict, method: str = "POST") -> tuple[int, list[bytes]]:
        return asyncio.run(behind_the_proxy(list(sent), monkeypatch, method))

    first = {"body": b'{"a"', "more_body": True}
    assert asked(first, {"body": b":1}"}) == (200, [b'{"a":1}'])
    assert asked(first) == (408, [])
    assert asked(*[{"body": b"x" * 600, "more_body": True}] * 2) == (413, [])
    assert asked(method="GET") == (200, [b""])
    monkeypatch.setattr(proxy, "HELD_BYTES", 6)
    assert asked(first, {"body": b":1}"}) == (429, [])
    assert asked(first, {"body": b"1"}) == (200, [b'{"a"1'])


def test_headers_that_steer_serve_do_not_reach_it() -> None:
    """At 05a8cae `x-request-timeout-seconds: 0` lifted every time limit."""
    seen: list[dict[str, str]] = []

    async def serve(scope, receive, send) -> None:
        seen.append({name.decode(): value.decode() for name, value in scope["headers"]})
        await JSONResponse({})(scope, receive, send)

    *_, guard, _ = middlewares()
    orders = {
        "X-Request-Timeout-Seconds": "0",
        "x_request_disconnect_disabled": "?1",
        "serve_multiplexed_model_id": "x",
        "serve-multiplexed-model-id": "x",
        "X-Session-Id": "x",
        "x-serve-router-y": "x",
        "x-stasc-guarded": "forged",
        "x-request-id": b"\xff",
        "authorization": "Bearer x",
    }

    async def get() -> None:
        transport = httpx.ASGITransport(guard.cls(serve))
        async with httpx.AsyncClient(transport=transport, base_url="http://proxy") as client:
            await client.get("/", headers=orders)

    asyncio.run(get())
    plain = ("host", "accept", "accept-encoding", "connection", "user-agent")
    assert {name for name in seen[0] if name not in plain} == {"authorization", "x-stasc-guarded"}
    assert seen[0]["x-stasc-guarded"] == "1"
