"""GET /v1/run."""

from typing import Any

from fastapi import APIRouter, Depends

from stasc_ray.recipes.policies import policies
from stasc_ray.serving.errors import responses
from stasc_ray.serving.routers.replica import Here, key_needed
from stasc_ray.serving.schemas import RunSummary, RunVersion
from stasc_ray.serving.service import Service

router = APIRouter(dependencies=[Depends(key_needed)])


@router.get("/v1/run", responses=responses(401, 403, 429))
async def run(here: Here) -> RunSummary:
    """The run, its versions and what they scored."""
    return summary(here.service)


def summary(service: Service) -> RunSummary:
    """What a replica knows of its run."""
    versions, settings = service.versions, service.settings
    active = versions.active.version if versions.active else None
    loaded, refused = {one.version for one in versions.loaded}, versions.reasons()
    seen = versions.published.snapshot
    return RunSummary(
        name=settings.name,
        recipe=settings.algorithm.recipe,
        variant=settings.algorithm.variant,
        policies=[name for name, one in policies(service.recipe).items() if not one.needs_reward],
        model=settings.model.path,
        preset=settings.prompts.preset,
        initial_answers_from="base" if versions.base_answers else "current",
        active=active,
        latest=seen.latest,
        pinned=versions.link.pinned,
        versions=[
            RunVersion(
                version=(name := manifest["version"]),
                iteration=manifest["iteration"],
                created=manifest["created"],
                dev=_scores(manifest, "dev", base_answers=versions.base_answers),
                test=_scores(manifest, "test", base_answers=versions.base_answers),
                loaded=name in loaded,
                active=name == active,
                latest=name == seen.latest,
                refused=refused.get(name),
            )
            for manifest in seen.manifests.values()
        ],
        limits={
            "max_rounds": settings.serve.max_rounds,
            "max_samples": settings.serve.max_samples,
            "max_output_tokens": settings.serve.max_output_tokens,
            "request_timeout_s": settings.serve.request_timeout_s,
        },
        sampling={
            turn: {
                "temperature": values.temperature,
                "top_p": values.top_p,
                "max_tokens": values.max_tokens,
            }
            for turn, values in (
                ("initial", settings.sampling.initial),
                ("correction", settings.sampling.correction),
            )
        },
    )


def _scores(manifest: dict[str, Any], split: str, *, base_answers: bool) -> dict[str, float]:
    metrics = manifest.get("metrics", {})
    of = f"evaluation/{split}/base/" if base_answers and manifest["iteration"] else f"evaluation/{split}/"
    found = {name: metrics.get(f"{of}{name}") for name in ("r_y1", "r_y2")}
    return {name: value for name, value in found.items() if value is not None}
