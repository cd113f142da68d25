"""The command `stasc sweep`; main.py registers it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stasc_ray.cli.errors import errors_for_people

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stasc_ray.comparing.sweep import SweptRun

GOES_ON = "the same command goes on with the run that was stopped"


def sweep(
    config_file: Annotated[Path, typer.Argument(metavar="CONFIG.toml")],
    vary: Annotated[
        list[str],
        typer.Option(
            metavar="FIELD=VALUES", help="field=a,b,c or field=0..4; several times: every combination."
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[section.field=value ...]", help="Override single fields of all runs."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the runs; default: <storage>/<name>-sweep.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Ray cluster to join, one run after another; or its Jobs API (http://HEAD:8265), which gets "
            "a job for each run; default: RAY_ADDRESS, else a local Ray for each."
        ),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Run a config over values of its fields, and set the chosen versions side by side. The same command goes
    on where the last one stopped; runs that are finished are not run again.
    """
    status = 0
    with errors_for_people(debug, None, GOES_ON):
        from stasc_ray import config, store
        from stasc_ray.comparing import sweep as sweeping
        from stasc_ray.recipes import section_of
        from stasc_ray.runtime import ray_session, submission

        given = overrides or []
        runs = sweeping.runs_of(config_file, given, vary)
        settings = config.load_config(config_file, given, section_of)
        folder = ray_session.run_folder(
            settings.model_copy(update={"name": f"{settings.name}-sweep"}), output
        )
        sweeping.check_folders(runs, folder)
        if address and address.startswith("http"):
            if not output:
                submission.check_storage(settings)
            _submit(config_file, given, runs, folder, address)
        else:
            status = _run(config_file, given, runs, folder, address)
        found = [line for one in runs if (line := sweeping.figures(one, folder))]
        if found:
            store.write_atomically(folder / sweeping.FILE, json.dumps(found, indent=1) + "\n")
            typer.echo("\n".join(sweeping.lines_of(found)))
            typer.echo(f"{len(found)} of {len(runs)} runs; figures: {folder / sweeping.FILE}")
    raise typer.Exit(status)


def _run(
    file: Path, overrides: "Sequence[str]", runs: "Sequence[SweptRun]", folder: Path, address: str | None
) -> int:
    """One run after another; 1 if some failed."""
    from stasc_ray.comparing import sweep as sweeping

    status = 0
    for number, one in enumerate(runs, start=1):
        name, log = one.settings.name, folder / f"{one.settings.name}.log"
        if sweeping.finished(one, folder):
            typer.echo(f"{number} of {len(runs)}, {name}: finished before")
            continue
        typer.echo(f"{number} of {len(runs)}, {name} ... (log: {log})")
        values = [*overrides, *one.overrides, *(["--address", address] if address else [])]
        ended, seconds = sweeping.run_one(sweeping.command(file, values, folder / name), log)
        if ended not in (0, sweeping.NOTHING_KEPT):
            status = 1
            typer.echo(f"{name}: failed, see {log}; the others go on", err=True)
            continue
        kept = ", its filter kept nothing" if ended == sweeping.NOTHING_KEPT else ""
        typer.echo(f"{name}: {seconds:.0f} s{kept}")
    return status


def _submit(
    file: Path, overrides: "Sequence[str]", runs: "Sequence[SweptRun]", folder: Path, address: str
) -> None:
    """A job for each run; one that is there already is left alone."""
    from stasc_ray.runtime import submission

    client = submission.connect(address)
    for one in runs:
        at = f"storage={folder}"
        settings = one.settings.model_copy(update={"storage": str(folder)})
        job = submission.submit(client, settings, file, [*overrides, *one.overrides, at], 10 * 2**20)
        typer.echo(f"{job.id}: {'is there' if job.attached else 'submitted'}")
    typer.echo("the same command shows what they measured; `stasc jobs list` how they are")
