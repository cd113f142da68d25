"""The endpoint on Ray Serve: a deployment whose replicas hold one engine each and follow the run.

`serving` runs the endpoint of a run folder, for `stasc serve`. `build` makes it from the arguments of a Serve
config file (cluster/kuberay/rayservice.yaml).
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from stasc_ray import config, store
from stasc_ray.generation.spec import EngineSpec
from stasc_ray.recipes import section_of
from stasc_ray.runtime import capacity, preflight, ray_session
from stasc_ray.serving import coordinator, monitor, placement
from stasc_ray.serving.doors import LOOPBACK_HOSTS
from stasc_ray.serving.proxy import ONE_LOOP, controller_options

if TYPE_CHECKING:
    from fastapi import FastAPI
    from prometheus_client.metrics_core import Metric
    from ray.serve import Application

    from stasc_ray.serving.keys import KeyRing

APP = "stasc"
DEPLOYMENT = "Corrector"
TURNED_AWAY = 1000
"""Requests that a replica may have at once besides those in flight and in its queue."""
WORKER_NICENESS = 0
"""Of a local Ray's workers. With Ray's 15, an engine on CPUs waits for everything else this machine does."""


@dataclass(frozen=True)
class Endpoint:
    """What a replica needs to know."""

    run_folder: str
    settings: config.Config
    on_cuda: bool
    api_keys_file: str | None = None
    loopback_only: bool = True


class Corrector:
    """A replica."""

    async def __init__(self, endpoint: Endpoint) -> None:
        from ray import serve

        from stasc_ray.serving.follow import Versions
        from stasc_ray.serving.service import Service

        settings = endpoint.settings
        self._endpoint = endpoint
        self._keys: KeyRing | None = None
        self._handle: Any = None
        self._tasks: list[asyncio.Task[None]] = []
        self._replica = serve.get_replica_context().replica_tag
        run, counts = store.RunFolder(Path(endpoint.run_folder)), monitor.Monitor()
        link = coordinator.of_deployment(self._replica)
        self._versions = Versions(run, settings, engine_spec(endpoint), link, counts.observe)
        self._service = Service(run, settings, self._versions, counts)
        await self._versions.start()

    def __serve_build_asgi_app__(self) -> "FastAPI":
        """The routes; Serve calls this once the engine is up."""
        from stasc_ray.serving.api import make_api
        from stasc_ray.serving.keys import KeyRing
        from stasc_ray.serving.routers.replica import Replica

        file = self._endpoint.api_keys_file
        self._keys = KeyRing(Path(file)) if file else None
        replica = Replica(self._replica, self._service, self._keys, self._all_metrics)
        return make_api(replica, loopback_only=self._endpoint.loopback_only, lifespan=self._following)

    @contextlib.asynccontextmanager
    async def _following(self, _: Any) -> AsyncIterator[None]:
        following = [self._versions.follow(), *([self._keys.follow()] if self._keys else [])]
        self._tasks = [asyncio.create_task(one) for one in following]
        try:
            yield
        finally:
            for task in self._tasks:
                task.cancel()
            await self._versions.close()

    async def metrics(self) -> "list[Metric]":
        """This replica's metrics."""
        await self._service.refresh_gauges(self._keys)
        return self._service.monitor.families(self._replica)

    async def _all_metrics(self) -> "list[list[Metric]]":
        from ray import serve

        if self._handle is None:
            self._handle = serve.get_deployment_handle(DEPLOYMENT, serve.get_replica_context().app_name)
        calls: list[Any] = []
        with contextlib.suppress(Exception):  # Serve knows no replica yet, or any more
            async with asyncio.timeout(monitor.PATIENCE_S):
                # `results_async` gives all results or none
                calls = await self._handle.broadcast("metrics")._fetch_replica_results_async()
        found, silent = await monitor.in_time(call.get_async() for call in calls)
        return [*(found or [await self.metrics()]), [monitor.silence(silent)]]

    def check_health(self) -> None:
        """Serve replaces a replica for which this raises."""
        if any(task.done() for task in self._tasks):
            raise RuntimeError("the replica no longer follows its run; see the log")
        if self._versions.hopeless:
            raise RuntimeError(
                "no engine, and starting one failed several times in a row; see /healthz and the log"
            )


def engine_spec(endpoint: Endpoint) -> EngineSpec:
    """What the run's engines have in common."""
    settings = endpoint.settings
    return EngineSpec(
        settings.engine,
        endpoint.on_cuda,
        model=settings.model,
        gpus=placement.engine_gpus(settings, on_cuda=endpoint.on_cuda),
        lora_rank=settings.finetune.lora.rank if settings.finetune.method == "lora" else None,
        threads=capacity.replica_threads(settings.serve, ray_session.cores()),
        seed=settings.seed,
        tokenizer=True,
        watched=True,
    )


