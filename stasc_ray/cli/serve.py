"""The commands `stasc serve`, `stasc ask` and `stasc keys add`; main.py registers them."""

import contextlib
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

keys_app = typer.Typer(help="API keys for `stasc serve`.", no_args_is_help=True)


def serve(
    run_folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run folder with at least one published version.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[section.field=value ...]", help="Override single fields.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; others than this machine's need keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")] = 8000,
    version: Annotated[
        str | None, typer.Option(help="Pin a version; default: follow the run's LATEST.")
    ] = None,
    api_keys_file: Annotated[
        Path | None, typer.Option(help="File made by `stasc keys add`; requests need one of its keys.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen at another address without keys.")
    ] = False,
    detach: Annotated[
        bool,
        typer.Option("--detach", help="Return once it answers; the cluster keeps it until `serve shutdown`."),
    ] = False,
    address: Annotated[
        str | None,
        typer.Option(
            help="Ray cluster to join; default: RAY_ADDRESS, else a local Ray that ends with the command."
        ),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Serve a run's LATEST version over HTTP, and move on when LATEST does."""
    from stasc_ray.cli.errors import errors_for_people

    with errors_for_people(debug):
        from stasc_ray import config, store
        from stasc_ray.recipes import section_of
        from stasc_ray.runtime import ray_session
        from stasc_ray.serving import app, doors, published

        run_folder = run_folder.resolve()
        settings = config.with_overrides(
            store.read_config(run_folder, section_of), overrides or [], section_of
        )
        check_open(host, api_keys_file, insecure)
        if detach and not (address or os.environ.get("RAY_ADDRESS")):
            raise ValueError(
                "--detach: expected --address or RAY_ADDRESS, found neither; a local Ray ends with this "
                "command"
            )
        run, pinned = store.RunFolder(run_folder), None if version == published.LATEST else version
        check_version(run, pinned)
        started = time.monotonic()
        writable = os.access(run_folder, os.W_OK)  # a cluster may mount it read-only for serving
        logs = run_folder / "logs" / "serve" if writable else Path(tempfile.mkdtemp(prefix="stasc-serve-"))
        with (
            ray_session.naming_logs(logs),
            ray_session.connect(address, logs, worker_niceness=app.WORKER_NICENESS),
            app.serving(
                run_folder,
                settings,
                host,
                port,
                api_keys_file,
                loopback_only=host in doors.LOOPBACK_HOSTS and not api_keys_file,
                pinned=pinned,
                detach=detach,
            ),
        ):
            how = "`serve shutdown --address http://HEAD:8265` stops it" if detach else "Ctrl-C stops it"
            does = "answers" if run.latest() else "waits for its run to publish, and then answers,"
            typer.echo(
                f"{settings.name} {does} at http://{host}:{port} after {time.monotonic() - started:.0f} s; "
                f"{how}"
            )
            if not guarded(f"http://{host}:{port}"):
                typer.echo(
                    "warning: Serve ran here before without stasc_ray.serving.proxy, so a client's "
                    "x-request-timeout-seconds lifts the time limit; `serve shutdown` first, or see "
                    "docs/serving.md",
                    err=True,
                )
            if detach:
                return
            with contextlib.suppress(KeyboardInterrupt):
                while True:
                    time.sleep(3600)
            typer.echo(f"stopping: requests in flight have {settings.serve.grace:g} s (serve.grace_s)")


def check_open(host: str, api_keys_file: Path | None, insecure: bool) -> None:
    """Refuse to answer everybody on a network by accident.

    Raises:
        ValueError: another address than this machine's, without keys.
    """
    from stasc_ray.serving.doors import LOOPBACK_HOSTS
    from stasc_ray.serving.keys import read_keys

    if api_keys_file:
        read_keys(api_keys_file)
    elif host not in LOOPBACK_HOSTS and not insecure:
        raise ValueError(
            f"--host {host}: expected 127.0.0.1, since without keys everybody who reaches this address is "
            f"answered; make a key "
            "with `stasc keys add keys.json` and pass --api-keys-file keys.json, or say --insecure"
        )


def guarded(url: str) -> bool:
    """Whether Serve's proxy has loaded the endpoint's middleware; True where that cannot be seen."""
    import httpx

    try:
        return bool(httpx.get(f"{url}/healthz", timeout=10).json().get("guarded", True))
    except (httpx.HTTPError, ValueError):
        return True


def check_version(run: Any, version: str | None) -> None:
    """Raises ValueError unless the version, if the command line names one, is published."""
    names = [manifest["version"] for manifest in run.versions()]
    if version not in (None, *names):
        there = ", ".join(names) or "none yet: `stasc run` publishes"
        raise ValueError(f"--version: expected one of {there}, found {version!r}")


def ask(
    question: Annotated[str, typer.Argument(help="The question.")],
    url: Annotated[str, typer.Option(help="Where `stasc serve` answers.")] = "http://127.0.0.1:8000",
    rounds: Annotated[
        int | None, typer.Option(min=0, help="Corrections in a row at most; default: as it was measured.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy; default: the run's.")] = None,
    version: Annotated[str | None, typer.Option(help="A loaded version; default: the active one.")] = None,
    key: Annotated[str | None, typer.Option(envvar="STASC_API_KEY", help="API key.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole reply.")] = False,
) -> None:
    """Ask a served model; prints its first answer and its correction."""
    import httpx

    asked = {"question": question, "rounds": rounds, "temperature": temperature, "version": version}
    try:
        reply = httpx.post(
            f"{url}/v1/correct",
            json={name: value for name, value in asked.items() if value is not None},
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=300,
        )
    except httpx.TransportError as error:
        typer.echo(
            f"error: nothing answers at {url} ({error}). Start it with: stasc serve runs/NAME", err=True
        )
        raise typer.Exit(1) from None
    try:
        body = reply.json()
    except ValueError:
        body = {"error": {"message": reply.text[:300]}}
    if reply.is_error:
        typer.echo(f"error: {reply.status_code}: {body['error']['message']}", err=True)
        raise typer.Exit(1)
    typer.echo(json.dumps(body, ensure_ascii=False, indent=2) if as_json else as_text(body))


def as_text(body: dict[str, Any]) -> str:
    """A reply of /v1/correct for people."""
    lines = [f"initial answer  {body['initial_answer']}"]
    lines += [f"correction {number:<4} {text}" for number, text in enumerate(body["corrections"], start=1)]
    what = "changed" if body["changed"] else "kept"
    return "\n".join([*lines, f"({body['model_version']}, {what}, {body['timings_ms']['total']:.0f} ms)"])


@keys_app.command("add")
def keys_add(
    file: Annotated[
        Path, typer.Argument(metavar="KEYS.json", help="File of hashes; is made if it does not exist.")
    ],
    name: Annotated[str, typer.Option(help="Whose key it is.")] = "default",
    admin: Annotated[bool, typer.Option("--admin", help="The key may also activate versions.")] = False,
    requests_per_minute: Annotated[
        float | None, typer.Option(min=0.01, help="Requests a minute, per replica.")
    ] = None,
    tokens_per_minute: Annotated[
        float | None, typer.Option(min=1, help="Tokens that may be written a minute, per replica.")
    ] = None,
) -> None:
    """Make a key, keep its hash in a file and print the key, once."""
    from stasc_ray.cli.errors import errors_for_people
    from stasc_ray.serving.keys import add_key

    with errors_for_people(debug=False):
        secret = add_key(
            file,
            name,
            admin=admin,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
        )
        typer.echo(f"{name}'s key, shown this once (its hash is in {os.fspath(file)}):", err=True)
        typer.echo(secret)
