"""POST /v1/admin/activate."""

import asyncio

from fastapi import APIRouter, Depends

from stasc_ray.serving.errors import ApiError, responses
from stasc_ray.serving.published import LATEST, pin
from stasc_ray.serving.routers.replica import Here, admin_key_needed
from stasc_ray.serving.schemas import ActivateRequest, ActivateResponse

router = APIRouter(dependencies=[Depends(admin_key_needed)])


@router.post("/v1/admin/activate", responses=responses(401, 403, 404, 422, 429, 503))
async def activate(body: ActivateRequest, here: Here) -> ActivateResponse:
    """Move every replica to a version, forward or back, or with `latest` let them follow the run again."""
    service, wanted = here.service, None if body.version == LATEST else body.version
    await service.versions.look()
    seen = service.versions.published.snapshot
    if wanted and wanted not in seen.manifests:
        message = f"expected a published version or `latest`, found {wanted!r}"
        raise ApiError(404, "not_found_error", message, "version")
    try:
        await asyncio.to_thread(pin, service.run.path, wanted)
    except OSError as error:
        message = f"the pin could not be written into the run folder: {error}"
        raise ApiError(503, "unavailable_error", message) from error
    service.versions.look_now()
    return ActivateResponse(pinned=wanted, target=wanted or seen.latest or "none")
