"""The commands `stasc submit` and `stasc jobs list | logs | stop`; cli/main.py registers them."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stasc_ray.cli import forking

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"

jobs_app = typer.Typer(help="Runs on a cluster, started by `stasc submit`.", no_args_is_help=True)

Address = Annotated[
    str, typer.Option(envvar=ADDRESS_VARIABLE, help="The cluster's Jobs API: http://HEAD:8265.")
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="As `stasc jobs list` shows it.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def submit(
    config_file: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG.toml|RUN",
            help="A TOML file (see jobs/configs/), or a run folder that the cluster sees by the same path.",
        ),
    ],
    address: Address,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[section.field=value ...]", help="Override single fields.")
    ] = None,
    max_upload_mb: Annotated[
        float, typer.Option(min=0, help="Refuse to upload more than this, in MiB.")
    ] = 10.0,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Only plan the run there, as `stasc plan` does."),
    ] = False,
    compare: Annotated[
        str | None,
        typer.Option(
            metavar="OPTIONS", help="Only compare ways to answer there: options of `stasc compare`, or ''."
        ),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return when the job is submitted; do not follow its log.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Run STaSC on a Ray cluster: start it there or attach to it, and follow its log. Ctrl-C leaves it
    running.
    """
    from stasc_ray.cli.errors import errors_for_people

    with errors_for_people(debug):
        from stasc_ray.runtime import submission

        client = submission.connect(address)
        command = "plan" if plan else "run" if compare is None else "compare"
        if plan and compare is not None:
            raise ValueError("--plan, --compare: expected one of them, found both; submit them one by one")
        if config_file.is_dir() and command != "run":
            raise ValueError(
                f"--{command}: expected a CONFIG.toml to {command}, found the run folder {config_file}"
            )
        settings, _ = forking.of_file_or_folder(config_file, overrides or [], None)
        most, options = int(max_upload_mb * 2**20), shlex.split(compare or "")
        job = submission.submit(
            client, settings, config_file, overrides or [], most, command=command, options=options
        )
        uploaded = f"uploaded {submission.size_text(job.uploaded_bytes)}"
        typer.echo(f"{job.id}: {'attached, nothing uploaded' if job.attached else uploaded}")
        if detach:
            typer.echo(submission.come_back(client, job.id))
            return
        status = _follow(client, job.id)
    raise typer.Exit(status)


@jobs_app.command("list")
def list_jobs(address: Address, debug: Debug = False) -> None:
    """The runs this cluster knows, newest first."""
    from stasc_ray.cli.errors import errors_for_people

    with errors_for_people(debug):
        from stasc_ray.runtime import submission

        for line in submission.table(submission.stasc_jobs(submission.connect(address))):
            typer.echo(line)


@jobs_app.command()
def logs(
    job: JobId,
    address: Address,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Stay until the job ends; exit with its status.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Show a job's log."""
    from stasc_ray.cli.errors import errors_for_people

    with errors_for_people(debug):
        from stasc_ray.runtime import submission

        client = submission.connect(address)
        submission.details(client, job)
        if not follow:
            typer.echo(client.get_job_logs(job), nl=False)
            return
        status = _follow(client, job)
    raise typer.Exit(status)


@jobs_app.command()
def stop(job: JobId, address: Address, debug: Debug = False) -> None:
    """End a job; what it committed stays, and the same `stasc submit` continues it."""
    from stasc_ray.cli.errors import errors_for_people

    with errors_for_people(debug):
        from stasc_ray.runtime import submission

        typer.echo(f"{job}: {submission.stop(submission.connect(address), job)}")


def _follow(client: "JobSubmissionClient", job: str) -> int:
    """Follow a job to its end; returns its exit status. Ctrl-C leaves it alone."""
    from stasc_ray.runtime import submission

    def write(text: str) -> None:
        typer.echo(text, nl=False)

    try:
        return submission.follow(client, job, write, note=lambda text: typer.echo(text, err=True))
    except KeyboardInterrupt:
        typer.echo(f"\n{job} goes on without us; {submission.come_back(client, job)}", err=True)
        return submission.EXIT_STOPPED
