"""The command `stasc fork`, which main.py registers, and runs that go on with their folder's own config."""

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


def of_file_or_folder(what: Path, overrides: list[str], run_dir: Path | None) -> tuple["Config", Path]:
    """A run's config with overrides, and its folder: of a TOML file, or of a run folder, which goes on with
    the config in it.

    Raises:
        FileNotFoundError, ValueError: as `config.load_config` or `store.read_config`; --run-dir beside a run
            folder.
    """
    from stasc_ray import config, store
    from stasc_ray.recipes import section_of
    from stasc_ray.runtime import ray_session

    if not what.is_dir():
        settings = config.load_config(what, overrides, section_of)
        return settings, ray_session.run_folder(settings, run_dir)
    if run_dir:
        raise ValueError(
            f"--run-dir: expected a CONFIG.toml beside it, found the run folder {what}, which says where; "
            "leave it out, or see `stasc fork --help`"
        )
    return config.with_overrides(store.read_config(what, section_of), overrides, section_of), what.resolve()
