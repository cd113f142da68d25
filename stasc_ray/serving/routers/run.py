"""GET /v1/run."""

from fastapi import APIRouter, Depends

from stasc_ray.serving.errors import responses
from stasc_ray.serving.routers.replica import Here, key_needed
from stasc_ray.serving.schemas import RunSummary

router = APIRouter(dependencies=[Depends(key_needed)])


@router.get("/v1/run", responses=responses(401, 403, 429))
async def run(here: Here) -> RunSummary:
    """The run, its versions and what they scored."""
    return here.service.summary()
