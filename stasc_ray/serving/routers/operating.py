"""GET /healthz, /readyz and /metrics: what an orchestrator and a monitor ask for, without a key."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from stasc_ray.serving.monitor import as_page
from stasc_ray.serving.proxy import GUARDED
from stasc_ray.serving.routers.replica import Here
from stasc_ray.serving.schemas import Health, Readiness

router = APIRouter()


@router.head("/healthz", include_in_schema=False)
@router.head("/health", include_in_schema=False)
@router.get("/health", include_in_schema=False)
@router.get("/healthz")
async def healthz(here: Here, request: Request) -> Health:
    """What this replica serves, what it refused to serve and why."""
    service, versions = here.service, here.service.versions
    seen = versions.published.snapshot
    return Health(
        status="ok" if versions.active else "no_engine",
        replica=here.name,
        active=versions.active.version if versions.active else None,
        verified=versions.active.verified if versions.active else None,
        latest=seen.latest,
        pinned=versions.link.pinned,
        loading=versions.loading,
        loaded=[one.version for one in versions.loaded],
        warm=[one.version for one in versions.warm],
        refused=versions.reasons(),
        in_flight=service.admission.in_flight,
        queued=service.admission.queued,
        engine_starts=versions.engine_starts,
        engine_pids=list(dict.fromkeys(one.engine_pid for one in versions.loaded)),
        guarded=GUARDED.decode() in request.headers,
        keys_problem=here.keys.problem if here.keys else None,
        storage_problem=versions.published.snapshot.problem,
    )


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", responses={503: {"model": Readiness}})
async def readyz(here: Here) -> Response:
    """200 when an engine that answered a probe is up, else 503 with what it waits for."""
    versions, active = here.service.versions, here.service.versions.active
    version = active.version if active else None
    ready = Readiness(ready=active is not None, version=version, reason=versions.why_not_ready())
    return JSONResponse(ready.model_dump(), status_code=200 if active else 503)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(here: Here) -> Response:
    """Prometheus metrics of all replicas."""
    return Response(as_page(await here.all_metrics()), media_type="text/plain; version=0.0.4")
