"""GET /v1/models, as OpenAI's clients ask for it."""

from datetime import datetime
from typing import Any

from fastapi import APIRouter, Depends

from stasc_ray.serving.errors import ApiError, responses
from stasc_ray.serving.published import LATEST
from stasc_ray.serving.routers.replica import Here, key_needed
from stasc_ray.serving.schemas import ModelCard, ModelList

router = APIRouter(dependencies=[Depends(key_needed)])


@router.get("/v1/models/{model}", responses=responses(401, 403, 404, 429))
async def model(model: str, here: Here) -> ModelCard:
    """One of them."""
    found = next((card for card in (await models(here)).data if card.id == model), None)
    if found is None:
        message = f"expected `latest` or a published version, found {model!r}; GET /v1/models lists them"
        raise ApiError(404, "not_found_error", message, "model", code="model_not_found")
    return found


@router.get("/v1/models", responses=responses(401, 403, 429))
async def models(here: Here) -> ModelList:
    """Every published version, and `latest`: the one that answers when no version is asked for."""
    versions, owner = here.service.versions, here.service.settings.name
    active = versions.active.version if versions.active else None
    loaded = {one.version for one in versions.loaded}

    def card(manifest: dict[str, Any]) -> ModelCard:
        name = manifest["version"]
        created = int(datetime.fromisoformat(manifest["created"]).timestamp())
        about = {"loaded": name in loaded, "active": name == active, "iteration": manifest["iteration"]}
        return ModelCard(id=name, created=created, owned_by=owner, stasc=about)

    cards = [card(manifest) for manifest in versions.published.snapshot.manifests.values()]
    newest = max((card.created for card in cards), default=0)
    about = {"loaded": active is not None, "active": active is not None, "version": active}
    return ModelList(data=[ModelCard(id=LATEST, created=newest, owned_by=owner, stasc=about), *cards])
