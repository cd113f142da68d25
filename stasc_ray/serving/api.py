"""The routes. `make_api` builds the FastAPI application around a `Service`; it runs in a replica, and in tests anywhere.

POST /v1/correct with `"stream": true` answers with server-sent events, each `event: NAME` and one line `data: JSON`:

    start   {"id", "question", "model_version"}                   again if an engine died before the first token
    token   {"sample", "turn", "round", "text"}                   a piece of text; turn "initial" has round 0, the first
                                                                  "correction" round 1; sample counts from 0
    result  the object that comes without streaming               the last event
    error   {"error": {"type", "message", "param"}}               the last event, instead of `result`

What fails before the first event is answered with its own status and an error body, as without streaming.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client.metrics_core import Metric

from stasc_ray.serving import openai
from stasc_ray.serving.doors import KeyRing
from stasc_ray.serving.errors import ApiError, responses
from stasc_ray.serving.http import Envelope, add_error_handlers, event_stream, sse
from stasc_ray.serving.monitor import as_page
from stasc_ray.serving.published import LATEST, pin, read_pin
from stasc_ray.serving.schemas import (
    ActivateRequest,
    ActivateResponse,
    CorrectRequest,
    CorrectResponse,
    Health,
    ModelCard,
    ModelList,
    Readiness,
    RunSummary,
)
from stasc_ray.serving.service import Service

PAGE = Path(__file__).parent / "web" / "index.html"
ASKING = responses(400, 401, 403, 404, 409, 413, 422, 429, 500, 503, 504)
BEARER = HTTPBearer(
    auto_error=False, description="A key made by `stasc keys add`; needed where keys are in use"
)
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)]
STREAM = {"content": {"text/event-stream": {}}}


def make_api(
    service: Service,
    *,
    replica: str,
    keys: KeyRing | None,
    loopback_only: bool,
    all_metrics: Callable[[], Awaitable[list[list[Metric]]]],
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None,
) -> FastAPI:
    """The application of one replica.

    Args:
        service: what answers.
        replica: name of this replica.
        keys: None answers everybody; then there is no admin either.
        loopback_only: refuse requests whose Host is not this machine.
        all_metrics: metrics of all replicas of this endpoint.
        lifespan: what runs as long as the application does.
    """
    app = FastAPI(
        title="stasc_ray",
        summary="A self-correcting model: it answers, then corrects its answer",
        version=service.settings.name,
        lifespan=lifespan or _nothing,
        responses=responses(400, 413, 500, 503, 504),
    )
    add_error_handlers(app)

    def allowed(request: Request, _: Credentials) -> None:
        if keys:
            keys.check(request.headers.get("authorization"), admin=False)

    def admin(request: Request, _: Credentials) -> None:
        if keys is None:
            raise ApiError(
                403,
                "permission_error",
                "expected an admin key; start with --api-keys-file (`stasc keys add --admin`)",
            )
        keys.check(request.headers.get("authorization"), admin=True)

    @app.post(
        "/v1/correct",
        dependencies=[Depends(allowed)],
        responses={200: STREAM, **ASKING},
        response_model=CorrectResponse,
    )
    async def correct(body: CorrectRequest, request: Request) -> Any:
        """Answer a question and correct the answer."""
        request_id = request.state.request_id
        if not body.stream:
            return await service.correct(body, request_id)

        async def work(send: Callable[[bytes], None]) -> None:
            begun = False

            def emit(event: str, data: dict[str, Any]) -> None:
                nonlocal begun
                begun = True
                send(sse(data, event))

            try:
                answered = await service.correct(body, request_id, emit)
            except ApiError as error:
                if not begun:
                    raise
                send(sse(error.body, "error"))
            else:
                send(sse(answered.model_dump(mode="json"), "result"))

        return await event_stream(work)

    @app.post(
        "/v1/chat/completions",
        dependencies=[Depends(allowed)],
        responses={200: STREAM, **ASKING},
        response_model=openai.ChatResponse,
    )
    async def chat_completions(body: openai.ChatRequest, request: Request) -> Any:
        """OpenAI's chat completions: the last user message is the question, the answer is the corrected one."""
        request_id = request.state.request_id
        manifests = await asyncio.to_thread(service.manifests)  # files on storage that may be far
        openai.known_model(body.model, [manifest["version"] for manifest in manifests])
        question = body.as_correct_request()
        if not body.stream:
            return openai.chat_response(body, await service.correct(question, request_id))

        async def work(send: Callable[[bytes], None]) -> None:
            chunks, begun = openai.Chunks(body, request_id), False

            def emit(event: str, data: dict[str, Any]) -> None:
                nonlocal begun
                if chunk := chunks.from_event(event, data):
                    begun = True
                    send(sse(chunk))

            try:
                answered = await service.correct(question, request_id, emit)
            except ApiError as error:
                if not begun:
                    raise
                send(sse(error.body))
            else:
                for chunk in chunks.end(answered):
                    send(sse(chunk))
            send(sse("[DONE]"))

        return await event_stream(work)

    @app.get("/v1/models", dependencies=[Depends(allowed)], responses=responses(401, 403, 429))
    async def models() -> ModelList:
        """Every published version, and `latest`: the one that answers when no version is asked for."""
        versions = service.versions
        active = versions.active.version if versions.active else None
        loaded = {one.version for one in versions.loaded}
        cards = [
            ModelCard(
                id=name,
                created=int(datetime.fromisoformat(manifest["created"]).timestamp()),
                owned_by=service.settings.name,
                stasc={
                    "loaded": name in loaded,
                    "active": name == active,
                    "iteration": manifest["iteration"],
                },
            )
            for manifest in await asyncio.to_thread(service.manifests)
            for name in [manifest["version"]]
        ]
        newest = max((card.created for card in cards), default=0)
        alias = {"loaded": active is not None, "active": active is not None, "version": active}
        return ModelList(
            data=[ModelCard(id=LATEST, created=newest, owned_by=service.settings.name, stasc=alias), *cards]
        )

    @app.get("/v1/run", dependencies=[Depends(allowed)], responses=responses(401, 403, 429))
    async def run() -> RunSummary:
        """The run, its versions and what they scored."""
        return await asyncio.to_thread(service.summary)

    @app.post(
        "/v1/admin/activate", dependencies=[Depends(admin)], responses=responses(401, 403, 404, 422, 429, 503)
    )
    async def activate(body: ActivateRequest) -> ActivateResponse:
        """Move every replica to a version, forward or back, or with `latest` let them follow the run again."""
        wanted = None if body.version == LATEST else body.version
        if wanted and wanted not in [
            manifest["version"] for manifest in await asyncio.to_thread(service.manifests)
        ]:
            raise ApiError(
                404,
                "not_found_error",
                f"expected a published version or `latest`, found {wanted!r}",
                "version",
            )
        try:
            pin(service.run.path, wanted)
        except OSError as error:
            raise ApiError(
                503, "unavailable_error", f"the pin could not be written into the run folder: {error}"
            ) from error
        service.versions.look_now()
        return ActivateResponse(pinned=wanted, target=wanted or service.run.latest() or "none")

    @app.get("/healthz")
    async def healthz() -> Health:
        """What this replica serves, what it refused to serve and why."""
        versions = service.versions
        return Health(
            status="ok" if versions.active else "no_engine",
            replica=replica,
            active=versions.active.version if versions.active else None,
            verified=versions.active.verified if versions.active else None,
            latest=service.run.latest(),
            pinned=read_pin(service.run.path),
            loading=versions.loading,
            loaded=[one.version for one in versions.loaded],
            refused=versions.reasons(),
            in_flight=service.admission.in_flight,
            queued=service.admission.queued,
            engine_starts=versions.engine_starts,
            engine_pids=[one.engine_pid for one in versions.loaded],
        )

    @app.get("/readyz", responses={503: {"model": Readiness}})
    async def readyz() -> Response:
        """200 when an engine that answered a probe is up, else 503."""
        active = service.versions.active
        ready = Readiness(ready=active is not None, version=active.version if active else None)
        return JSONResponse(ready.model_dump(), status_code=200 if active else 503)

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Prometheus metrics of all replicas."""
        return Response(as_page(await all_metrics()), media_type="text/plain; version=0.0.4")

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> Response:
        """The page for people."""
        if not PAGE.is_file():
            raise ApiError(
                404, "not_found_error", "this installation has no page; the routes are listed at /docs"
            )
        return FileResponse(
            PAGE, headers={"Content-Security-Policy": CONTENT_POLICY, "X-Content-Type-Options": "nosniff"}
        )

    app.add_middleware(
        Envelope,
        monitor=service.monitor,
        max_body_bytes=service.settings.serve.max_body_kb * 1024,
        loopback_only=loopback_only,
    )
    return app


CONTENT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "frame-ancestors 'none'"
)
"""The page is one file, talks to this server only, and is shown in no frame."""


@asynccontextmanager
async def _nothing(_: FastAPI) -> AsyncIterator[None]:
    yield
