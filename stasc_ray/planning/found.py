"""What is known of a run before it starts."""

from collections.abc import Sequence
from dataclasses import dataclass

from stasc_ray import config
from stasc_ray.runtime import capacity, forecast, model_folder


@dataclass(frozen=True)
class Found:
    """What is known of a run before it starts; `speeds` is None without a calibration."""

    sizes: forecast.Sizes
    shape: capacity.Shape
    cuda: bool
    engines: int
    """That the run will have."""
    speeds: forecast.Speeds | None = None
    questions: int = 0
    """Train questions of the calibration, or test questions where nothing is learnt."""
    seconds: float = 0.0
    """That the calibration took."""


def mean(asked: Sequence[forecast.Asked]) -> forecast.Asked:
    """Means over questions."""
    count = max(len(asked), 1)
    return forecast.Asked(
        *(
            sum(getattr(one, name) for one in asked) / count
            for name in ("prompt_tokens", "generated_tokens", "texts")
        )
    )


def shape_of(settings: config.Config, path: str) -> capacity.Shape:
    """What memory follows from, of the run's model at `path`."""
    lora = settings.finetune.lora if settings.finetune.method == "lora" else None
    return model_folder.shape(path, settings.model, lora)
