"""API keys: made here, kept as hashes in a file, compared in constant time. A key is 256 random bits, so a plain SHA-256 does."""

import contextlib
import hashlib
import hmac
import json
import secrets
import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from stasc_ray import store
from stasc_ray.serving.errors import ApiError


class Key(BaseModel):
    """What the file holds of a key."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    admin: bool = False
    requests_per_minute: float | None = Field(None, gt=0)


_KEYS = TypeAdapter(list[Key])


def add_key(file: Path, name: str, *, admin: bool = False, requests_per_minute: float | None = None) -> str:
    """Make a key, append its hash to `file` (mode 600) and return the key, which nothing else knows.

    Raises:
        ValueError: the file holds a key of that name, or is no file of keys.
    """
    keys = read_keys(file) if file.exists() else []
    if any(key.name == name for key in keys):
        raise ValueError(
            f"--name: expected a new name, found {name!r} in {file}; delete its entry there, or take another name"
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
    """Checks keys against a file that is read again when it changes, so that a key can be added or revoked while serving."""

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
        with contextlib.suppress(
            OSError, ValueError
        ):  # while the file is being edited its last whole content counts
            self._reread()
        scheme, _, secret = (authorization or "").partition(" ")
        digest = _hash(secret.strip())
        found = None
        for key in self._keys:  # all of them, so that time tells nothing about which one
            if hmac.compare_digest(key.sha256, digest):
                found = key
        if scheme.lower() != "bearer" or found is None:
            challenge = {"WWW-Authenticate": "Bearer"}
            raise ApiError(
                401,
                "authentication_error",
                "expected a known key in `Authorization: Bearer KEY`",
                headers=challenge,
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
