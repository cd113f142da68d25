"""What one fine-tune is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stasc_ray import config, store
from stasc_ray.learning.objectives import objective_of
from stasc_ray.recipes import recipe_of
from stasc_ray.runtime import capacity, model_folder


class RefusedError(ValueError):
    """The fine-tune can't be carried out as it is asked for, and another try would not help."""


@dataclass(frozen=True)
class FinetuneJob:
    """What one fine-tune is; every worker gets it."""

    source: Mapping[str, Any]
    """Arguments of `from_pretrained` for the model to start from; see `model_source`."""
    output: Path
    """Folder for the model, seen by every node; empty or absent, else overwritten."""
    storage: Path
    """Folder for checkpoints, progress.json and training.jsonl, seen by every node."""
    iteration: int
    """1-based; names the state inside `storage` and seeds the order."""
    seed: int
    finetune: config.Finetune
    on_cuda: bool
    """One GPU per worker, else CPUs."""
    gpus: float
    """That Ray reserves for each worker: a share, if engines that sleep hold the rest of the card."""
    chat: tuple[config.Model, bool | None] = (config.Model(), None)
    """Model section and `keep_reasoning`, by which conversations are rendered (`tasks.chat.Chat`)."""
    objective: str = "sft"
    """Name in `objectives.OBJECTIVES`; the recipe's."""
    adapter: Path | None = None
    """LoRA adapter folder, trained on the same model, to continue; None starts a fresh one."""
    lease: store.Lease | None = None
    """Of the run; workers that find it taken over save no further checkpoint."""
    model_card: Mapping[str, Any] = field(default_factory=dict)
    """Metrics and facts for the exported README.md; filled in with the examples, as is the next one."""
    examples: int = 0
    """How many are trained on."""

    @classmethod
    def of(
        cls, settings: config.Config, base_model: str, *, output: Path, storage: Path, **more: Any
    ) -> "FinetuneJob":
        """The job that a run's config describes; `more` are further fields.

        Raises:
            ValueError: as `objectives.objective_of`.
        """
        objective = recipe_of(settings.algorithm.recipe).objective
        objective_of(objective)  # which raises now, not in the workers
        return cls(
            source=model_source(base_model, settings),
            output=output.resolve(),
            storage=storage.resolve(),
            seed=settings.seed,
            chat=(settings.model, settings.prompts.keep_reasoning),
            finetune=settings.finetune,
            objective=objective,
            **{"gpus": min(capacity.reserved_gpus(settings.engine, more["on_cuda"]), 1), **more},
        )


def model_source(base_model: str, settings: config.Config) -> dict[str, Any]:
    """Arguments of every `from_pretrained`: the path, and the Hub revision if it is M0 that is loaded."""
    return {
        "pretrained_model_name_or_path": base_model,
        "revision": model_folder.revision(base_model, settings.model) or "main",
        "trust_remote_code": settings.model.trust_remote_code,
    }
