"""POST /v1/admin/activate."""

from fastapi import APIRouter, Depends

from stasc_ray.serving.errors import ApiError, responses
from stasc_ray.serving.published import LATEST
from stasc_ray.serving.routers.replica import Here, admin_key_needed
from stasc_ray.serving.schemas import ActivateRequest, ActivateResponse

router = APIRouter(dependencies=[Depends(admin_key_needed)])


@router.post("/v1/admin/activate", responses=responses(401, 403, 404, 429, 503))
async def activate(body: ActivateRequest, here: Here) -> ActivateResponse:
    """Move every replica to a version, forward or back, or with `latest` let them follow the run again."""
    versions, wanted = here.service.versions, None if body.version == LATEST else body.version
    await versions.look()
    seen = versions.published.snapshot
    if wanted and wanted not in seen.manifests:
        message = f"expected a published version or `latest`, found {wanted!r}"
        raise ApiError(404, "not_found_error", message, "version")
    try:
        await versions.pin(wanted)
    except Exception as error:  # what Ray raises while the coordinator is being started again
        message = f"the pin may not have moved, since the coordinator is out of reach ({error}); try again"
        raise ApiError(503, "unavailable_error", message, headers={"Retry-After": "5"}) from error
    return ActivateResponse(pinned=wanted, target=wanted or seen.latest or "none")
