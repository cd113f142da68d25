"""The command `stasc fork`; main.py registers it."""

import shlex
from pathlib import Path
from typing import Annotated

import typer


def fork(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, finished or not.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the new run, and of its folder.")],
    iteration: Annotated[
        int, typer.Option("--from", min=0, help="Go on from this iteration's model; 0 is the base model.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[section.field=value ...]", help="What the new run changes."),
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="The new run's folder; default: NAME beside RUN.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Begin a run that goes on from a model of another one, under another config."""
    from stasc_ray.cli.errors import errors_for_people

    with errors_for_people(debug):
        from stasc_ray import config, store
        from stasc_ray.recipes import section_of
        from stasc_ray.store.fork import fork as fork_folder

        stored = store.read_config(run, section_of)
        settings = config.with_overrides(stored, [*(overrides or []), f'name="{name}"'], section_of)
        target = run_dir.resolve() if run_dir else run.resolve().with_name(settings.name)
        found = fork_folder(run.resolve(), iteration, target, settings, stored)
        typer.echo(
            f"{target}: goes on from {store.iteration_name(iteration)} of {run}; "
            f"{found.linked} files shared, {found.copied} copied"
        )
        if found.asks_again:
            typer.echo(f"{store.iteration_name(iteration)} is asked again, since what is asked changes")
        typer.echo(f"start it: {shlex.join(['stasc', 'run', str(target)])}")