def endpoint(
    run_folder: Path,
    settings: config.Config,
    *,
    on_cuda: bool,
    api_keys_file: Path | None,
    loopback_only: bool,
    pinned: str | None = None,
) -> "Application":
    """The Serve application that serves a run.

    Args:
        pinned: the version that it is held to at the start; None: it follows LATEST.
    """
    import ray
    from ray import serve
    from ray.serve.config import AutoscalingConfig, BackpressureConfig, DeploymentActorConfig
    from ray.serve.schema import LoggingConfig

    options = settings.serve
    # Our own queue answers 429 and says when to come back; Serve's own bound lies above it, for health,
    # metrics and all that is turned away.
    ongoing = options.max_in_flight + options.max_queue + TURNED_AWAY
    scaling: dict[str, Any] = {"num_replicas": options.replicas}
    if options.max_replicas:
        scaling = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=options.replicas,
                max_replicas=options.max_replicas,
                target_ongoing_requests=options.target_in_flight,
            )
        }
    deployment = serve.deployment(
        name=DEPLOYMENT,
        max_ongoing_requests=ongoing,
        max_queued_requests=ongoing,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=5),
        graceful_shutdown_timeout_s=options.grace,
        graceful_shutdown_wait_loop_s=0.5,
        max_surge_percent=100,
        max_constructor_retry_count=3,
        placement_group_bundles=placement.bundles(settings, on_cuda=on_cuda),
        placement_group_strategy="STRICT_PACK",
        ray_actor_options={"num_cpus": options.cpus_per_replica, "runtime_env": {"env_vars": ONE_LOOP}},
        deployment_actors=[
            DeploymentActorConfig(
                name=coordinator.NAME,
                actor_class=ray.remote(coordinator.Coordinator),
                init_args=(pinned,),
                actor_options={"num_cpus": 0},
            )
        ],
        logging_config=LoggingConfig(encoding="JSON", enable_access_log=False),
        **scaling,
    )
    asgi = serve.ingress()
    # not resolved: what it leads to differs from pod to pod, and moves
    file = str(api_keys_file.absolute()) if api_keys_file else None
    return deployment(asgi(Corrector)).bind(Endpoint(str(run_folder), settings, on_cuda, file, loopback_only))


@contextlib.contextmanager
def serving(
    run_folder: Path,
    settings: config.Config,
    host: str,
    port: int,
    api_keys_file: Path | None,
    *,
    loopback_only: bool,
    pinned: str | None = None,
    detach: bool = False,
) -> Iterator[None]:
    """The endpoint for the length of the block, on this process's Ray; drains at the end.

    Args:
        pinned: as of `endpoint`.
        detach: leave it there after the block.

    Raises:
        RuntimeError: no version of the run can be served.
    """
    from ray import serve
    from ray.serve.config import HTTPOptions, ProxyLocation

    # Serve's own limit is the last resort behind ours, which answers in the one error shape.
    limit_s = settings.serve.request_timeout_s + 30
    serve.start(
        proxy_location=ProxyLocation.HeadOnly if host in LOOPBACK_HOSTS else ProxyLocation.EveryNode,
        http_options=HTTPOptions(host=host, port=port, request_timeout_s=limit_s),
        controller_options=controller_options(settings.serve),
    )
    cuda = _on_cuda(settings)
    placement.check_room(placement.bundles(settings, on_cuda=cuda), ray_session.nodes())
    application = endpoint(
        run_folder,
        settings,
        on_cuda=cuda,
        api_keys_file=api_keys_file,
        loopback_only=loopback_only,
        pinned=pinned,
    )
    was_there = APP in serve.status().applications
    try:
        serve.run(application, name=APP, route_prefix="/")
        yield
    except BaseException:
        detach = detach and was_there  # what did not come up does not stay, and what answered before does
        raise
    finally:
        if not detach:
            serve.delete(APP)
            serve.shutdown()


class BuildArguments(BaseModel):
    """`args` of an application in a Serve config file."""

    model_config = ConfigDict(extra="forbid")
    run: str
    """Run folder, at a path that every node sees."""
    api_keys_file: str | None = None
    """File made by `stasc keys add`, at a path that every node sees."""
    version: str | None = None
    """Version that the endpoint is held to from its start; None: it follows LATEST."""
    overrides: list[str] = []
    """`section.field=value`, as on the command line."""
    insecure: bool = False
    """Answer everybody who reaches the port."""


def build(args: BuildArguments) -> Any:
    """The application for a Serve config file: `import_path: stasc_ray.serving.app:build`.

    Raises:
        ValueError: neither keys nor `insecure`; this function cannot know which address Serve listens at.
    """
    if not args.api_keys_file and not args.insecure:
        raise ValueError(
            "args: expected api_keys_file (made by `stasc keys add`), or insecure: true to answer everybody"
        )
    settings = config.with_overrides(
        store.read_config(Path(args.run), section_of), args.overrides, section_of
    )
    keys_file = Path(args.api_keys_file) if args.api_keys_file else None
    cuda = _on_cuda(settings)
    return endpoint(
        Path(args.run),
        settings,
        on_cuda=cuda,
        api_keys_file=keys_file,
        loopback_only=False,
        pinned=args.version,
    )


def _on_cuda(settings: config.Config) -> bool:
    """Whether replicas use CUDA; their nodes' builds were looked at.

    Raises:
        RuntimeError: as `preflight.check_builds`.
    """
    cuda = ray_session.on_cuda(settings.engine)
    preflight.check_builds(settings.engine, cuda)
    return cuda
