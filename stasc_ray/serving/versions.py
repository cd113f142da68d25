"""Which version a replica serves: follow the run, prepare a new version, verify it, then let new requests begin on it.

Reads LATEST, versions/*.json and the pin of the endpoint. A request holds the version that it began with until it ends; the
engine of an old version goes when its last request has. A version that fails is never served: it is remembered with its
reason, and tried again when its files change (an engine that could not start: also after a while).
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from stasc_ray import config, store
from stasc_ray.serving import verification
from stasc_ray.serving.engines import EngineDiedError, EngineHandle, EngineSpec
from stasc_ray.serving.errors import ApiError
from stasc_ray.serving.pins import LATEST, read_pin
from stasc_ray.serving.published import Published

LOG = logging.getLogger("ray.serve")
MAX_STARTS_IN_A_ROW = 5
RETRY_S, MAX_RETRY_S = 5.0, 600.0


@dataclass(frozen=True)
class Refusal:
    """Why a version is not served, for these files, and when to try again (monotonic seconds)."""

    files: str
    reason: str
    retry_at: float = math.inf
    attempts: int = 1


@dataclass(eq=False)
class Loaded:
    """A version with its engine."""

    manifest: dict[str, Any]
    engine: EngineHandle
    verified: str
    engine_pid: int = 0
    in_flight: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def version(self) -> str:
        """Its name."""
        return self.manifest["version"]

    @contextlib.contextmanager
    def held(self) -> Any:
        """Keep the engine for the length of the block."""
        self.in_flight += 1
        self.idle.clear()
        try:
            yield self
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self.idle.set()


class Versions:
    """The loaded versions of one replica; `follow` runs as long as the replica does."""

    def __init__(
        self,
        run: store.RunFolder,
        settings: config.Config,
        spec: EngineSpec,
        observe: Callable[..., None] = lambda *_: None,
    ) -> None:
        self.run, self.settings, self.spec, self.observe = run, settings, spec, observe
        self._published = Published(run, spec)
        self.active: Loaded | None = None
        self.retiring: list[Loaded] = []
        self.refused: dict[str, Refusal] = {}
        self.loading: str | None = None
        self.engine_starts = 0
        self._failed_starts = 0
        self._changed = asyncio.Event()
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def loaded(self) -> list[Loaded]:
        """Versions that answer now."""
        return ([self.active] if self.active else []) + self.retiring

    @property
    def hopeless(self) -> bool:
        """No engine, and starting one fails again and again: another replica may do better, elsewhere."""
        return self.active is None and self._failed_starts >= MAX_STARTS_IN_A_ROW

    def target(self) -> str | None:
        """The version that should be served: the pinned one, else LATEST."""
        return read_pin(self.run.path) or self.run.latest()

    @contextlib.asynccontextmanager
    async def hold(self, version: str | None) -> AsyncIterator[Loaded]:
        """The active version, or a loaded one by name, for the length of the block; waits while no engine is up.

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
            raise ApiError(
                409,
                "version_not_loaded",
                f"expected a loaded version ({names}), found {version!r}",
                "version",
            )
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
        """Load the first version; where the wanted one is refused, the newest that is not.

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
            except (
                Exception
            ) as error:  # a file system that hiccups, Ray in trouble: a follower that ends never moves again
                self._event("follow_failed", error=f"{type(error).__name__}: {error}")

    def reasons(self) -> dict[str, str]:
        """Why versions are not served."""
        return {version: refusal.reason for version, refusal in self.refused.items()}

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
        """Move to the target; with no engine at all, to the newest version that can be served."""
        manifests = {manifest["version"]: manifest for manifest in self.run.versions()}
        wanted = self.target()
        candidates = [wanted] if wanted else []
        if self.active is None:
            candidates += [version for version in sorted(manifests, reverse=True) if version != wanted]
        for version in candidates:
            if self.active and self.active.version == version:
                return
            if version not in manifests:
                self._refuse(version, Refusal("", "it has no manifest in versions/"))
            elif await self._move_to(manifests[version]):
                return

    async def _move_to(self, manifest: dict[str, Any]) -> bool:
        version = manifest["version"]
        files = verification.state_of_files(self.run.path, manifest)
        known = self.refused.get(version)
        if known and known.files == files and time.monotonic() < known.retry_at:
            return False
        self.loading, started = version, time.monotonic()
        try:
            await self._swap(manifest)
        except EngineDiedError as error:  # broken files, or no memory just now: try again, ever more rarely
            self._failed_starts += 1
            attempts = known.attempts + 1 if known and known.files == files else 1
            retry_at = time.monotonic() + min(MAX_RETRY_S, RETRY_S * 2**attempts)
            self._refuse(version, Refusal(files, str(error), retry_at, attempts))
            return False
        except (OSError, ValueError) as error:
            self._failed_starts += 1
            self._refuse(version, Refusal(files, str(error)))
            return False
        finally:
            self.loading = None
        self._failed_starts = 0
        self.refused.pop(version, None)
        self.observe("swap", time.monotonic() - started)
        self._event("activated", version=version, duration_s=round(time.monotonic() - started, 3))
        return True

    async def _swap(self, manifest: dict[str, Any]) -> None:
        in_place = self.settings.serve.swap == "in_place" and not self._running(
            self._published.weights(manifest)[0]
        )
        if self.active and self.active.engine.alone and in_place:
            await self._exchange(self.active, manifest)
            return
        fresh = await self._prepare(manifest)
        old = self.active
        self._activate(fresh)
        if old:
            self._retire(old)

    def _activate(self, fresh: Loaded) -> None:
        self.active = fresh
        self._changed.set()

    async def _exchange(self, old: Loaded, manifest: dict[str, Any]) -> None:
        """Move the one engine to other weights while requests wait; a new engine where that goes wrong.

        Raises:
            EngineDiedError, OSError, ValueError: as `_prepare`; the old version is back then.
        """
        _, canary = await asyncio.to_thread(self._published.check, manifest, self._tokenizer())
        self.active = None  # new requests wait now
        while old.in_flight:
            await old.idle.wait()
        try:
            if canary is None:
                raise ValueError("without a canary nobody would notice that an exchange went wrong")
            await old.engine.reload(verification.model_path(self.run.path, manifest))
            verified = await self._verify(old.engine, canary)
            self._activate(Loaded(manifest, old.engine, verified, old.engine_pid))
        except (EngineDiedError, RuntimeError, ValueError) as error:
            self._event("exchange_failed", version=manifest["version"], reason=str(error))
            old.engine.release()
            await self._start_one_of(manifest, old.manifest)

    async def _start_one_of(self, wanted: dict[str, Any], fallback: dict[str, Any]) -> None:
        try:
            self._activate(await self._prepare(wanted))
        except (EngineDiedError, OSError, ValueError):
            self._activate(await self._prepare(fallback))
            raise

    async def _prepare(self, manifest: dict[str, Any]) -> Loaded:
        """A new engine, verified.

        Raises:
            EngineDiedError: the engine did not come up.
            OSError, ValueError: this version must not be served.
        """
        tokenizer, canary = await asyncio.to_thread(self._published.check, manifest, self._tokenizer())
        engine = self._engine(manifest, tokenizer)
        try:
            async with asyncio.timeout(self.settings.engine.start_timeout_s):
                pid = await engine.pid()
                await engine.load_adapter()
                verified = await self._verify(engine, canary)
        except TimeoutError:
            engine.release()
            raise EngineDiedError(
                f"its engine was not up after engine.start_timeout_s = {self.settings.engine.start_timeout_s:g} s"
            ) from None
        except BaseException:
            engine.release()
            raise
        return Loaded(manifest, engine, verified, pid)

    def _engine(self, manifest: dict[str, Any], tokenizer: Any) -> EngineHandle:
        """The engine that runs a version's model already, else a new one."""
        model, adapter = self._published.weights(manifest)
        running = self._running(model)
        if running is None:
            self.engine_starts += 1
            return EngineHandle(model, self.spec, tokenizer, adapter)
        return running.with_adapter(adapter)

    def _tokenizer(self) -> Any:
        return self.active.engine.tokenizer if self.active else None

    def _running(self, model: str) -> EngineHandle | None:
        return next((loaded.engine for loaded in self.loaded if loaded.engine.model == model), None)

    async def _verify(self, engine: EngineHandle, canary: verification.Canary | None) -> str:
        serve, dtype = self.settings.serve, self.settings.engine.dtype
        full = dtype == "float32" or (dtype == "auto" and not self.spec.on_cuda)
        if engine.adapter and canary:  # the canary is of the merged weights, rounded to the base model's type
            full = full and canary["dtype"] == "float32"
        try:
            return await verification.verify(
                engine, canary, serve.canary_tolerance or verification.tolerance(full)
            )
        except verification.CanaryError:
            self.observe("canary_failure", 1)
            raise

    def _retire(self, old: Loaded) -> None:
        """End an engine when its last request has."""
        self.retiring.append(old)
        task = asyncio.create_task(self._end_when_idle(old))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end_when_idle(self, old: Loaded) -> None:
        while old.in_flight:
            await old.idle.wait()
        if old in self.retiring:
            self.retiring.remove(old)
        old.engine.release()
        self._event("retired", version=old.version)

    def _refuse(self, version: str, refusal: Refusal) -> None:
        known = self.refused.get(version)
        self.refused[version] = refusal
        if known is None or (known.files, known.reason) != (refusal.files, refusal.reason):
            self.observe("refused", 1)
            self._event("refused", version=version, reason=refusal.reason)

    def _event(self, event: str, **details: Any) -> None:
        level = logging.WARNING if event in ("refused", "engine_died", "follow_failed") else logging.INFO
        LOG.log(level, f"{event} {details}", extra={"event": event, **details})
