"""A replica follows its run: look at the folder, decide which version should answer, move to it.

Looking happens in a thread, deciding is a pure function (decide.py), moving is a task that ends when it is no
longer wanted; before a version answers it is decided once more. A request holds the version that it began
with until it ends; the engine of an old version goes when its last request has.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

from stasc_ray import config, store
from stasc_ray.generation.engines import EngineDiedError
from stasc_ray.generation.spec import EngineSpec
from stasc_ray.recipes import chosen_by
from stasc_ray.serving import coordinator, placement
from stasc_ray.serving.decide import Refusal, decide, refusal
from stasc_ray.serving.errors import ApiError
from stasc_ray.serving.loading import Loaded, Loader
from stasc_ray.serving.published import LATEST, Published

LOG = logging.getLogger("ray.serve")
MAX_STARTS_IN_A_ROW = 5
LOOK_S = 10.0
"""For a look before a version answers; storage that hangs keeps no engine that is up from answering."""
SIGN_OF_LIFE_S = 5.0
"""For an engine's process to say that it is there."""
MIND_S = 2.0
"""Between two signs of life of an engine, at most."""
PROBE_S = 10.0
"""Without a token from an engine for so long it is asked for one."""


class Versions:
    """The loaded versions of one replica; `follow` runs as long as the replica does."""

    def __init__(
        self,
        run: store.RunFolder,
        settings: config.Config,
        spec: EngineSpec,
        link: coordinator.Link,
        observe: Callable[..., None] = lambda *_: None,
    ) -> None:
        self.settings, self.link, self.observe = settings, link, observe
        self.published = Published(run.path)
        self.active: Loaded | None = None
        self.warm: list[Loaded] = []
        """Versions that answered before and stay loaded, the last one first; M0, if it writes initial
        answers."""
        self.retiring: list[Loaded] = []
        self.refused: dict[str, Refusal] = {}
        self._measures = chosen_by(settings.algorithm)
        self.base_answers = placement.base_answers(settings)
        self._loader = Loader(self.published, settings, spec, observe)
        self._last: str | None = None  # version that answered last
        self._moves: dict[str, asyncio.Task[None]] = {}
        self._were_latest: set[str] = set()  # of those: LATEST when they were begun, and not pinned
        self._draining = False  # for an exchange: the replica answers nothing, and keeps its turn
        self._exchanging = self._closed = False
        self._failed_starts = 0
        self._looking, self._loading_base = asyncio.Lock(), asyncio.Lock()
        self._changed, self._wake = asyncio.Event(), asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def loaded(self) -> list[Loaded]:
        """Versions that answer now, the active one first."""
        return ([self.active] if self.active else []) + self.warm + self.retiring

    @property
    def loading(self) -> str | None:
        """The version that is being prepared."""
        return next(reversed(self._moves), None)

    @property
    def engine_starts(self) -> int:
        """Engines started so far."""
        return self._loader.engine_starts

    @property
    def hopeless(self) -> bool:
        """No engine, and starting one fails again and again: another replica may do better, elsewhere."""
        return self.active is None and self._failed_starts >= MAX_STARTS_IN_A_ROW

    def reasons(self) -> dict[str, str]:
        """Why versions are not served, or not as their files are now."""
        seen = self.published.snapshot
        wanted = self.link.pinned or seen.latest
        missing = (
            {wanted: "it has no manifest in versions/"} if wanted and wanted not in seen.manifests else {}
        )
        refused = {version: refused.reason for version, refused in self.refused.items()}
        changed = {
            one.version: "its files have changed or gone; it goes on from memory"
            for one in self.loaded
            if seen.files.get(one.version, one.files) != one.files
        }
        gone = {
            one.version: "its manifest has gone from versions/; it goes on from memory"
            for one in self.loaded
            if one.version not in {*seen.manifests, *seen.unreadable}
        }
        return {**missing, **seen.unreadable, **refused, **changed, **gone}

    def why_not_ready(self) -> str | None:
        """What a replica without an engine waits for; None if it has one."""
        if self.active:
            return None
        if self.loading:
            return f"{self.loading} is being prepared"
        why = [f"{version}: {reason}" for version, reason in self.reasons().items()]
        return "; ".join(why) or self.published.snapshot.problem or "nothing is published"

    @contextlib.asynccontextmanager
    async def hold(self, version: str | None) -> AsyncIterator[Loaded]:
        """The active version, or a loaded one by name, for the length of the block. Waits if no engine is up.

        Raises:
            ApiError: 409, that version is not loaded; the message names those that are. 503, no version is,
                and none is being prepared.
        """
        while self.active is None or self._lacks_base(self.active):
            if not self._moves:
                message = f"no version answers: {self.why_not_ready()}"
                raise ApiError(503, "unavailable_error", message, headers={"Retry-After": "5"})
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

    def writes_first(self, loaded: Loaded) -> Loaded:
        """Who writes the initial answers that a held version corrects: M0, or the version itself."""
        if loaded.is_base or not self.base_answers:
            return loaded
        assert self._base, "`hold` waits for it"
        return self._base

    def report_dead(self, dead: Loaded, why: str) -> None:
        """Take the versions out whose engine died; another is started."""
        died = [one for one in self.loaded if one.engine.shares_with(dead.engine)]
        for one in [dead, *died]:
            one.engine.release()
        for group in (self.warm, self.retiring):
            group[:] = [one for one in group if one not in died]
        if died:
            self._event("engine_died", version=died[0].version, reason=why)
        if self.active in died:
            self.active, self._failed_starts = None, 0
        self._move()

    def look_now(self) -> None:
        """Do not wait for the next poll."""
        self._wake.set()

    async def start(self) -> None:
        """Look, and return once a version answers, or nothing is published yet.

        Raises:
            RuntimeError: none of the published versions can be served.
        """
        await self.look()
        while self._moves:
            await asyncio.wait(self._moves.values(), return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(0)  # for what follows from its end
            if self.active:
                return
        if self.refused:
            reasons = "\n".join(f"  {version}: {reason}" for version, reason in self.reasons().items())
            raise RuntimeError(f"no version of {self.published.run_folder} can be served:\n{reasons}")

    async def follow(self) -> None:
        """Look at the run every `serve.poll_s` seconds and move; mind the engines meanwhile."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_looking())
            group.create_task(self._keep_minding())

    async def look(self) -> None:
        """Read the run folder, hear of the pin, and begin to move to the version that should answer."""
        async with self._looking:
            about = {*self.refused, *(one.version for one in self.loaded)}
            before = self.published.snapshot.problem
            seen = await asyncio.to_thread(self.published.look, about)
        if seen.problem and seen.problem != before:
            self._event("unreadable", reason=seen.problem)
        await self.link.meet(wants_turn=self._needs_turn())
        if not self.link.may_move and self._needs_turn():  # since the pin has moved
            await self.link.meet(wants_turn=True)
        self._move()

    async def pin(self, version: str | None) -> None:
        """Hold the endpoint to a version; None: let it follow LATEST.

        Raises:
            Exception: what `Link.pin` raises.
        """
        await self.link.pin(version)
        self.look_now()

    async def close(self) -> None:
        """End all engines."""
        moves, self._closed = list(self._moves.values()), True  # nothing new begins
        for task in moves:
            task.cancel()
        await asyncio.gather(*moves, return_exceptions=True)
        for loaded in self.loaded:
            loaded.engine.release()

    async def _keep_looking(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.settings.serve.poll_s):
                    await self._wake.wait()
            self._wake.clear()
            await self._safely(self.look)

    async def _keep_minding(self) -> None:
        while True:
            await asyncio.sleep(min(MIND_S, self.settings.serve.poll_s))
            await asyncio.gather(*(self._safely(partial(self._mind, one)) for one in self.loaded))

    async def _safely(self, work: Callable[[], Awaitable[None]]) -> None:
        """Whatever goes wrong: a replica that no longer follows would never move again."""
        try:
            await work()
        except Exception as error:
            self._event("follow_failed", reason=f"{type(error).__name__}: {error}")

    async def _mind(self, loaded: Loaded) -> None:
        """Take an engine out that is dead, or that has given no token for as long as a request may take."""
        limit_s = self.settings.serve.request_timeout_s
        try:
            with contextlib.suppress(TimeoutError):  # it may be busy; what counts is below
                async with asyncio.timeout(SIGN_OF_LIFE_S):
                    await loaded.engine.pid()
        except EngineDiedError as error:
            self.report_dead(loaded, str(error))
            return
        pulse, now = loaded.engine.pulse, time.monotonic()
        if pulse.asked_at is None:
            if now - pulse.moved_at > PROBE_S:
                self._begin(loaded.engine.probe())
        elif (silent_s := now - max(pulse.asked_at, pulse.moved_at)) > limit_s:
            self.report_dead(loaded, f"it hangs: no token for {silent_s:.0f} s, though one was asked for")

    def _wanted(self) -> str | None:
        active = self.active.version if self.active else None
        now = time.monotonic()
        return decide(
            self.published.snapshot, self.link.pinned, self.refused, active, self._last, self._measures, now
        )

    def _needs_turn(self) -> bool:
        """Whether this replica answers, and should answer with another version; or is about to."""
        return self._draining or (
            self.active is not None and self._wanted() not in (None, self.active.version)
        )

    def _may_answer(self, version: str) -> bool:
        """Whether an engine with this version should answer; the one that answered last may, until the
        wanted one is ready.
        """
        was_last = self.active is None and version == self._last
        return version == self._wanted() or was_last or self._on_the_way(version)

    def _on_the_way(self, version: str) -> bool:
        """Whether a version that is being prepared was LATEST until a newer one was published: where versions
        come faster than engines start, none would ever answer if each ended the one before.
        """
        wanted, seen = self._wanted(), self.published.snapshot
        newer_than = self.active.version if self.active else ""
        follows = self.link.pinned is None and wanted is not None and wanted == seen.latest
        return follows and version in self._were_latest and newer_than < version < (wanted or "")

    @property
    def _base(self) -> Loaded | None:
        """M0, where it is there to stay."""
        return next((one for one in (self.active, *self.warm) if one and one.is_base), None)

    def _lacks_base(self, loaded: Loaded) -> bool:
        return self.base_answers and not loaded.is_base and self._base is None

    def _move(self) -> None:
        """Begin what the decision asks for; end what it no longer does."""
        if self._exchanging or self._closed:  # what follows is decided at its end
            return
        if self.active and self._lacks_base(self.active):  # it waits, loaded, until M0 is up again
            self.warm.insert(0, self.active)
            self.active = None
        active = self.active.version if self.active else None
        goals = {self._wanted()} - {active, None}
        # adapters share an engine, which is started once
        beside = self.settings.serve.swap == "beside" and self.settings.finetune.method != "lora"
        if beside and goals and active is None and self._last not in self.refused:
            # its engine died while another version is prepared: it need not wait for that
            goals |= {self._last} & self.published.snapshot.manifests.keys()
        if others := self._moves.keys() - goals:
            ended = [self._moves[version] for version in others if not self._on_the_way(version)]
            for task in ended:
                task.cancel()
            if ended:
                return  # their ends call again: one of them may give an engine back
            goals &= {self._last}  # the wanted one waits for its forerunner
        if self.active and not self.link.may_move:  # another replica moves
            return
        for version in goals - self._moves.keys():
            assert version
            if self.link.pinned is None and version == self.published.snapshot.latest:
                self._were_latest.add(version)
            self._moves[version] = self._begin(self._move_to(version))
            self._moves[version].add_done_callback(lambda _, version=version: self._moved(version))

    def _moved(self, version: str) -> None:
        del self._moves[version]
        self._were_latest.discard(version)
        self._changed.set()  # who waits looks again: perhaps nothing is being prepared now
        self._move()
        self.look_now()  # and give the turn back

    async def _move_to(self, version: str) -> None:
        manifest, started = self.published.snapshot.manifests[version], time.monotonic()
        files = await asyncio.to_thread(self.published.state_of, manifest)
        try:
            moved = await self._swap(manifest, files)
        except Exception as error:  # whatever it is: remembered, so it is not tried again at once
            self._failed_starts += self.active is None and isinstance(error, EngineDiedError)
            self._refuse(version, refusal(error, files, self.refused.get(version), time.monotonic()))
            return
        if moved:
            moved.files = moved.files or files
            self.refused.pop(version, None)
            self.observe("swap", time.monotonic() - started)
            duration_s = round(time.monotonic() - started, 3)
            self._event("activated", version=version, duration_s=duration_s)

    async def _swap(self, manifest: dict[str, Any], files: str | None) -> Loaded | None:
        """The version, which answers from now on; None if it is no longer wanted."""
        await self._load_base(manifest)
        if warm := await self._still_warm(manifest, files):
            await self._look_again()
            return self._activate(warm) if warm in self.warm and self._may_answer(warm.version) else None
        # an engine that holds this version as its files were before is no help
        version = manifest["version"]
        loaded = [one for one in self.loaded if one.version != version or one.files == files]
        in_place = self.settings.serve.swap == "in_place"
        in_place = in_place and not await self._loader.running(manifest, loaded)
        writes_on = self.base_answers and self.active is self._base
        if in_place and self.active and self.active.engine.alone and not writes_on:
            exchanged = await self._exchange(self.active, manifest)
            if exchanged or self.active or not self._may_answer(version):
                return exchanged
        if in_place:  # the room is for one engine, beside M0's: what waits for M0 gives it back
            for one in [one for one in self.warm if not one.is_base]:
                self._retire(one)
        fresh = await self._loader.prepare(manifest, loaded)
        try:
            await self._load_base(manifest)  # it may have died meanwhile
            await self._look_again()
            if self._may_answer(fresh.version):
                return self._activate(fresh)
        except BaseException:
            fresh.engine.release()
            raise
        fresh.engine.release()
        return None

    async def _load_base(self, manifest: dict[str, Any]) -> None:
        """Load M0 too, if this version corrects its answers.

        Raises:
            EngineDiedError, OSError: it cannot be loaded now.
        """
        async with self._loading_base:
            if not manifest["iteration"] or not self.base_answers or self._base:
                return
            base = self.published.snapshot.base
            if base is None:
                raise FileNotFoundError("it corrects the answers of M0, which has no manifest in versions/")
            files = await asyncio.to_thread(self.published.state_of, base)
            try:
                loaded = await self._loader.prepare(base, self.loaded)
            except ValueError as error:  # no fault of this version: it is tried again, whatever its own files
                raise OSError(f"it corrects the answers of M0, which cannot be served: {error}") from error
            loaded.files = files
            self.warm.append(loaded)

    async def _still_warm(self, manifest: dict[str, Any], files: str | None) -> Loaded | None:
        """The version if it is loaded still, and its files are as they were, or have gone."""
        found = next((one for one in self.warm if one.version == manifest["version"]), None)
        if found is None:
            return None
        with contextlib.suppress(EngineDiedError, OSError, ValueError, TimeoutError):
            unchanged = found.is_base or files in (None, found.files)
            if unchanged or await asyncio.to_thread(self.published.has_gone, manifest):
                async with asyncio.timeout(SIGN_OF_LIFE_S):
                    await found.engine.load_adapter()  # which vLLM may have dropped for others
                return found
        self._retire(found)
        return None

    async def _exchange(self, old: Loaded, manifest: dict[str, Any]) -> Loaded | None:
        """Move the one engine to other weights while requests wait. None: the version is no longer wanted, or
        it went wrong; then the engine is gone.
        """
        _, expected = await self._loader.check(manifest, self.loaded)
        await self._look_again()
        if not self._may_answer(manifest["version"]):
            return None
        self.active, self._draining = None, True  # new requests wait now
        usable = True
        try:
            await old.drained()
            await self._look_again()
            if self._may_answer(manifest["version"]):
                usable = False  # half exchanged weights answer nothing
                return await self._exchanged(old, manifest, expected)
        finally:
            self._draining = self._exchanging = False
            if self.active is None and usable:
                self._answer_with(old)
            elif self.active is None:
                old.engine.release()
        return None

    async def _exchanged(self, old: Loaded, manifest: dict[str, Any], expected: Any) -> Loaded | None:
        """The version on the engine of `old`; None if that went wrong, or it is no longer wanted."""
        self._exchanging = True
        try:
            async with asyncio.timeout(self.settings.engine.start_timeout_s):
                fresh = await self._loader.exchange(old, manifest, expected)
            await self._look_again()
            return self._activate(fresh) if self._may_answer(manifest["version"]) else None
        except Exception as error:
            self._event("exchange_failed", version=manifest["version"], reason=str(error))
            return None

    async def _look_again(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_S):
                await self._safely(self.look)

    def _activate(self, fresh: Loaded) -> Loaded:
        """The version answers from now on, and the one before is kept warm, or retires the oldest that is."""
        before = [one for one in (self.active, *self.warm) if one and one is not fresh]
        self.warm = before
        self._answer_with(fresh)
        versions = [one for one in before if not (self.base_answers and one.is_base)]
        for one in versions[self.settings.serve.keep_warm :]:
            self._retire(one)
        return fresh

    def _answer_with(self, loaded: Loaded) -> None:
        self.active, self._last, self._failed_starts = loaded, loaded.version, 0
        self._changed.set()

    def _retire(self, old: Loaded) -> None:
        """End an engine when its last request has."""
        self.warm = [one for one in self.warm if one is not old]
        self.retiring.append(old)
        self._begin(self._end_when_idle(old))

    async def _end_when_idle(self, old: Loaded) -> None:
        await old.drained()
        if old in self.retiring:
            self.retiring.remove(old)
        old.engine.release()
        self._event("retired", version=old.version)

    def _begin(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _refuse(self, version: str, refused: Refusal) -> None:
        before = self.refused.get(version)
        self.refused[version] = refused
        if before is None or (before.files, before.reason) != (refused.files, refused.reason):
            self.observe("refused", 1)
            self._event("refused", version=version, reason=refused.reason)

    def _event(self, event: str, **details: Any) -> None:
        level = logging.INFO if event in ("activated", "retired") else logging.WARNING
        LOG.log(level, f"{event} {details}", extra={"event": event, **details})
