"""What the small files of a run folder say, for people and pages.

Reads metrics.jsonl, config.json, environment.json, versions/ and LATEST; writes nothing. An unfinished run will do.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stasc_ray.config import Config, validate
from stasc_ray.store import RunFolder


@dataclass(frozen=True)
class Run:
    """What the small files of a run folder say; `stages` holds the lines of metrics.jsonl by (stage, iteration)."""

    folder: RunFolder
    config: Config | None
    raw_config: Mapping[str, Any]
    environment: Mapping[str, Any]
    stages: Mapping[tuple[str, int], Mapping[str, Any]]
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
    raw_config = _read_json(path / "config.json")
    try:
        config = validate(raw_config, origin=str(path / "config.json")) if raw_config else None
    except ValueError:  # written by another version of the package: the page is still worth having
        config = None
    return Run(
        folder=folder,
        config=config,
        raw_config=raw_config,
        environment=_read_json(path / "environment.json"),
        stages={(str(line["stage"]), int(line["iteration"])): line for line in folder.metrics()},
        versions=folder.versions(),
        latest=folder.latest(),
    )


def chosen_iteration(run: Run) -> int | None:
    """The measured iteration with the best dev r(Y2), base model included, the earliest of equals."""
    known = [(value, -i) for i in run.measured if (value := run.value("evaluation/dev/r_y2", i)) is not None]
    return -max(known)[1] if known else None


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no file yet."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also what is no UTF-8
        raise ValueError(f"{path}: expected JSON, found: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a JSON object, found a {type(found).__name__}")
    return found
