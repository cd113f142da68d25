"""Which version a replica serves: look at the run, decide, move.

A replica reads LATEST, versions/*.json and the pin. A request holds the version that it began with until it
ends; the engine of an old version goes when its last request has. A version that fails is never served. It is
remembered with its reason, and tried again when its files change. An engine that could not start is also
tried again after a while.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass
from typing import Any

from stasc_ray import config, store
from stasc_ray.generation.engines import EngineDiedError
from stasc_ray.generation.spec import EngineSpec
from stasc_ray.serving.errors import ApiError
from stasc_ray.serving.loading import Loaded, Loader
from stasc_ray.serving.published import LATEST, read_pin, state_of_files

LOG = logging.getLogger("ray.serve")
MAX_STARTS_IN_A_ROW = 5
RETRY_S, MAX_RETRY_S = 5.0, 600.0


def to_try(published: Collection[str], wanted: str | None, active: str | None) -> list[str]:
    """Versions to move to, best first; [] to stay. Without an engine the others follow, newest first."""
    if active:
        return [wanted] if wanted and wanted != active else []
    others = sorted(set(published) - {wanted}, reverse=True)
    return [wanted, *others] if wanted else others


@dataclass(frozen=True)
class Refusal:
    """Why a version is not served, for these files, and when to try again (monotonic seconds)."""

    files: str
    reason: str
    retry_at: float = math.inf
    attempts: int = 1

    def stands(self, files: str, now: float) -> bool:
        """Whether there is nothing new to try."""
        return files == self.files and now < self.retry_at


def refusal(error: Exception, files: str, before: Refusal | None, now: float) -> Refusal:
    """What follows from an error. An engine that died may have lacked memory: try again, ever more rarely."""
    if not isinstance(error, EngineDiedError):
        return Refusal(files, str(error))
    attempts = before.attempts + 1 if before and before.files == files else 1
    return Refusal(files, str(error), now + min(MAX_RETRY_S, RETRY_S * 2**attempts), attempts)


class Versions:
    """The loaded versions of one replica; `follow` runs as long as the replica does."""

    def __init__(
        self,
        run: store.RunFolder,
        settings: config.Config,
        spec: EngineSpec,
        observe: Callable[..., None] = lambda *_: None,
    ) -> None:
        self.run, self.settings, self.observe = run, settings, observe
        self.active: Loaded | None = None
        self.retiring: list[Loaded] = []
        self.refused: dict[str, Refusal] = {}
        self.loading: str | None = None
        self._loader = Loader(run, settings, spec, observe)
        self._failed_starts = 0
        self._changed = asyncio.Event()
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def loaded(self) -> list[Loaded]:
        """Versions that answer now, the active one first."""
        return ([self.active] if self.active else []) + self.retiring

    @property
    def engine_starts(self) -> int:
        """Engines started so far."""
        return self._loader.engine_starts

    @property
    def hopeless(self) -> bool:
        """No engine, and starting one fails again and again: another replica may do better, elsewhere."""
        return self.active is None and self._failed_starts >= MAX_STARTS_IN_A_ROW

    def reasons(self) -> dict[str, str]:
        """Why versions are not served."""
        return {version: refused.reason for version, refused in self.refused.items()}

    @contextlib.asynccontextmanager
    async def hold(self, version: str | None) -> AsyncIterator[Loaded]:
        """The active version, or a loaded one by name, for the length of the block. Waits if no engine is up.

        Raises:
            ApiError: 409, that version is not loaded; the message names those that are.
        """
        while self.active is None:
            self._changed.clear()
            await self._changed.wait()
        found = self.active
        if version not in (None, LATEST):
            found = next((loaded for loaded in self.loaded if loaded.version == version), None)
        if found is None:
            names = ", ".join(loaded.version for loaded in self.loaded)
            message = f"expected a loaded version ({names}), found {version!r}"
            raise ApiError(409, "version_not_loaded", message, "version")
        with found.held():
            yield found

    def report_dead(self, dead: Loaded) -> None:
        """Take a version out whose engine died; `follow` starts another."""
        dead.engine.release()
        if dead in self.retiring:
            self.retiring.remove(dead)
        if dead is self.active:
            self.active = None
            self._event("engine_died", version=dead.version)
            self.look_now()

    def look_now(self) -> None:
        """Do not wait for the next poll."""
        self._wake.set()

    async def start(self) -> None:
        """Load the first version; if the wanted one is refused, the newest that is not.

        Raises:
            RuntimeError: no version of the run can be served.
        """
        await self._step()
        if self.active is None:
            reasons = "\n".join(f"  {version}: {reason}" for version, reason in self.reasons().items())
            raise RuntimeError(
                f"no version of {self.run.path} can be served:\n{reasons or '  nothing is published'}"
            )

    async def follow(self) -> None:
        """Look at the run every `serve.poll_s` seconds and move to the version that should be served."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.settings.serve.poll_s):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self._check_alive()
                await self._step()
            except Exception as error:  # storage or Ray in trouble: a follower that ends never moves again
                self._event("follow_failed", error=f"{type(error).__name__}: {error}")

    async def close(self) -> None:
        """End all engines."""
        for loaded in self.loaded:
            loaded.engine.release()

    async def _check_alive(self) -> None:
        for loaded in self.loaded:
            try:
                await loaded.engine.pid()
            except EngineDiedError:
                self.report_dead(loaded)

    async def _step(self) -> None:
        """Move to the best version that can be served."""
        manifests = {manifest["version"]: manifest for manifest in self.run.versions()}
        wanted = read_pin(self.run.path) or self.run.latest()
        for version in to_try(manifests, wanted, self.active.version if self.active else None):
            if version not in manifests:
                self._refuse(version, Refusal("", "it has no manifest in versions/"))
            elif await self._move_to(manifests[version]):
                return

    async def _move_to(self, manifest: dict[str, Any]) -> bool:
        version, started = manifest["version"], time.monotonic()
        files, before = state_of_files(self.run.path, manifest), self.refused.get(manifest["version"])
        if before and before.stands(files, started):
            return False
        self.loading = version
        try:
            await self._swap(manifest)
        except (EngineDiedError, OSError, ValueError) as error:
            self._failed_starts += 1
            self._refuse(version, refusal(error, files, before, time.monotonic()))
            return False
        finally:
            self.loading = None
        self._failed_starts = 0
        self.refused.pop(version, None)
        self.observe("swap", time.monotonic() - started)
        self._event("activated", version=version, duration_s=round(time.monotonic() - started, 3))
        return True

    async def _swap(self, manifest: dict[str, Any]) -> None:
        in_place = self.settings.serve.swap == "in_place" and not self._loader.running(manifest, self.loaded)
        if in_place and self.active and self.active.engine.alone:
            await self._exchange(self.active, manifest)
            return
        fresh = await self._loader.prepare(manifest, self.loaded)
        old = self.active
        self._activate(fresh)
        if old:
            self._retire(old)

    def _activate(self, fresh: Loaded) -> None:
        self.active = fresh
        self._changed.set()

    async def _exchange(self, old: Loaded, manifest: dict[str, Any]) -> None:
        """Move the one engine to other weights while requests wait; if that goes wrong, start a new engine.

        Raises:
            EngineDiedError, OSError, ValueError: this version cannot be served; the old one is back.
        """
        _, expected = await self._loader.check(manifest, self.loaded)
        self.active = None  # new requests wait now
        await old.drained()
        try:
            self._activate(await self._loader.exchange(old, manifest, expected))
        except (EngineDiedError, RuntimeError, ValueError) as error:
            self._event("exchange_failed", version=manifest["version"], reason=str(error))
            old.engine.release()
            try:
                self._activate(await self._loader.prepare(manifest, self.loaded))
            except (EngineDiedError, OSError, ValueError):
                self._activate(await self._loader.prepare(old.manifest, self.loaded))
                raise

    def _retire(self, old: Loaded) -> None:
        """End an engine when its last request has."""
        self.retiring.append(old)
        task = asyncio.create_task(self._end_when_idle(old))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end_when_idle(self, old: Loaded) -> None:
        await old.drained()
        if old in self.retiring:
            self.retiring.remove(old)
        old.engine.release()
        self._event("retired", version=old.version)

    def _refuse(self, version: str, refused: Refusal) -> None:
        before = self.refused.get(version)
        self.refused[version] = refused
        if before is None or (before.files, before.reason) != (refused.files, refused.reason):
            self.observe("refused", 1)
            self._event("refused", version=version, reason=refused.reason)

    def _event(self, event: str, **details: Any) -> None:
        level = logging.WARNING if event in ("refused", "engine_died", "follow_failed") else logging.INFO
        LOG.log(level, f"{event} {details}", extra={"event": event, **details})
