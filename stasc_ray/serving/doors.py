"""Who is let in: API keys, requests a minute per key, a bounded number of questions at once, a bounded queue.

Keys are kept as hashes in a file and compared in constant time. A key is 256 random bits: SHA-256 suffices.
"""

import asyncio
import contextlib
import hashlib
import hmac
import json
import math
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from stasc_ray import store
from stasc_ray.serving.errors import ApiError

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
"""Names of this machine that nobody on a network reaches it by."""


class Admission:
    """Lets `max_in_flight` questions in, lets `max_queue` wait in order, and turns the rest away."""

    def __init__(self, max_in_flight: int, max_queue: int) -> None:
        self.max_in_flight, self.max_queue = max_in_flight, max_queue
        self.in_flight = 0
        self.queued = 0
        self._places = asyncio.Semaphore(max_in_flight)
        self._mean_s = 1.0

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for a place, and hold it for the length of the block.

        Raises:
            ApiError: 429 with Retry-After, the queue is full.
        """
        if self._places.locked() and self.queued >= self.max_queue:
            raise ApiError(
                429,
                "rate_limit_error",
                f"busy: {self.in_flight} questions in flight and {self.queued} waiting "
                "(serve.max_in_flight, serve.max_queue)",
                headers={"Retry-After": str(self.retry_after_s())},
            )
        self.queued += 1
        try:
            await self._places.acquire()
        finally:
            self.queued -= 1
        self.in_flight += 1
        started = time.monotonic()
        try:
            yield
        finally:
            self._mean_s += 0.1 * (time.monotonic() - started - self._mean_s)
            self.in_flight -= 1
            self._places.release()

    def retry_after_s(self) -> int:
        """Seconds in which the queue is likely to have moved by a whole round, 1 to 60."""
        return min(60, max(1, math.ceil(self._mean_s * (self.queued + 1) / self.max_in_flight)))


class Key(BaseModel):
    """What the file holds of a key."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    admin: bool = False
    requests_per_minute: float | None = Field(None, gt=0)


_KEYS = TypeAdapter(list[Key])


def add_key(file: Path, name: str, *, admin: bool = False, requests_per_minute: float | None = None) -> str:
    """Make a key, append its hash to `file` (mode 600) and return the key, which is kept nowhere.

    Raises:
        ValueError: the file holds a key of that name, or is not a file of keys.
    """
    keys = read_keys(file) if file.exists() else []
    if any(key.name == name for key in keys):
        raise ValueError(
            f"--name: expected a new name, found {name!r} in {file}; delete its entry there, or take another "
            f"name"
        )
    secret = f"stasc-{secrets.token_urlsafe(32)}"
    keys.append(Key(name=name, sha256=_hash(secret), admin=admin, requests_per_minute=requests_per_minute))
    store.write_atomically(file, json.dumps([key.model_dump() for key in keys], indent=2) + "\n")
    file.chmod(0o600)
    return secret


def read_keys(file: Path) -> list[Key]:
    """The keys of a file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: something else than a JSON list of keys.
    """
    try:
        return _KEYS.validate_json(file.read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(
            f"--api-keys-file: found nothing at {file}; `stasc keys add` makes one"
        ) from None
    except ValidationError as error:
        raise ValueError(
            f"--api-keys-file: expected a file made by `stasc keys add`, found in {file}: {error}"
        ) from None


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


class KeyRing:
    """Checks keys against a file. It is read again when it changes: keys come and go while serving."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen: tuple[int, int] | None = None
        self._keys: list[Key] = []
        self._tokens: dict[str, tuple[float, float]] = {}
        self._reread()

    def check(self, authorization: str | None, *, admin: bool) -> Key:
        """The key in an `Authorization: Bearer` header.

        Raises:
            ApiError: 401 no or unknown key, 403 no admin key, 429 too many requests of this key.
        """
        with contextlib.suppress(OSError, ValueError):  # a half-edited file: its last whole content counts
            self._reread()
        scheme, _, secret = (authorization or "").partition(" ")
        digest = _hash(secret.strip())
        found = None
        for key in self._keys:  # all of them, so the duration does not give away which one
            if hmac.compare_digest(key.sha256, digest):
                found = key
        if scheme.lower() != "bearer" or found is None:
            raise ApiError(
                401,
                "authentication_error",
                "expected a known key in `Authorization: Bearer KEY`",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if admin and not found.admin:
            raise ApiError(403, "permission_error", "expected an admin key (`stasc keys add --admin`)")
        self._take(found)
        return found

    def _take(self, key: Key) -> None:
        """Token bucket that holds a minute's worth."""
        if key.requests_per_minute is None:
            return
        now = time.monotonic()
        tokens, then = self._tokens.get(key.name, (key.requests_per_minute, now))
        tokens = min(max(key.requests_per_minute, 1.0), tokens + (now - then) * key.requests_per_minute / 60)
        if tokens < 1:
            wait_s = int((1 - tokens) * 60 / key.requests_per_minute) + 1
            raise ApiError(
                429,
                "rate_limit_error",
                f"this key may send {key.requests_per_minute:g} requests a minute; try again in {wait_s} s",
                headers={"Retry-After": str(wait_s)},
            )
        self._tokens[key.name] = (tokens - 1, now)

    def _reread(self) -> None:
        state = self._file.stat()
        seen = (state.st_mtime_ns, state.st_size)
        if seen != self._seen:
            self._keys, self._seen = read_keys(self._file), seen
