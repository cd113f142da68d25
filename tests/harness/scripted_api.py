"""The routes around an engine that is scripted, on no cluster."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator

import httpx
import uvicorn
from harness import served_runs

from stasc_ray import store
from stasc_ray.generation.engines import EngineDiedError
from stasc_ray.generation.samples import Load, Request, Sample, cut
from stasc_ray.recipes import section_of
from stasc_ray.runtime import model_folder
from stasc_ray.serving import coordinator, monitor
from stasc_ray.serving.api import make_api
from stasc_ray.serving.follow import Versions
from stasc_ray.serving.loading import Loaded
from stasc_ray.serving.routers.replica import Replica
from stasc_ray.serving.service import Service
from stasc_ray.tasks import sandbox
from stasc_ray.tasks.chat import Chat


class ScriptedEngine:
    """Answers `first`, then `second`; a question may ask it to be slow, or to die. `asked` are the prompts and
    requests that it got.
    """

    def __init__(self, deaths: int = 0) -> None:
        self.chat = Chat(model_folder.load_tokenizer(str(sandbox.model_path())))
        self.deaths, self.finished, self.aborted, self.silent = deaths, 0, 0, False
        self.asked: list[tuple[str, Request]] = []

    def shares_with(self, other) -> bool:
        return self is other

    def release(self) -> None:
        """Nothing to end."""

    async def check(self, request) -> None:
        """Everything can be done."""

    async def load_adapter(self) -> None:
        """It has none."""

    async def load(self) -> Load:
        await asyncio.sleep(30 if self.silent else 0)
        return Load(running=3, waiting=2, kv_cache_usage=0.25)

    async def generate(self, token_ids, request, on_text=None) -> Sample:
        prompt = self.chat.tokenizer.decode(token_ids)
        self.asked.append((prompt, request))
        if self.deaths:
            self.deaths -= 1
            raise EngineDiedError("killed")
        try:
            await asyncio.sleep(30 if "slow" in prompt else 0)
        except asyncio.CancelledError:
            self.aborted += 1
            raise
        self.finished += 1
        text, _ = cut("second" if "first" in prompt else "first", request.final.stop)
        for letter in text if on_text else ():
            on_text(letter)
        return Sample(text, (1, 2, 3), "stop", first_token_s=0.2, token_s=0.02)


class Again:
    """A loader that brings the same engine up again."""

    def __init__(self, engine: ScriptedEngine) -> None:
        self.engine, self.engine_starts = engine, 0

    async def prepare(self, manifest, loaded) -> Loaded:
        self.engine_starts += 1
        return Loaded(manifest, self.engine, "scripted")  # type: ignore[arg-type]


class Api:
    """A client of an application that runs in this process."""

    def __init__(self, folder, *overrides, engine=None, keys=None, loopback_only=True) -> None:
        self.run = served_runs.make_run(folder / "run", *overrides)
        served_runs.publish(self.run, None)
        settings = store.read_config(self.run.path, section_of)
        self.engine = engine or ScriptedEngine()
        self.versions = Versions(self.run, settings, None, coordinator.alone())
        self.versions.published.look(())
        self.versions.active = Loaded(self.run.versions()[0], self.engine, "scripted")
        self.versions._loader = Again(self.engine)  # type: ignore[assignment]
        counts = monitor.Monitor()
        self.service = Service(self.run, settings, self.versions, counts)

        async def all_metrics():
            await self.service.refresh_gauges(keys)
            return [counts.families("r1"), counts.families("r2"), [monitor.silence(0)]]

        replica = Replica("r1", self.service, keys, all_metrics)
        self.app = make_api(replica, loopback_only=loopback_only)

    def client(self, base_url="http://127.0.0.1:8000") -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url=base_url)

    def call(self, method: str, path: str, base_url="http://127.0.0.1:8000", **arguments) -> httpx.Response:
        async def send() -> httpx.Response:
            async with self.client(base_url) as client:
                return await client.request(method, path, **arguments)

        return asyncio.run(send())


@contextlib.contextmanager
def listening(api: Api, port: int) -> Iterator[str]:
    """The application on a port, without Ray."""
    server = uvicorn.Server(
        uvicorn.Config(api.app, port=port, log_level="error", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), f"nothing listens on port {port}"
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
