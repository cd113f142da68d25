"""The command `stasc fork`, and runs that go on with their folder's own config; main.py registers them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from stasc_ray.config import Config


def fork(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, finished, stopped or running.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the new run.")],
    from_iteration: Annotated[
        int, typer.Option("--from", min=0, help="Iteration whose model is kept; 0 is the base model.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[section.field=value ...]", help="What is otherwise from that model on."),
    ] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Its folder; default: NAME beside RUN.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Go on from an iteration's model under another config, in a new run folder; RUN stays as it is."""
    from stasc_ray.cli.errors import errors_for_people

    with errors_for_people(debug):
        from stasc_ray.recipes import section_of
        from stasc_ray.store import fork as forks

        folder = (run_dir or run.resolve().parent / name).resolve()
        for line in forks.make(run, name, from_iteration, overrides or [], section_of, folder):
            typer.echo(line)


def of_folder(run: Path, overrides: list[str], run_dir: Path | None) -> tuple["Config", Path]:
    """The config in a run folder with overrides, and the folder.

    Raises:
        FileNotFoundError, ValueError: as `store.read_config`; --run-dir was given too.
    """
    from stasc_ray import config, store
    from stasc_ray.recipes import section_of

    if run_dir:
        raise ValueError(
            f"--run-dir: expected a CONFIG.toml beside it, found the run folder {run}, which says where; "
            "leave it out, or see `stasc fork --help`"
        )
    return config.with_overrides(store.read_config(run, section_of), overrides, section_of), run.resolve()
