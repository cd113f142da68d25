"""What a plan said beside what the run took.

`stasc plan` keeps a plan beside the run folder. The run takes it along as plan.json if it has the same
config.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stasc_ray import config
from stasc_ray.runtime import forecast
from stasc_ray.store import RunFolder, write_atomically
from stasc_ray.store.files import read_json

FILE = "plan.json"


def beside(folder: Path) -> Path:
    """Where a plan waits for its run: not in the run's folder, which may not be there yet."""
    return folder.with_name(f"{folder.name}.{FILE}")


def keep_plan(made: Mapping[str, Any], folder: Path) -> None:
    """Keep a plan for the run in `folder`."""
    write_atomically(beside(folder), json.dumps(made, indent=2) + "\n")


def take_plan(folder: Path, settings: config.Config) -> None:
    """Copy the plan into a run's folder if it was made with the config that the run has now."""
    if beside(folder).is_file():
        made = read_json(beside(folder), "fingerprint", "stages")
        if made["fingerprint"] == config.fingerprint(settings):
            write_atomically(folder / FILE, json.dumps(made, indent=2) + "\n")


def read_plan(folder: Path) -> dict[str, Any]:
    """A run's plan; empty if there was none."""
    file = folder / FILE
    return read_json(file, "fingerprint", "stages") if file.is_file() else {}


def compared(folder: Path) -> list[forecast.Against]:
    """A run's planned and measured figures.

    Raises:
        FileNotFoundError: the run was not planned.
    """
    made = read_plan(folder)
    if not made:
        raise FileNotFoundError(
            f"stasc plan: expected {FILE} in {folder}, found none; plan a run before it starts, with the "
            "same config: `stasc plan CONFIG.toml`"
        )
    return list(forecast.against(made, RunFolder(folder).metrics()))


def planned_lines(found: Sequence[forecast.Against]) -> Iterator[str]:
    """The comparison for people."""
    row = "{:<26}{:>14}{:>14}{:>9}"
    yield row.format("", "planned", "measured", "error")
    for one in found:
        yield row.format(one.what, f"{one.planned:,.0f}", f"{one.measured:,.0f}", as_percent(one.error))


def as_percent(error: float | None) -> str:
    """An error as +12%."""
    return "-" if error is None else f"{error:+.0%}"
