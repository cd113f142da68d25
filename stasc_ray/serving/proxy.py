"""Ray Serve's own processes: how they run, and what its HTTP proxy answers by itself, where no replica does.

Serve says a plain 500 for a replica that died, 404 while there is none, 408 after its own time limit; clients get the endpoint's
error body instead. The proxy loads `middlewares` because it inherits the controller's environment, CONTROLLER_OPTIONS.
"""

from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stasc_ray.serving.errors import ApiError
from stasc_ray.serving.http import error_response

ONE_LOOP = {"RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0", "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}
"""One event loop in proxy and replica: nothing here blocks it, and handing each message to a second thread costs much."""
CONTROLLER_OPTIONS = {
    "runtime_env": {"env_vars": {**ONE_LOOP, "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "stasc_ray.serving.proxy.middlewares"}}
}
"""`controller_options` of serve.start and of a Serve config file."""
RETRY_AFTER = {"Retry-After": "5"}


def middlewares() -> list[Middleware]:
    """What the proxy puts around Serve; it calls this once."""
    return [Middleware(OneErrorBody)]


class OneErrorBody:
    """ASGI middleware: an error that is not JSON is Serve's own, and is told in our words."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        told = False

        async def send_ours(message: Message) -> None:
            nonlocal told
            if message["type"] == "http.response.start" and message["status"] >= 400:
                headers = MutableHeaders(raw=list(message.get("headers", [])))
                if not headers.get("content-type", "").startswith("application/json"):
                    told = True
                    reply = error_response(in_our_words(message["status"]))
                    if request_id := headers.get("x-request-id"):
                        reply.headers["x-request-id"] = request_id
                    await reply(scope, receive, send)
            if not told:
                await send(message)

        await self.app(scope, receive, send_ours)


def in_our_words(status: int) -> ApiError:
    """The error for what Serve answered with `status`; none of them says that the request was wrong."""
    if status == 408:
        return ApiError(504, "timeout_error", "not answered within the endpoint's time limit; ask for less, or later")
    if status == 500:
        message = "the replica that had this request died; another one starts, try again"
    else:
        message = "no replica takes requests: the endpoint starts, stops or is overloaded; try again"
    return ApiError(503, "unavailable_error", message, headers=RETRY_AFTER)
