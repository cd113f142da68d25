"""What the small files of a run folder say, for people and pages.

Reads metrics.jsonl, each iteration's training.jsonl, config.json, environment.json, versions/ and LATEST;
writes nothing. An unfinished run will do.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stasc_ray.config import Config, validate
from stasc_ray.evaluation import choosing
from stasc_ray.recipes import section_of
from stasc_ray.store import RunFolder, step_log
from stasc_ray.store.files import read_json
from stasc_ray.store.run_folder import read_values


@dataclass(frozen=True)
class Run:
    """What the small files of a run folder say; `stages` holds the lines of metrics.jsonl by (stage,
    iteration), `steps` those of training.jsonl by iteration, of a fine-tune that is still going too.
    """

    folder: RunFolder
    config: Config | None
    raw_config: Mapping[str, Any]
    environment: Mapping[str, Any]
    stages: Mapping[tuple[str, int], Mapping[str, Any]]
    steps: Mapping[int, Sequence[Mapping[str, Any]]]
    versions: Sequence[Mapping[str, Any]]
    latest: str | None

    @property
    def iterations(self) -> list[int]:
        """Iterations that have finished at least one stage; 0 is the base model."""
        return sorted({iteration for _, iteration in self.stages})

    def value(self, key: str, iteration: int | None) -> float | None:
        """A metric `stage/name` of one iteration, or None where it is missing or not a finite number."""
        found = self.stages.get((key.partition("/")[0], -1 if iteration is None else iteration), {}).get(key)
        return float(found) if isinstance(found, int | float) and math.isfinite(found) else None

    def values(self, key: str, iterations: Sequence[int]) -> list[float | None]:
        """The metric over several iterations."""
        return [self.value(key, iteration) for iteration in iterations]

    @property
    def measured(self) -> list[int]:
        """Iterations whose model was measured."""
        return sorted(iteration for stage, iteration in self.stages if stage == "evaluation")


def read_run(path: Path) -> Run:
    """Read the small files of a run folder.

    Raises:
        FileNotFoundError: no metrics.jsonl in `path`.
        ValueError: config.json, environment.json or a manifest is not JSON.
    """
    folder = RunFolder(path)
    if not folder.metrics_file.is_file():
        raise FileNotFoundError(
            f"report: expected a run folder with metrics.jsonl, found none in {path}; give <storage>/<run>"
        )
    raw_config = read_values(path) if (path / "config.json").is_file() else {}
    try:
        config = validate(raw_config, section_of, origin=str(path / "config.json")) if raw_config else None
    except ValueError:  # a recipe that can't be imported here: the page is still worth having
        config = None
    return Run(
        folder=folder,
        config=config,
        raw_config=raw_config,
        environment=_if_there(path / "environment.json"),
        stages={(str(line["stage"]), int(line["iteration"])): line for line in folder.metrics()},
        steps=step_log.read_of_run(path),
        versions=folder.versions(),
        latest=folder.latest(),
    )


def chosen_iteration(run: Run) -> int | None:
    """The measured iteration that dev has chosen, base model included."""
    return choosing.chosen(run.folder, run.config) if run.config else run.folder.best_on_dev(("r_y2",))


def _if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
