"""The command `stasc look`; main.py registers it."""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from stasc_ray.look import Wanted
    from stasc_ray.report.look_page import Page


def look(
    what: Annotated[Path, typer.Argument(metavar="CONFIG.toml|RUN", help="A TOML file, or a run folder.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[section.field=value ...]", help="Override single fields of the config."),
    ] = None,
    id: Annotated[str | None, typer.Option(help="The question with this id.")] = None,
    transition: Annotated[
        str | None, typer.Option(help="Run: questions with such a correction; 'i->c' (quoted) or i_to_c.")
    ] = None,
    kept: Annotated[bool, typer.Option("--kept", help="Run: questions with a text that is learnt.")] = False,
    disputed: Annotated[
        bool, typer.Option("--disputed", help="Run: an answer is right by one reward and wrong by another.")
    ] = False,
    iteration: Annotated[
        int | None,
        typer.Option(min=0, help="Run: texts of this model, 0 the base; default: the last learnt from."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Run: questions to show; default: 5.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write one HTML page there instead.")] = None,
    address: Annotated[
        str | None, typer.Option(help="Look on this Ray cluster, where the run or the questions lie.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Look at a config before anything runs, or at questions of a run: those to which all options apply."""
    from stasc_ray.cli.errors import errors_for_people

    with errors_for_people(debug):
        from stasc_ray.look import Wanted
        from stasc_ray.report.look_page import print_page, write_html

        wanted = Wanted(id, transition, kept, disputed, iteration, limit or Wanted.limit)
        page = _page(what, overrides or [], wanted, address)
        if html:
            typer.echo(write_html(page, html))
        else:
            try:
                print_page(page)
                sys.stdout.flush()
            except BrokenPipeError:  # `| head` has seen enough
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _page(what: Path, overrides: list[str], wanted: "Wanted", address: str | None) -> "Page":
    """What is to be shown.

    Raises:
        ValueError: options of the other kind.
    """
    from dataclasses import replace

    from stasc_ray import config
    from stasc_ray.look import Wanted, look_at_config, look_at_run
    from stasc_ray.recipes import section_of

    if what.suffix == ".toml":
        if replace(wanted, id=None) != Wanted():
            raise ValueError(
                f"stasc look: expected --id, --html or overrides for a config, found an option for runs; "
                f"leave it out, or give a run folder instead of {what}"
            )
        return _called(address, look_at_config, config.load_config(what, overrides, section_of), wanted.id)
    if overrides:
        raise ValueError(
            f"stasc look: expected overrides for a CONFIG.toml, found {overrides[0]!r} for the run folder "
            f"{what}, whose config stands; leave it out"
        )
    return _called(address, look_at_run, what if address else what.resolve(), wanted)


def _called(address: str | None, function: Callable[..., "Page"], *arguments: Any) -> "Page":
    """The result of a call here or, with an address, in a worker of that cluster."""
    if address is None:
        return function(*arguments)
    import ray

    from stasc_ray.runtime import ray_session

    with tempfile.TemporaryDirectory(prefix="stasc-look-") as logs, ray_session.connect(address, Path(logs)):
        return ray.get(ray.remote(num_cpus=1)(function).remote(*arguments))
