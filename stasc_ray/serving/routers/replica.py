"""What the routes of one replica share, and who may use them."""

import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client.metrics_core import Metric

from stasc_ray.serving.errors import ApiError
from stasc_ray.serving.keys import Key, KeyRing
from stasc_ray.serving.service import Charge, Service


@dataclass(frozen=True)
class Replica:
    """One replica, as its routes see it; `app.state.replica`."""

    name: str
    service: Service
    keys: KeyRing | None
    """None answers everybody; then there is no admin either."""
    all_metrics: Callable[[], Awaitable[list[list[Metric]]]]
    """Of all replicas of this endpoint."""

    def charge(self, key: Key | None) -> Charge:
        """What a request of this key is charged by."""
        return functools.partial(self.keys.charge, key) if self.keys else lambda _: lambda _: None


async def _this_replica(request: Request) -> Replica:
    return request.app.state.replica


async def _request_id(request: Request) -> str:
    return request.state.request_id


BEARER = HTTPBearer(
    auto_error=False, description="A key made by `stasc keys add`; needed where keys are in use"
)
Here = Annotated[Replica, Depends(_this_replica)]
RequestId = Annotated[str, Depends(_request_id)]
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)]


def key_needed(request: Request, here: Here, _: Credentials) -> Key | None:
    """The key that http.Door let in; None where no keys are in use.

    Raises:
        ApiError: 401, a route that the door does not guard.
    """
    key = getattr(request.state, "key", None)
    if here.keys and key is None:
        raise ApiError(401, "authentication_error", "expected a known key in `Authorization: Bearer KEY`")
    return key


def admin_key_needed(request: Request, here: Here, _: Credentials) -> None:
    """Refuse requests without an admin key."""
    if here.keys is None:
        message = "expected an admin key; start with --api-keys-file (`stasc keys add --admin`)"
        raise ApiError(403, "permission_error", message)
    key = key_needed(request, here, _)
    if not (key and key.admin):
        raise ApiError(403, "permission_error", "expected an admin key (`stasc keys add --admin`)")


TheKey = Annotated[Key | None, Depends(key_needed)]
