"""A run over values of its config: `stasc sweep CONFIG --vary algorithm.variant=EIE,ENE --vary seed=0..4`.

A run is a `stasc run` in a process of its own, one after the other, so a failure or a stop takes nothing from
the others; the same command goes on. What they measured is put side by side, runs that differ in nothing but
their seed as one line.
"""

import contextlib
import itertools
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stasc_ray import config, store
from stasc_ray.evaluation import choosing
from stasc_ray.recipes import chosen_by, section_of

FILE = "sweep.json"
NOTHING_KEPT = 3
"""Exit status of a run whose filter kept nothing: a result, not a failure."""
FIGURES = ("r_y1", "r_y2", "delta", "i_to_c", "c_to_i")
GAIN = ("gain", "gain_low", "gain_high")
MOST_RUNS = 1000
END_S = 60.0
"""For a run that is told to end."""


@dataclass(frozen=True)
class SweptRun:
    """One run of a sweep."""

    label: str
    """Its values of what is varied, without the seed."""
    seed: int
    overrides: tuple[str, ...]
    settings: config.Config


def values_of(vary: str) -> tuple[str, list[str]]:
    """A field and its values: `field=a,b,c`, or whole numbers `field=0..4`, both ends included.

    Raises:
        ValueError: it is neither, or has a value twice.
    """
    field, _, text = vary.partition("=")
    if between := re.fullmatch(r"(-?\d+)\.\.(-?\d+)", text.strip()):
        values = [str(number) for number in range(int(between[1]), int(between[2]) + 1)]
    else:
        values = [value.strip() for value in text.split(",")]
    if not field.strip() or not values or "" in values or len(set(values)) < len(values):
        raise ValueError(
            f"--vary: expected field=a,b,c or field=0..4, each value once, found {vary!r}; for values that "
            "are lists use the config file"
        )
    return field.strip(), values


def runs_of(file: Path, overrides: Sequence[str], vary: Sequence[str]) -> list[SweptRun]:
    """Every combination, seed after seed, so that a sweep that stops has whole comparisons. All configs are
    checked before any run starts.

    Raises:
        ValueError: a value that makes no config, a field twice, or more than MOST_RUNS.
    """
    varied = [values_of(one) for one in vary]
    fields = [field for field, _ in varied]
    if len(set(fields)) < len(fields):
        raise ValueError(f"--vary: expected each field once, found {', '.join(fields)}")
    varied.sort(key=lambda one: one[0] != "seed")  # the seed is the outermost
    count = 1
    for _, values in varied:
        count *= len(values)
    if count > MOST_RUNS:
        raise ValueError(f"--vary: expected at most {MOST_RUNS} runs, found {count}")
    base = config.load_config(file, overrides, section_of)
    found = []
    for chosen in itertools.product(*(values for _, values in varied)):
        own = [f"{field}={value}" for (field, _), value in zip(varied, chosen, strict=True)]
        name = "-".join([base.name, *(_word(one) for one in own)])
        own.append(f"name={name}")
        settings = config.load_config(file, [*overrides, *own], section_of)
        label = ", ".join(one for one in own[:-1] if not one.startswith("seed=")) or base.name
        found.append(SweptRun(label, settings.seed, tuple(own), settings))
    if len({one.settings.name for one in found}) < len(found):
        raise ValueError("--vary: expected values that name runs apart, found two runs of one name")
    return found


def _word(override: str) -> str:
    """`algorithm.variant=ENE` as part of a run's name: `variant_ENE`."""
    field, _, value = override.partition("=")
    return f"{field.rpartition('.')[2]}_{re.sub(r'[^A-Za-z0-9_.-]+', '_', value)}"


def command(file: Path, overrides: Sequence[str], run_folder: Path) -> list[str]:
    """The command line of one run."""
    return [sys.executable, "-m", "stasc_ray.cli", "run", str(file), "--run-dir", str(run_folder), *overrides]


