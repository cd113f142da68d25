"""The commands `stasc push` and `stasc export-log`; main.py registers them."""

from pathlib import Path
from typing import Annotated

import typer

from stasc_ray.cli.errors import errors_for_people

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def export_log(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run folder, or that of `stasc evaluate --output`.")
    ],
    version: Annotated[
        str | None, typer.Option(metavar="v0003", help="A published version; default: LATEST.")
    ] = None,
    iteration: Annotated[
        int | None, typer.Option(min=0, help="Or the model of this iteration, 0 the base.")
    ] = None,
    split: Annotated[str, typer.Option(metavar="test|dev", help="Whose questions.")] = "test",
    own_answers: Annotated[
        bool,
        typer.Option(
            "--own-answers", help="Fixed initialization: with its own first answers, not the base's."
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.eval",
            help="File to write, a new one or a log of the same evaluation; default: in RUN/inspect/.",
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Write an evaluation as a log that `inspect view` opens; inspect_ai need not be installed here."""
    with errors_for_people(debug):
        from stasc_ray.sharing import evaluations, inspect_log

        if split not in ("test", "dev"):
            raise ValueError(f"--split: expected test or dev, which are measured, found {split!r}")
        found = evaluations.find(run, iteration, version, split, own_answers=own_answers)
        file = inspect_log.export(found, output)
        typer.echo(f"{file}; to look at it: inspect view --log-dir {file.parent}")


def push(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, finished or not.")],
    to: Annotated[str, typer.Option(metavar="OWNER/NAME", help="Model repository on the Hub; made if new.")],
    version: Annotated[
        str | None, typer.Option(metavar="v0003", help="A published version; default: LATEST.")
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="A new repository is private; an old one must be so already.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the card and the files; contact nobody.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Put a version on the Hugging Face Hub with a card: metrics with intervals, data lineage, prompts. One
    commit; a repository that is there gets a new one, and its history keeps what was there before.
    """
    with errors_for_people(debug):
        from stasc_ray.sharing import hub

        upload = hub.prepare(run, version, to)
        if dry_run:
            typer.echo(upload.card)
            typer.echo("\n".join(upload.listed()))
            typer.echo("dry run: nothing was sent")
            return
        typer.echo(hub.push(upload, private=private))
