"""Errors of a request: a status and `{"error": {"type", "message", "param", "code"}}`, as OpenAI's API
answers.
"""

from typing import Any

from pydantic import BaseModel, Field


class Problem(BaseModel):
    """What went wrong."""

    type: str = Field(description="Kind of error, for programs", examples=["invalid_request_error"])
    message: str = Field(description="What was expected, what was found, what to do")
    param: str | None = Field(None, description="Field of the request that it is about")
    code: str | None = Field(None, description="What exactly, as context_length_exceeded")


class ErrorBody(BaseModel):
    """Body of every answer whose status is 400 or more."""

    error: Problem


class ApiError(Exception):
    """An answer with an error status; `headers` may hold Retry-After and the like."""

    def __init__(
        self,
        status: int,
        type: str,
        message: str,
        param: str | None = None,
        headers: dict[str, str] | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.type, self.message, self.param, self.code = status, type, message, param, code
        # OpenAI's clients repeat these unless they are told that it would not help
        self.headers = (headers or {}) | ({"x-should-retry": "false"} if status in (408, 409, 504) else {})

    @property
    def body(self) -> dict[str, Any]:
        """The JSON body; half surrogate pairs, as a path or a field name may hold, become question marks."""
        parts = {"type": self.type, "message": self.message, "param": self.param, "code": self.code}
        return {
            "error": {name: part and part.encode("utf-8", "replace").decode() for name, part in parts.items()}
        }


def invalid(param: str | None, message: str, status: int = 400, code: str | None = None) -> ApiError:
    """A request that must change before it can be answered."""
    return ApiError(status, "invalid_request_error", message, param, code=code)


TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "method_not_allowed",
    408: "invalid_request_error",
    409: "version_not_loaded",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "server_error",
    503: "unavailable_error",
    504: "timeout_error",
}
"""`error.type` by status, if nothing more exact is known."""


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route for its OpenAPI document."""
    return {
        status: {"model": ErrorBody, "description": TYPES[status].replace("_", " ")} for status in statuses
    }


ASKING = responses(400, 401, 403, 404, 408, 409, 413, 429, 500, 503, 504)
"""What asking a question may end in."""
