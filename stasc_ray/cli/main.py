"""The `stasc` command, one function or module for each subcommand.

stasc run jobs/configs/demo.toml
"""

import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from stasc_ray.cli import compare, datasets, forking, look, plan, serve, sharing, submit, sweep
from stasc_ray.cli.errors import END_S, GOES_ON, errors_for_people

app = typer.Typer(
    name="stasc",
    help="Self-Taught Self-Correction for language models on Ray (arXiv 2503.08681).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigFile = Annotated[
    Path,
    typer.Argument(metavar="CONFIG.toml|RUN", help="A TOML file (see jobs/configs/), or a run folder."),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[section.field=value ...]", help="Override single fields.")
]
Address = Annotated[
    str | None,
    typer.Option(
        help="Ray cluster to join; default: RAY_ADDRESS, else a local Ray that ends with the command."
    ),
]
FIGURES = ("r_y1", "r_y2", "delta", "i_to_c", "c_to_i", "cl", "cs", "rss", "changed")
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
    """Run STaSC, or continue a run: the same command picks up where the last one stopped. A run folder goes
    on with its own config.
    """
    with errors_for_people(debug, END_S, GOES_ON):
        from stasc_ray import algorithm
        from stasc_ray.opening import open_run_on
        from stasc_ray.report.page import write_report
        from stasc_ray.report.planned import compared, planned_lines, read_plan

        started = time.monotonic()
        settings, folder = forking.of_file_or_folder(config_file, overrides or [], run_dir)
        with open_run_on(settings, folder, address, fresh=fresh) as opened:
            found = algorithm.stasc(opened)
        opened.display.note(conclusion(found))
        for text in planned_lines(compared(folder)) if read_plan(folder) else ():
            opened.display.note(text)
        opened.display.note(f"report: {write_report(folder)}")
        opened.display.note(f"took {time.monotonic() - started:.0f} s")


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
        str, typer.Option(help="A dataset's columns, prompts and reward: one that `stasc datasets` lists.")
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
        int | None, typer.Option(min=1, help="Corrections in a row; default: the config's, else 1.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder to keep the rollouts and metrics in; default: none is kept.")
    ] = None,
    address: Address = None,
    debug: Debug = False,
) -> None:
    """Measure a model's answers and corrections on any questions: a run of no iterations; prints the
    metrics.
    """
    with errors_for_people(debug, END_S, GOES_ON):
        from stasc_ray import algorithm, config
        from stasc_ray.opening import open_run_on
        from stasc_ray.recipes import section_of

        suits = config.dataset("sandbox")["suits"] if data == "sandbox" else {}
        # A failed row is a scored failure here, shown in the figures, and stops nothing.
        limits = {"engine.max_model_len_tokens": 4096}
        limits |= {"engine.max_error_fraction": 1.0, "reward.max_error_fraction": 1.0}
        suits = {} if config_file else {**suits, **limits}
        given = {"model.path": model, "questions.preset": preset, "questions.test.source": data}
        given |= {"algorithm.iterations": 0} | ({"evaluation.rounds": rounds} if rounds else {})
        given |= {"questions.test.split": split} if split else {}
        given |= {"questions.test.limit": limit} if limit else {}
        told = [f"{name}={config.as_text(value)}" for name, value in (suits | given).items()]
        settings = config.load_config(config_file, [*told, *(overrides or [])], section_of)
        with folder_for(output) as folder, open_run_on(settings, folder, address, training=False) as opened:
            algorithm.stasc(opened)
            (line,) = [line for line in opened.folder.metrics() if line["stage"] == "evaluation"]
        typer.echo(as_lines(line, settings.evaluation.rounds))


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
        bool, typer.Option("--fields", help="Print the table of all fields instead (docs/config.md's).")
    ] = False,
    debug: Debug = False,
) -> None:
    """Print the resolved config, defaults marked."""
    with errors_for_people(debug):
        from stasc_ray import config
        from stasc_ray.recipes import RECIPES, section_of

        if fields:
            typer.echo(config.fields_table({name: recipe.section for name, recipe in RECIPES.items()}))
            return
        settings = config.load_config(config_file, overrides or [], section_of)
        typer.echo(
            f"# recipe {settings.algorithm.recipe}, variant {settings.algorithm.variant}, fingerprint "
            f"{config.fingerprint(settings)}"
        )
        for name, value, is_default, _ in config.walk(settings):
            typer.echo(f"{name} = {config.as_text(value)}{'  # default' if is_default else ''}")


@contextlib.contextmanager
def folder_for(output: Path | None) -> Iterator[Path]:
    """The folder to keep traces and metrics in, or one that goes away with the block."""
    if output:
        yield output.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="stasc-evaluate-") as folder:
        yield Path(folder)


def as_lines(line: dict[str, Any], rounds: int) -> str:
    """The figures on test as lines; r(Y1) is the initial answer's, r(Y2) the one after that round."""
    found = {name.removeprefix("evaluation/test/"): value for name, value in line.items()}
    lines = [f"questions {found['questions']}, failed {found['errors']}"]
    for number in range(1, rounds + 1):
        at = f"round_{number}/" if number < rounds else ""
        names = [*FIGURES, *(name for name in found if name.startswith("verdict_"))]
        values = ((name, found[at + name]) for name in names)
        shown = "  ".join(
            f"{name} {'-' if value is None else format(value, '.4f')}" for name, value in values
        )
        low, high = found[f"{at}r_y2_low"], found[f"{at}r_y2_high"]
        lines.append(f"round {number}:  {shown}  r_y2 95% [{low:.4f}, {high:.4f}]")
    return "\n".join(lines)


def conclusion(found: dict[str, Any]) -> str:
    """The chosen version's figures beside the base model's and the last iteration's."""
    base, chosen, last = found["base"], found["chosen"], found["last"]
    of = ", correcting the base model's answers" if found["of_base"] else ""
    return (
        f"{found['chosen_version']} is chosen on dev{of}. Test r(Y2): base {base['r_y2']:.3f}, "
        f"chosen {chosen['r_y2']:.3f} [{chosen['r_y2_low']:.3f}, {chosen['r_y2_high']:.3f}], last iteration "
        f"{last['r_y2']:.3f}. Test r(Y1): base {base['r_y1']:.3f}, chosen {chosen['r_y1']:.3f}, last "
        f"{last['r_y1']:.3f}. {_over_base(found)}"
    )


def _over_base(found: dict[str, Any]) -> str:
    """The headline: the chosen version less the base model, question by question."""
    if not found["chosen_iteration"]:
        return "No iteration is chosen over the base model."
    if found["gain"] is None:
        return (
            "Its gain over the base model was not measured: that one was asked under another config, or by "
            "an older stasc_ray."
        )
    measure = {"r_y1": "r(Y1)", "r_y2": "r(Y2)"}.get(found["gain_in"], found["gain_in"])
    return (
        f"Gain over the base model in {measure} on test: {found['gain']:+.3f} "
        f"[{found['gain_low']:+.3f}, {found['gain_high']:+.3f}]."
    )


app.command("fork")(forking.fork)
app.command("datasets")(datasets.datasets)
app.command("look")(look.look)
app.command("plan")(plan.plan)
app.command("compare")(compare.compare)
app.command("sweep")(sweep.sweep)
app.command("push")(sharing.push)
app.command("export-log")(sharing.export_log)
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