def check_folders(runs: Sequence[SweptRun], folder: Path) -> None:
    """That what is there are these runs, and no others of their names.

    Raises:
        ValueError: a run in the folder has another config.
    """
    for one in runs:
        path = folder / one.settings.name
        if (path / "config.json").is_file():
            there = store.read_config(path, section_of)
            differing = set(config.differing_fields(there, one.settings))
            if lost := sorted(differing - config.operational_fields(there)):
                raise ValueError(
                    f"{path}: expected a run of this sweep, found one with other {', '.join(lost)}; choose "
                    "another folder for the runs"
                )


def finished(one: SweptRun, folder: Path) -> bool:
    """Whether a run has measured its last iteration."""
    return any(
        line["stage"] == "publish" and line["iteration"] == one.settings.algorithm.iterations
        for line in store.RunFolder(folder / one.settings.name).metrics()
    )


def run_one(
    command: Sequence[str], log: Path, env: Mapping[str, str] | None = None, limit_s: float | None = None
) -> tuple[int, float]:
    """Run a command with its output in a file; its exit status and seconds. If this process is stopped, the
    run is told to end in order, and has the time for it.

    Raises:
        subprocess.TimeoutExpired: it took longer than `limit_s`, and was ended.
    """
    started = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        running = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=env)
        try:
            return running.wait(limit_s), time.monotonic() - started
        except (KeyboardInterrupt, subprocess.TimeoutExpired):
            running.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.wait(END_S)
            raise
        finally:
            running.kill()


def figures(one: SweptRun, folder: Path) -> dict[str, Any] | None:
    """What a run's chosen version has on test; None before it has measured something."""
    run = store.RunFolder(folder / one.settings.name)
    measured = {line["iteration"]: line for line in run.metrics() if line["stage"] == "evaluation"}
    if not measured:
        return None
    chosen = choosing.chosen(run, one.settings) if 0 in measured else None
    line, base = measured[chosen or 0], measured.get(0, {})
    fixed = "base/" if "evaluation/test/base/r_y2" in line else ""  # M0's answers corrected
    return {
        "run": one.settings.name,
        "label": one.label,
        "seed": one.seed,
        "finished": finished(one, folder),
        "iteration": chosen or 0,
        **{name: line.get(f"evaluation/test/{fixed}{name}") for name in FIGURES},
        **{name: line.get(f"evaluation/test/{name}") for name in GAIN},
        "gain_in": chosen_by(one.settings.algorithm)[0].rpartition("/")[2],
        **{f"base_{name}": base.get(f"evaluation/test/{name}") for name in ("r_y1", "r_y2")},
    }


def lines_of(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The table for people: a line for each combination, over its seeds mean and, from two on, the standard
    error.
    """
    row = "{:<44}{:>6}{:>18}{:>18}{:>18}{:>18}{:>31}"
    yield row.format("chosen versions on test", "seeds", "r(Y1)", "r(Y2)", "i->c", "c->i", "gain over base")
    open_ends = [one["run"] for one in found if not one["finished"]]
    found = [one for one in found if one["finished"]]
    for label, group in itertools.groupby(
        sorted(found, key=lambda one: one["label"]), lambda one: one["label"]
    ):
        ones = list(group)
        cells = (_mean([one[name] for one in ones]) for name in ("r_y1", "r_y2", "i_to_c", "c_to_i"))
        yield row.format(label, len(ones), *cells, _gain(ones))
    if open_ends:
        yield f"not finished, and not in the table: {', '.join(open_ends)}"


def _gain(ones: Sequence[Mapping[str, Any]]) -> str:
    """Of one run with its interval over questions, of several their mean."""
    if any(one["iteration"] and one["gain"] is None for one in ones):
        return "-"
    measure = "r(Y1)" if ones[0]["gain_in"] == "r_y1" else "r(Y2)"
    if len(ones) > 1:
        # a run that chose M0 gained nothing
        return f"{measure} {_mean([one['gain'] if one['iteration'] else 0.0 for one in ones])}"
    (one,) = ones
    if not one["iteration"]:
        return "M0 chosen"
    return f"{measure} {one['gain']:+.3f} [{one['gain_low']:+.3f}, {one['gain_high']:+.3f}]"


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    error = f" ± {statistics.stdev(known) / len(known) ** 0.5:.3f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.3f}{error}"
