"""API keys: kept as hashes in a file, compared in constant time, each with its rates.

A key is 256 random bits: SHA-256 suffices. The file is read again when it, or what it links to, changes: a
Kubernetes secret is a link to a link, and an update moves the middle one.
"""

import asyncio
import hashlib
import hmac
import json
import logging
import math
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from stasc_ray import store
from stasc_ray.serving.doors import Bucket
from stasc_ray.serving.errors import ApiError

LOG = logging.getLogger("ray.serve")
LOOK_S = 2.0
"""Between two looks at the file."""
CLOSED_AFTER_S = 60.0
"""After so long without a file that can be read nobody is let in: a key in it may have been revoked."""


class Key(BaseModel):
    """What the file holds of a key."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    admin: bool = False
    requests_per_minute: float | None = Field(None, gt=0)
    tokens_per_minute: float | None = Field(None, gt=0)
    """Written ones; a request holds as many as it may write until it ends."""


_KEYS = TypeAdapter(list[Key])


def add_key(
    file: Path,
    name: str,
    *,
    admin: bool = False,
    requests_per_minute: float | None = None,
    tokens_per_minute: float | None = None,
) -> str:
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
    keys.append(
        Key(
            name=name,
            sha256=_hash(secret),
            admin=admin,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
        )
    )
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
    """Checks keys against a file, which `follow` reads again as it changes.

    Args:
        file: a file of keys; where it leads is looked up at each look.

    Raises:
        FileNotFoundError, ValueError: as `read_keys`.
    """

    def __init__(self, file: Path) -> None:
        self._file = file.absolute()
        self._seen = _state(self._file) if self._file.exists() else None
        self._keys = read_keys(self._file)
        self._read_at = time.monotonic()
        self.problem: str | None = None
        self._buckets: dict[tuple[str, str, float], Bucket] = {}

    def check(self, authorization: str | None, *, admin: bool) -> Key:
        """The key in an `Authorization: Bearer` header.

        Raises:
            ApiError: 401 no or unknown key, 403 no admin key, 429 too many requests of this key, 503 the file
                of keys could not be read for CLOSED_AFTER_S.
        """
        if time.monotonic() - self._read_at > CLOSED_AFTER_S:  # also where a look hangs
            raise ApiError(503, "unavailable_error", "the file of keys cannot be read: nobody is let in")
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
        self._take(found, "requests", found.requests_per_minute, 1)
        return found

    def charge(self, key: Key | None, tokens: int) -> Callable[[int], None]:
        """Hold as many tokens as a request may write; the function that is returned gets those it wrote.

        Raises:
            ApiError: 429, too many tokens of this key.
        """
        rate = key.tokens_per_minute if key else None
        if key is None or rate is None:
            return lambda _: None
        bucket, held = self._take(key, "tokens", rate, tokens), min(tokens, max(rate, 1.0))
        return lambda used: bucket.give(held - used) if bucket else None

    def look(self) -> None:
        """Read the file if it has changed; one that cannot be read leaves the keys that were read last."""
        try:
            if (seen := _state(self._file)) != self._seen or self.problem:
                self._keys, self._seen = read_keys(self._file), seen
                LOG.info(f"keys_read {len(self._keys)}", extra={"event": "keys_read"})
            self.problem, self._read_at = None, time.monotonic()
        except (OSError, ValueError) as error:
            if self.problem is None:
                LOG.error(f"keys_unreadable {error}", extra={"event": "keys_unreadable"})
            self.problem = str(error)

    async def follow(self) -> None:
        """Look every LOOK_S seconds."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await asyncio.to_thread(self.look)
            except Exception as error:  # or no key would ever come or go again
                LOG.error(f"keys_unreadable {error}", extra={"event": "keys_unreadable"})

    def _take(self, key: Key, what: str, rate: float | None, amount: float) -> Bucket | None:
        if rate is None:
            return None
        bucket = self._buckets.setdefault((key.name, what, rate), Bucket(rate))
        if wait_s := math.ceil(bucket.take(amount)):
            raise ApiError(
                429,
                "rate_limit_error",
                f"this key may use {rate:g} {what} a minute; try again in {wait_s} s",
                headers={"Retry-After": str(wait_s)},
            )
        return bucket


def _state(file: Path) -> tuple[int, int, int, int]:
    """Changes with the file's content, and with where its links lead."""
    state = file.stat()
    return state.st_dev, state.st_ino, state.st_mtime_ns, state.st_size
