"""The plumbing of HTTP: request ids, body size, Host, error bodies, one log line per request."""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stasc_ray import config
from stasc_ray.serving.doors import LOOPBACK_HOSTS
from stasc_ray.serving.errors import TYPES, ApiError, invalid
from stasc_ray.serving.keys import Key

if TYPE_CHECKING:
    from stasc_ray.serving.routers.replica import Replica

LOG = logging.getLogger("ray.serve")
LOOPBACK = {*LOOPBACK_HOSTS, "[::1]"}
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Door:
    """ASGI middleware around every request: id, Host, key, body; then metrics and a log line without its
    texts.

    All that is checked before the body is read, and the body in bounded time.
    """

    def __init__(self, app: ASGIApp, replica: "Replica", serve: config.Serve, loopback_only: bool) -> None:
        self.app, self.keys, self.monitor = app, replica.keys, replica.service.monitor
        self.serve, self.loopback_only = serve, loopback_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        # Serve's proxy makes one if the client sent none, and echoes it
        request_id = request_id_of(headers)
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        started, status = time.monotonic(), 499  # stays so when the client goes away

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._check_host(headers)
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            state["key"] = self._check_key(path, headers)
            # other routes read none: what a client sends to them, or does not, holds nothing up
            asks = path.startswith("/v1/") and scope["method"] == "POST"
            body = await whole_body(headers, receive, self.serve) if asks else b""
            receive = replayed(body, receive)
        except ApiError as error:
            await error_response(error)(scope, receive, send_and_note)
        else:
            await self.app(scope, receive, send_and_note)
        finally:
            self._note(scope, request_id, status, time.monotonic() - started)

    def _check_host(self, headers: dict[str, str]) -> None:
        """Raises ApiError: 403, the Host is not this machine: a web page may have pointed it here."""
        host = headers.get("host", "").rpartition(":")[0] or headers.get("host", "")
        if self.loopback_only and host not in LOOPBACK:
            raise ApiError(
                403,
                "permission_error",
                f"expected Host 127.0.0.1 or localhost, found {host!r}; see `stasc serve --help`",
            )

    def _check_key(self, path: str, headers: dict[str, str]) -> Key | None:
        """Raises ApiError as `KeyRing.check`."""
        if self.keys is None or not path.startswith("/v1/"):
            return None
        return self.keys.check(headers.get("authorization"), admin=path.startswith("/v1/admin/"))

    def _note(self, scope: Scope, request_id: str, status: int, duration_s: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        self.monitor.requests.labels(route, str(status)).inc()
        key = scope["state"].get("key")
        details = {
            "request_id": request_id,
            "route": route,
            "status": status,
            "duration_ms": round(duration_s * 1000, 1),
            "key": key.name if key else None,
        }
        quiet = route in ("/healthz", "/readyz", "/metrics")  # asked for every few seconds
        level = logging.DEBUG if quiet else logging.INFO
        LOG.log(
            level,
            f"request {details}",
            extra={"event": "request", **{f"stasc_{name}": value for name, value in details.items()}},
        )


async def whole_body(
    headers: Mapping[str, str],
    receive: Receive,
    serve: config.Serve,
    room: Callable[[int], None] = lambda _: None,
) -> bytes:
    """The body, read up to the limits.

    Args:
        room: gets the size of each piece that comes; what it raises ends the reading.

    Raises:
        ApiError: 413, too large; 408, too slow.
    """
    limit = serve.max_body_kb * 1024
    too_large = invalid(
        None, f"expected a body of at most serve.max_body_kb = {serve.max_body_kb} KiB", status=413
    )
    stated = headers.get("content-length", "")
    if stated.isdigit() and int(stated) > limit:
        raise too_large
    body, more = bytearray(), True
    try:
        async with asyncio.timeout(serve.body_timeout_s):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    break
                piece: bytes = message.get("body", b"")
                room(len(piece))
                body += piece
                more = message.get("more_body", False)
                if len(body) > limit:
                    raise too_large
    except TimeoutError:
        text = f"expected the whole body within serve.body_timeout_s = {serve.body_timeout_s:g} s"
        raise ApiError(408, "invalid_request_error", text, headers={"Connection": "close"}) from None
    return bytes(body)


def replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body which was read before."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


def request_id_of(headers: Mapping[str, str]) -> str:
    """A request's id: the client's, if it is one, else a new one."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def error_response(error: ApiError) -> Response:
    """An ApiError as HTTP."""
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)


def add_error_handlers(app: FastAPI) -> None:
    """Give every error, also FastAPI's and Starlette's own, the one body."""

    @app.exception_handler(ApiError)
    async def _ours(_: Request, error: ApiError) -> Response:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def _validation(_: Request, error: RequestValidationError) -> Response:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"] if part != "body")
        return error_response(invalid(where or None, f"{where or 'body'}: {problem['msg']}"))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        message = str(error.detail)
        if error.status_code in (404, 405):
            message = f"{request.method} {request.url.path}: {message}; the routes are listed at /docs"
        type = TYPES.get(error.status_code, "invalid_request_error")
        return error_response(ApiError(error.status_code, type, message, headers=dict(error.headers or {})))

    @app.exception_handler(Exception)
    async def _bug(request: Request, error: Exception) -> Response:
        LOG.error(f"unexpected {type(error).__name__}", exc_info=error, extra={"event": "bug"})
        return error_response(
            ApiError(
                500, "server_error", f"unexpected error; the log names request {request.state.request_id}"
            )
        )
