"""Stands in for engines that start, die and hang when a test says so: `ScriptedLoader` in place of `Loader`.

What a version's engine does stands in `script`; a real one would take seconds for each step.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import served_runs

from stasc_ray import config, store
from stasc_ray.recipes import section_of
from stasc_ray.serving import coordinator
from stasc_ray.serving.engines import Pulse
from stasc_ray.serving.follow import Versions
from stasc_ray.serving.loading import Loaded


class Engine:
    """An engine that is up until it is released, or `dies`."""

    def __init__(self, loader: "ScriptedLoader") -> None:
        self.loader, self.alone, self.probes = loader, True, 0
        self.dead: Exception | None = None
        self.pulse = Pulse()
        self.answers = True
        loader.up.add(self)

    async def pid(self) -> int:
        if self.dead:
            raise self.dead
        return 1

    async def probe(self) -> None:
        self.probes += 1
        self.pulse.asked_at = time.monotonic()
        while not self.answers:
            await asyncio.sleep(0.01)
        self.pulse = Pulse()

    async def load_adapter(self) -> None:
        if self.dead:
            raise self.dead

    def shares_with(self, other: "Engine") -> bool:
        return self is other

    def release(self) -> None:
        self.loader.up.discard(self)


@dataclass
class ScriptedLoader:
    """Prepares versions as `script` says."""

    script: Callable[[str], object] = lambda _: None
    """Gets a version; gives None (it works), an error, an awaitable to wait for, or a function to call."""
    up: set[Engine] = field(default_factory=set)
    engine_starts: int = 0

    async def _play(self, version: str) -> None:
        found = self.script(version)
        if asyncio.iscoroutine(found) or isinstance(found, asyncio.Future):
            found = await found
        if isinstance(found, BaseException):
            raise found

    async def prepare(self, manifest, loaded) -> Loaded:
        self.engine_starts += 1
        engine = Engine(self)
        try:
            await self._play(manifest["version"])
        except BaseException:
            engine.release()
            raise
        return Loaded(manifest, engine, "scripted")  # type: ignore[arg-type]

    async def exchange(self, old: Loaded, manifest, expected) -> Loaded:
        await self._play(f"exchange {manifest['version']}")
        return Loaded(manifest, old.engine, "scripted")

    async def check(self, manifest, loaded):
        return None, None

    async def running(self, manifest, loaded) -> None:
        return None


def versions(
    run: store.RunFolder, loader: ScriptedLoader, *overrides: str, link: coordinator.Link | None = None
) -> Versions:
    """A replica's versions on scripted engines."""
    settings = config.with_overrides(store.read_config(run.path, section_of), overrides, section_of)
    found = Versions(run, settings, None, link or coordinator.alone())  # type: ignore[arg-type]
    found._loader = loader  # type: ignore[assignment]
    return found


def two_versions(folder: Path, *overrides: str) -> store.RunFolder:
    """A run with v0000 and v0001."""
    found = served_runs.make_run(folder, "serve.poll_s=0.02", *overrides)
    for number in range(2):
        publish(found, number)
    return found


def publish(run: store.RunFolder, number: int, **values: Any) -> str:
    model = run.path / f"model{number}"
    model.mkdir(exist_ok=True)
    (model / "weights").write_text(str(number))
    manifest = {
        "version": (version := f"v{number:04d}"),
        "iteration": number,
        "model": model.name,
        "created": store.now(),
        "metrics": {"evaluation/dev/r_y2": number / 100},
        **values,
    }
    store.write_atomically(run.path / "versions" / f"{version}.json", json.dumps(manifest))
    store.write_atomically(run.path / "LATEST", f"{version}\n")
    return version


async def until(condition: Callable[[], Any], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


def following(versions: Versions, scenario: Callable[[], Awaitable[None]]) -> None:
    """Run a scenario while the replica follows."""

    async def both() -> None:
        task = asyncio.create_task(versions.follow())
        try:
            await scenario()
        finally:
            assert not task.done(), task
            task.cancel()
            await versions.close()

    asyncio.run(both())


def answers(versions: Versions, version: str) -> Callable[[], bool]:
    return lambda: versions.active is not None and versions.active.version == version
