"""The `stasc` command: run | evaluate | report | config | serve | ask | keys | submit | jobs.

stasc run jobs/configs/demo.toml
"""

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from stasc_ray.cli import serve, submit
from stasc_ray.cli.errors import errors_for_people, naming_logs

app = typer.Typer(
    name="stasc",
    help="Self-Taught Self-Correction for language models on Ray (arXiv 2503.08681).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="A TOML file; see jobs/configs/.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[section.field=value ...]", help="Override single fields.")
]
Address = Annotated[
    str | None,
    typer.Option(
        help="Ray cluster to join; default: RAY_ADDRESS, else a local Ray that ends with the command."
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@app.command()
def run(
    config_file: ConfigFile,
    overrides: Overrides = None,
    run_dir: Annotated[Path | None, typer.Option(help="Run folder; default: <storage>/<name>.")] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete what the run folder holds and begin again.")
    ] = False,
    address: Address = None,
    debug: Debug = False,
) -> None:
    """Run STaSC, or continue a run: the same command picks up where the last one stopped."""
    with errors_for_people(debug):
        from stasc_ray import algorithm, config, passes, stages, store
        from stasc_ray.report.page import write_report
        from stasc_ray.runtime import preflight, ray_session
        from stasc_ray.runtime.display import Display
        from stasc_ray.store import tracking

        settings = config.load_config(config_file, overrides or [])
        passes.check_config(settings)
        folder = ray_session.run_folder(settings, run_dir)
        display = Display()
        started = time.monotonic()
        with (
            store.open_run(folder, settings, fresh=fresh) as opened,
            naming_logs(opened.logs),
            ray_session.connect(address, opened.logs),
            tracking.sinks(settings, folder) as track,
        ):
            cuda = ray_session.on_cuda(settings.engine)
            display.note(describe(settings, folder, cuda, time.monotonic() - started))
            for lack in preflight.check(settings, folder, passes.base_model(settings), cuda):
                display.note(lack)
            passes.check_models(settings)
            opened.write_environment(ray_session.environment())
            found = algorithm.stasc(stages.Run(opened, settings, cuda, display, track))
        display.note(conclusion(found))
        display.note(f"report: {write_report(folder)}")
        display.note(f"took {time.monotonic() - started:.0f} s")


@app.command()
def evaluate(
    model: Annotated[str, typer.Option(help="Model folder, Hub id, or `sandbox`.")],
    data: Annotated[
        str,
        typer.Option(
            help="Questions: JSONL or Parquet file, folder, glob or URL, Hub dataset id, or `sandbox`."
        ),
    ],
    preset: Annotated[
        str, typer.Option(help="Columns: canonical, nq_open, gsm8k, math500, commonsense_qa.")
    ] = "canonical",
    config_file: Annotated[
        Path | None, typer.Option("--config", help="TOML file for prompts, reward, engine, sampling.")
    ] = None,
    overrides: Overrides = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Questions to take, chosen by seed; default: all.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of a Hub dataset.")] = None,
    rounds: Annotated[
        int, typer.Option(min=1, help="Correction rounds, each correcting the one before.")
    ] = 1,
    output: Annotated[
        Path | None, typer.Option(help="Folder to keep the rollouts and metrics in; default: none is kept.")
    ] = None,
    address: Address = None,
    debug: Debug = False,
) -> None:
    """Measure a model's answers and corrections on any questions; prints the metrics, per round with --rounds."""
    with errors_for_people(debug):
        from stasc_ray import config, evaluate_model, passes
        from stasc_ray.runtime import preflight, ray_session
        from stasc_ray.runtime.display import Display

        suited = [] if config_file else evaluate_model.defaults(preset, data)
        given = [f"model.path={model!r}", f"questions.preset={preset!r}"]
        given += [f"questions.test.source={data!r}"] + ([f"questions.test.split={split!r}"] if split else [])
        given += [f"questions.test.limit={limit}"] if limit else []
        settings = config.load_config(config_file, [*suited, *given, *(overrides or [])])
        passes.check_config(settings)
        with (
            evaluate_model.folder_for(output) as folder,
            naming_logs(folder / "logs"),
            ray_session.connect(address, folder / "logs"),
        ):
            cuda, display = ray_session.on_cuda(settings.engine), Display()
            for lack in preflight.check(settings, folder, passes.base_model(settings), cuda, training=False):
                display.note(lack)
            found = evaluate_model.evaluate(settings, folder, cuda, rounds, display)
        typer.echo(evaluate_model.as_text(found))


@app.command()
def report(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, finished or not.")],
    output: Annotated[Path | None, typer.Option(help="HTML file to write; default: RUN/report.html.")] = None,
    debug: Debug = False,
) -> None:
    """Write a run's report: one self-contained HTML page."""
    with errors_for_people(debug):
        from stasc_ray.report.page import write_report

        typer.echo(write_report(run_folder, output))


@app.command("config")
def show_config(
    config_file: Annotated[Path | None, typer.Argument(metavar="CONFIG.toml")] = None,
    overrides: Overrides = None,
    fields: Annotated[
        bool, typer.Option("--fields", help="Print the table of all fields instead (the README's).")
    ] = False,
    debug: Debug = False,
) -> None:
    """Print the resolved config, defaults marked."""
    with errors_for_people(debug):
        from stasc_ray import config

        if fields:
            typer.echo(config.fields_table())
            return
        settings = config.load_config(config_file, overrides or [])
        typer.echo(f"# variant {settings.algorithm.variant}, fingerprint {config.fingerprint(settings)}")
        for name, value, is_default, _ in config.walk(settings):
            typer.echo(f"{name} = {config.as_text(value)}{'  # default' if is_default else ''}")


def describe(settings: Any, folder: Path, cuda: bool, start_s: float) -> str:
    """The run in one line."""
    actors = settings.engine.actors
    actors = "{} to {}".format(*actors) if isinstance(actors, tuple) else actors
    return (
        f"{settings.name}: STaSC {settings.algorithm.variant}, {settings.algorithm.iterations} iterations of {settings.model.path} "
        f"on {actors} {'CUDA' if cuda else 'CPU'} engine(s); Ray was up in {start_s:.0f} s; run folder {folder}"
    )


def conclusion(found: dict[str, Any]) -> str:
    """The chosen version's figures beside the base model's and the last iteration's."""
    base, chosen, last = found["base"], found["chosen"], found["last"]
    return (
        f"{found['chosen_version']} is best on dev. Test r(Y2): base {base['r_y2']:.3f}, "
        f"chosen {chosen['r_y2']:.3f} [{chosen['r_y2_low']:.3f}, {chosen['r_y2_high']:.3f}] "
        f"({chosen['r_y2'] - base['r_y2']:+.3f}), last iteration {last['r_y2']:.3f}. Test r(Y1): base {base['r_y1']:.3f}, "
        f"chosen {chosen['r_y1']:.3f}, last {last['r_y1']:.3f}."
    )


app.command("serve")(serve.serve)
app.command("ask")(serve.ask)
app.add_typer(serve.keys_app, name="keys")
app.command("submit")(submit.submit)
app.add_typer(submit.jobs_app, name="jobs")


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    sys.exit(main())
