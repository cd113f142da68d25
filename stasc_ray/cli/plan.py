"""The command `stasc plan`; main.py registers it."""

import contextlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stasc_ray.cli.errors import END_S, errors_for_people

if TYPE_CHECKING:
    from stasc_ray import config
    from stasc_ray.planning.found import Found


def plan(
    what: Annotated[
        Path, typer.Argument(metavar="CONFIG.toml|RUN", help="A TOML file; or a run that was planned.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[section.field=value ...]", help="Override single fields of the config."),
    ] = None,
    calibration: Annotated[
        bool,
        typer.Option("--calibration/--no-calibration", help="Measure with a run in small, or give bounds."),
    ] = True,
    questions: Annotated[int, typer.Option(min=4, help="Train questions of the calibration.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
    run_dir: Annotated[Path | None, typer.Option(help="Run folder; default: <storage>/<name>.")] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster to calibrate on; default: RAY_ADDRESS, else a local Ray."),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Say before a run what it will take: tokens, memory and hours. Of a planned RUN: what it took."""
    with errors_for_people(debug, END_S, "a calibration keeps nothing"):
        if what.is_dir():
            _show_run(what, as_json)
            return
        from stasc_ray import config
        from stasc_ray.planning.bounds import assume
        from stasc_ray.planning.calibration import calibrate
        from stasc_ray.recipes import section_of
        from stasc_ray.report.planned import keep_plan
        from stasc_ray.runtime import ray_session

        settings = config.load_config(what, overrides or [], section_of)
        folder = ray_session.run_folder(settings, run_dir)
        with contextlib.redirect_stdout(io.StringIO()) if as_json else contextlib.nullcontext():
            found = calibrate(settings, address, questions) if calibration else assume(settings)
        made = as_plan(settings, found)
        if found.speeds:
            keep_plan(made, folder)
        typer.echo(json.dumps(made, indent=2) if as_json else "\n".join(as_lines(made)))


def as_plan(settings: "config.Config", found: "Found") -> dict[str, Any]:
    """What plan.json holds."""
    from stasc_ray import config
    from stasc_ray.runtime import capacity, forecast

    stages = forecast.forecast(settings, found.sizes, found.speeds, found.engines)
    seconds = [stage.seconds for stage in stages]
    total = sum(one or 0.0 for one in seconds) + (found.speeds.opening_s if found.speeds else 0.0)
    return {
        "name": settings.name,
        "fingerprint": config.fingerprint(settings),
        "calibrated": found.speeds is not None,
        "calibration": {"questions": found.questions, "seconds": found.seconds},
        "engines": found.engines,
        "device": "cuda" if found.cuda else "cpu",
        "seconds": total if found.speeds else None,
        "stages": forecast.as_rows(stages),
        "memory_gb": capacity.memory_gb(found.shape, settings, found.cuda),
        "parameters": found.shape.parameters,
        "sizes": asdict(found.sizes),
        "speeds": asdict(found.speeds) if found.speeds else None,
    }


def as_lines(made: Mapping[str, Any]) -> Iterator[str]:
    """A plan for people."""
    from stasc_ray.runtime.pace import words

    asked = ", ".join(f"{count} {split}" for split, count in made["sizes"]["questions"].items())
    yield f"{made['name']}: {asked} questions, {made['parameters'] / 1e6:,.1f} million weights"
    if made["calibrated"]:
        small = made["calibration"]
        yield (
            f"measured with {small['questions']} questions in {words(small['seconds'])}, on "
            f"{made['speeds']['engines']} {made['device']} engine(s) at "
            f"{made['speeds']['tokens_per_s']:,.0f} tokens/s, prompts included"
        )
        if made["engines"] != made["speeds"]["engines"]:
            yield f"the run's {made['engines']} engines are taken as that many times as fast; not measured"
    else:
        yield "not measured: bounds, with every text as long as max_tokens and every attempt learnt; no hours"
    yield ""
    row = "{:<26}{:>14}{:>14}{:>14}{:>10}"
    yield row.format("stage", "prompt", "generated", "trained", "time")
    for stage in made["stages"]:
        if stage["stage"] in ("rollouts", "finetune"):
            yield row.format(_place(stage), *_figures(stage))
    yield row.format("in all", *_figures(_total(made)))
    yield ""
    for stage, parts in made["memory_gb"].items():
        yield f"memory, {stage}: " + ", ".join(f"{name} {_size(gb)}" for name, gb in parts.items())
    if made["calibrated"] and made["sizes"]["learnt"]["kept"] == 0:
        yield "! none of the calibration's corrections would be kept: with so few, the run ends there"


def _size(gb: float) -> str:
    return f"{gb:,.1f} GiB" if gb >= 1 else f"{gb * 2**10:,.1f} MiB"


def _place(stage: Mapping[str, Any]) -> str:
    from stasc_ray.store import iteration_name

    return f"{iteration_name(stage['iteration'])} {stage['stage']}"


def _total(made: Mapping[str, Any]) -> dict[str, Any]:
    names = ("prompt_tokens", "generated_tokens", "trained_tokens")
    total = {name: sum(stage[name] for stage in made["stages"]) for name in names}
    return {**total, "seconds": made["seconds"]}


def _figures(stage: Mapping[str, Any]) -> list[str]:
    from stasc_ray.runtime.pace import words

    names = ("prompt_tokens", "generated_tokens", "trained_tokens")
    figures = [f"{stage[name]:,.0f}" if stage[name] else "-" for name in names]
    return [*figures, "-" if stage["seconds"] is None else words(stage["seconds"])]


def _show_run(folder: Path, as_json: bool) -> None:
    from stasc_ray.report.planned import compared, planned_lines

    found = compared(folder)
    if as_json:
        typer.echo(json.dumps([{**asdict(one), "error": one.error} for one in found], indent=2))
    else:
        typer.echo("\n".join(planned_lines(found)))
