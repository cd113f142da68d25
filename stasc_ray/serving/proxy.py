"""Ray Serve's processes: how they run, and what its HTTP proxy answers if no replica does.

Serve answers nothing for a replica that died, 404 while there is none, 408 after its time limit. Clients get
the endpoint's error body instead. A request gets a place in a replica only with its whole body: some 500
that are sent slowly would take all places, also those of /healthz. The proxy loads `middlewares` because it
inherits the controller's environment, `controller_options`.
"""

import os
from typing import Any

import uvicorn.config
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stasc_ray import config
from stasc_ray.serving.errors import ApiError
from stasc_ray.serving.http import error_response, replayed, request_id_of, whole_body

ONE_LOOP = {"RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0", "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}
"""One event loop in proxy and replica: a second thread for each message costs more than what runs here."""
MAX_BODY_KB, BODY_TIMEOUT_S = "STASC_MAX_BODY_KB", "STASC_BODY_TIMEOUT_S"
"""Environment variables with serve.max_body_kb and serve.body_timeout_s; default: the config's defaults."""
HELD_BYTES = 256 * 2**20
"""Of bodies that are not yet whole, over all requests; more is turned away."""
ORDERS = (
    b"x-request-timeout-seconds",
    b"x-request-disconnect-disabled",
    b"serve-multiplexed-model-id",
    b"x-session-id",
)
"""Headers that Serve's proxy obeys."""
GUARDED = b"x-stasc-guarded"
"""Header by which a replica sees that a request came through `NoOrders`."""
RETRY_AFTER = {"Retry-After": "5"}


def controller_options(serve: config.Serve) -> dict[str, Any]:
    """`controller_options` of serve.start and of a Serve config file."""
    env_vars = {
        **ONE_LOOP,
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "stasc_ray.serving.proxy.middlewares",
        MAX_BODY_KB: str(serve.max_body_kb),
        BODY_TIMEOUT_S: str(serve.body_timeout_s),
    }
    return {"runtime_env": {"env_vars": env_vars}}


def middlewares() -> list[Middleware]:
    """What the proxy puts around Serve; it calls this once, before its HTTP server starts."""
    # By default a POST that asks for a websocket goes to uvicorn's websocket library, which never answers it.
    # Serve passes no choice on, so there is no such library, and `OnlyRequests` sees the request.
    uvicorn.config.WS_PROTOCOLS["auto"] = None
    names = {"max_body_kb": MAX_BODY_KB, "body_timeout_s": BODY_TIMEOUT_S}
    found = {field: os.environ[name] for field, name in names.items() if name in os.environ}
    limits = config.Serve.model_validate(found, strict=False)
    inner = [Middleware(OnlyRequests), Middleware(OneErrorBody), Middleware(NoOrders)]
    return [*inner, Middleware(WholeBody, limits=limits)]  # Ray puts the last one outermost


class OnlyRequests:
    """ASGI middleware that refuses what is no request: wishes for a websocket, and paths that are none, for
    which Serve would say that no replica is there.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        error = None
        if scope["type"] == "http" and Headers(scope=scope).get("upgrade", "").lower() == "websocket":
            error = ApiError(400, "invalid_request_error", "expected a request, found one for a websocket")
        elif scope["type"] == "http" and not scope["path"].startswith("/"):
            message = f"expected a path that begins with /, found {scope['path']!r}"
            error = ApiError(404, "not_found_error", message)
        if error:
            await _refuse(error, scope, receive, send)
        else:
            await self.app(scope, receive, send)


class NoOrders:
    """ASGI middleware that drops what a client would tell Serve itself by headers: its time limit, its
    routing; and values that Serve could not read. It marks what went through it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http":
            kept = [one for one in scope["headers"] if one[1].isascii() and not _is_order(one[0])]
            scope = {**scope, "headers": [*kept, (GUARDED, b"1")]}
        await self.app(scope, receive, send)


def _is_order(name: bytes) -> bool:
    plain = name.lower().replace(b"_", b"-")
    return plain in ORDERS or plain.startswith(b"x-serve-router-") or plain == GUARDED


class WholeBody:
    """ASGI middleware that reads the body of a POST within the limits, and then passes the request on."""

    def __init__(self, app: ASGIApp, limits: config.Serve) -> None:
        self.app, self.limits, self.held = app, limits, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http" and scope["method"] == "POST":  # what else has a body is answered unread
            try:
                receive = replayed(await self._read(Headers(scope=scope), receive), receive)
            except ApiError as error:
                await _refuse(error, scope, receive, send)
                return
        await self.app(scope, receive, send)

    async def _read(self, headers: Headers, receive: Receive) -> bytes:
        mine = 0

        def room(size: int) -> None:
            nonlocal mine
            mine, self.held = mine + size, self.held + size
            if self.held > HELD_BYTES:
                raise our_error(429)

        try:
            return await whole_body(headers, receive, self.limits, room)
        finally:
            self.held -= mine


async def _refuse(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer for Serve, which gives a reply its id further inside."""
    reply = error_response(error)
    reply.headers["x-request-id"] = request_id_of(Headers(scope=scope))
    await reply(scope, receive, send)


class OneErrorBody:
    """ASGI middleware that replaces Serve's error pages, and a missing answer, by our error body.

    Our errors are JSON and Serve's are not.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answered = replaced = False

        async def answer(status: int, request_id: str | None) -> None:
            reply = error_response(our_error(status))
            if request_id:
                reply.headers["x-request-id"] = request_id
            await reply(scope, receive, send)

        async def send_ours(message: Message) -> None:
            nonlocal answered, replaced
            if message["type"] == "http.response.start":
                answered = True
                headers = Headers(raw=message.get("headers", []))
                if message["status"] >= 400 and not headers.get("content-type", "").startswith(
                    "application/json"
                ):
                    replaced = True
                    await answer(message["status"], headers.get("x-request-id"))
            if not replaced:
                await send(message)

        await self.app(scope, receive, send_ours)
        if not answered:  # a replica that died: Serve leaves it to the HTTP server, which says a plain 500
            await answer(500, Headers(scope=scope).get("x-request-id"))


def our_error(status: int) -> ApiError:
    """Our error for Serve's `status`; none of them says that the request was wrong."""
    match status:
        case 408:
            return ApiError(
                504, "timeout_error", "not answered within the endpoint's time limit; ask for less, or later"
            )
        case 429:
            return ApiError(429, "rate_limit_error", "the endpoint is busy; try again", headers=RETRY_AFTER)
        case 500:
            message = "the replica that had this request died; another one starts, try again"
        case _:
            message = "no replica takes requests: the endpoint starts, stops or is overloaded; try again"
    return ApiError(503, "unavailable_error", message, headers=RETRY_AFTER)
