"""The FastAPI application of one replica; it runs in a replica of Ray Serve, and in tests anywhere."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import FastAPI

from stasc_ray.serving.errors import responses
from stasc_ray.serving.http import Door, add_error_handlers
from stasc_ray.serving.routers import admin, chat_completions, correct, models, operating, page, run
from stasc_ray.serving.routers.replica import Replica

RESOURCES = (correct, chat_completions, models, run, admin, operating, page)


def make_api(
    replica: Replica,
    *,
    loopback_only: bool,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None,
) -> FastAPI:
    """The application.

    Args:
        loopback_only: refuse requests whose Host is not this machine.
        lifespan: runs as long as the application does.
    """
    service = replica.service
    app = FastAPI(
        title="stasc_ray",
        summary="A self-correcting model: it answers, then corrects its answer",
        version=service.settings.name,
        lifespan=lifespan,
        responses=responses(400, 408, 413, 500, 503, 504),
        docs_url=None,  # FastAPI's pages load scripts from elsewhere; ours are in routers/page.py
        redoc_url=None,
        redirect_slashes=False,  # to wherever the Host header says
    )
    app.state.replica = replica
    for resource in RESOURCES:
        app.include_router(resource.router)
    add_error_handlers(app)
    document = app.openapi
    app.openapi = lambda: _with_our_statuses(document())
    app.add_middleware(Door, replica=replica, serve=service.settings.serve, loopback_only=loopback_only)
    return app


def _with_our_statuses(document: dict[str, Any]) -> dict[str, Any]:
    """Without FastAPI's 422, which is a 400 here (`add_error_handlers`)."""
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    return document
