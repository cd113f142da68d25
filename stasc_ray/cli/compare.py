"""The command `stasc compare`; main.py registers it."""

from pathlib import Path
from typing import Annotated

import typer

from stasc_ray.cli.errors import END_S, errors_for_people

GOES_ON = "the same command goes on with what is left"


def compare(
    what: Annotated[
        Path, typer.Argument(metavar="CONFIG.toml|RUN_A", help="A TOML file; or a run to set beside RUN_B.")
    ],
    others: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN_B|section.field=value ...]", help="Another run; or overrides of the config."
        ),
    ] = None,
    strategies: Annotated[
        str, typer.Option(help="Ways to answer, with commas between; default: all. See docs/methods.md.")
    ] = "",
    versions: Annotated[
        str,
        typer.Option(
            metavar="RUN[:v0003],...", help="Published versions, with commas between; default: model.path."
        ),
    ] = "",
    tokens: Annotated[
        float | None,
        typer.Option(min=1, help="Generated per question; default: those of four direct answers."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=2, help="Test questions to take, chosen by seed.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for answers, figures and page; default: <storage>/<name>-compare."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster to join; default: RAY_ADDRESS, else a local Ray."),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Say which way to answer pays on your test questions, at equal generated tokens. Of two runs: where they
    differ, in config and answers.
    """
    with errors_for_people(debug, END_S, GOES_ON):
        if what.is_dir():
            _show_runs(what, others or [], output)
            return
        from stasc_ray import config
        from stasc_ray.comparing import contest
        from stasc_ray.opening import open_run_on
        from stasc_ray.recipes import section_of
        from stasc_ray.report.compared_page import as_lines, write_page
        from stasc_ray.runtime import ray_session
        from stasc_ray.stages import base_model

        settings = config.load_config(what, _overrides(others or [], limit), section_of)
        settings = settings.model_copy(update={"name": f"{settings.name}-compare"})
        folder = ray_session.run_folder(settings, output)
        asked = contest.versions_of(_listed(versions), settings, base_model(settings, folder))
        names = contest.check_strategies(_listed(strategies), asked[0].settings)
        for version in asked[1:]:  # before anything starts
            contest.check_strategies(names, version.settings)
        with open_run_on(settings, folder, address, training=False) as opened:
            found = contest.contest(opened, asked, names, tokens)
        typer.echo(as_lines(found))
        typer.echo(f"page: {write_page(found, folder)}; figures: {folder / contest.FILE}")


def _listed(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def _overrides(given: list[str], limit: int | None) -> list[str]:
    """What a comparison needs of the config: no training, and failed questions count as wrong."""
    ours = ["algorithm.iterations=0", "engine.max_error_fraction=1", "reward.max_error_fraction=1"]
    return [*given, *ours, *([f"questions.test.limit={limit}"] if limit else [])]


def _show_runs(first: Path, others: list[str], output: Path | None) -> None:
    from stasc_ray.comparing import two_runs
    from stasc_ray.report.compared_page import write_runs_page

    if len(others) != 1 or not Path(others[0]).is_dir():
        raise ValueError(
            f"stasc compare {first}: expected one other run folder beside it, found "
            f"{others or 'none'}; or give a CONFIG.toml to compare ways to answer"
        )
    found = two_runs.compared(first, Path(others[0]))
    typer.echo("\n".join(two_runs.as_lines(found)))
    page = (output or Path(f"{first.resolve().name}-{Path(others[0]).resolve().name}.html")).resolve()
    typer.echo(f"page: {write_runs_page(found, page)}")
